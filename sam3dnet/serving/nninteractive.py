"""The protocol of nnInteractive, version 2, which napari, 3D Slicer and MITK speak, for the user's own model.

A class is chosen by a prefix of the path, such as /tumour/claim; without one it is the model's only or first class.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from sam3dnet.serving.arrays import WireError, pack_array, unpack_array
from sam3dnet.serving.bodies import answer, parse_json, read_body, read_json
from sam3dnet.serving.hall import SILENT_S, Hall, segment_of
from sam3dnet.serving.leases import Lease
from sam3dnet.serving.segment import Change, Segment

logger = logging.getLogger(__name__)

LEASE_HEADER, META_HEADER = "X-Lease-Token", "X-Meta"
SPOKEN_VERSION = "2.6.0"  # of the client that this was tested with
BUFFER_TYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
LARGEST_AXIS = 1 << 20
BYTES_BESIDE = 1 << 20  # of a body, beside its array

Number = Annotated[float, Field(allow_inf_nan=False)]
Three = Annotated[list[Number], Field(min_length=3, max_length=3)]
Extent = Annotated[list[Annotated[int, Field(ge=-LARGEST_AXIS, le=LARGEST_AXIS)]], Field(min_length=2, max_length=2)]
Side = Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ImageProperties(_Part):
    """What a viewer says of an image."""

    spacing: Three | None = None


class ImageMeta(_Part):
    """Beside an image."""

    image_properties: ImageProperties = ImageProperties()


class BufferRequest(_Part):
    """A new target buffer."""

    shape: Annotated[list[Annotated[int, Field(gt=0, le=LARGEST_AXIS)]], Field(min_length=3, max_length=3)]
    dtype: str = "uint8"


class PointRequest(_Part):
    """A click."""

    coordinates: Three
    include_interaction: StrictBool = True
    run_prediction: StrictBool = True


class BoxRequest(_Part):
    """A box, half-open along each axis."""

    bbox_coords: Annotated[list[Side], Field(min_length=3, max_length=3)]
    include_interaction: StrictBool = True
    run_prediction: StrictBool = True


class DrawingMeta(_Part):
    """Beside what was drawn."""

    include_interaction: StrictBool = True
    run_prediction: StrictBool = True
    interaction_bbox: Annotated[list[Extent], Field(min_length=3, max_length=3)] | None = None


class MaskMeta(_Part):
    """Beside an initial mask."""

    run_prediction: StrictBool = False


class Nothing(_Part):
    """A request that says no more than its path."""


class NnInteractive:
    """The routes of the protocol.

    Args:
        hall: Where sessions are kept.
    """

    def __init__(self, hall: Hall):
        self._hall = hall

    def routes(self) -> list[web.RouteDef]:
        """Give all routes, each without and with the prefix of a class."""
        posts: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            "claim": self.claim,
            "release": self.release,
            "heartbeat": self.heartbeat,
            "set_image": self.set_image,
            "set_target_buffer": self.set_target_buffer,
            "set_do_autozoom": self.set_do_autozoom,
            "reset_interactions": self.reset,
            "add_point_interaction": self.point,
            "add_bbox_interaction": self.box,
            "add_scribble_interaction": self.scribble,
            "add_lasso_interaction": self.lasso,
            "add_initial_seg_interaction": self.initial_mask,
            "predict": self.predict,
            "undo": self.undo,
        }
        gets = {"capabilities": self.capabilities, "lease_status": self.lease_status}
        prefixes = ("", "/{class_name}")
        return [
            *(web.get("/healthz", self.healthz), web.get("/{class_name}/healthz", self.healthz)),
            *(web.post(f"{prefix}/{name}", handler) for prefix in prefixes for name, handler in posts.items()),
            *(web.get(f"{prefix}/{name}", handler) for prefix in prefixes for name, handler in gets.items()),
        ]

    async def healthz(self, _: web.Request) -> web.Response:
        """Say that the server is there."""
        return answer({"ok": True})

    async def claim(self, request: web.Request) -> web.Response:
        """Begin a session."""
        lease = self._hall.claim(request.match_info.get("class_name"))
        leases = self._hall.leases
        return answer(
            {
                "lease_token": lease.token,
                "idle_timeout_seconds": leases.idle_s,
                "liveness_timeout_seconds": SILENT_S,
                "max_sessions": leases.most,
            }
        )

    async def release(self, request: web.Request) -> web.Response:
        """End a session, or none."""
        self._hall.leases.release(request.headers.get(LEASE_HEADER))
        return answer({"released": True})

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Hear that a viewer is still there."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=False):
            await read_json(request, Nothing)
            return answer({"remaining_seconds": self._hall.leases.remaining_s(lease)})

    async def lease_status(self, request: web.Request) -> web.Response:
        """Say how long the session lasts without an action; changes nothing."""
        leases = self._hall.leases
        remaining = leases.remaining_s(self._lease(request))
        return answer({"remaining_seconds": remaining, "idle_timeout_seconds": leases.idle_s})

    async def capabilities(self, request: web.Request) -> web.Response:
        """Say what the model understands."""
        lease = self._lease(request)
        return answer(
            {
                "supported_interactions": {
                    **{"points": True, "bbox2d": True, "bbox3d": True},
                    **{"scribble": True, "lasso": True},
                },
                "channel_mapping": {"prev_seg": 0, "points": [1, 2], "bbox": [3, 3]},
                "num_interaction_channels": 4,
                "supports_initial_label": True,
                "supports_zero_shot_label_refinement": False,
                "preferred_scribble_thickness": [1, 1, 1],
                "interaction_decay": 1.0,
                "do_autozoom": False,
                "inference_session_version": SPOKEN_VERSION,
                "license": f"{self._hall.title} | class: {segment_of(lease).class_name}",
                "supports_undo": True,
            }
        )

    async def set_image(self, request: web.Request) -> web.Response:
        """Take an image and segment it automatically."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            meta = _meta(request, ImageMeta)
            largest = self._hall.largest_bytes
            body = await read_body(request, largest + BYTES_BESIDE)
            async with lease.turn:
                image_CZYX = await asyncio.to_thread(unpack_array, body, largest)
                del body
                if image_CZYX.ndim != 4:
                    raise WireError(f"an image with {image_CZYX.ndim} axes came, expected 4 (C, Z, Y, X)")
                spacing = meta.image_properties.spacing
                await self._hall.set_image(lease, image_CZYX, spacing)
        return answer({"original_image_shape": list(image_CZYX.shape)})

    async def set_target_buffer(self, request: web.Request) -> web.Response:
        """Begin with an empty mask."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            said = await read_json(request, BufferRequest)
            if said.dtype not in BUFFER_TYPES:
                raise WireError(f"dtype: a target buffer of {said.dtype!r} came, expected {', '.join(BUFFER_TYPES)}")
            async with lease.turn:
                segment_of(lease).set_buffer(said.shape, np.dtype(said.dtype))
        return answer({})

    async def set_do_autozoom(self, request: web.Request) -> web.Response:
        """Hear of nnInteractive's zoom, which this network has no need of: it goes on by itself."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=False):
            await read_json(request, Nothing)
        return answer({})

    async def reset(self, request: web.Request) -> web.Response:
        """Take back everything."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            await read_json(request, Nothing)
            async with lease.turn:
                await self._hall.worker.run(f"{lease.name}: reset", segment_of(lease).reset)
        return answer({})

    async def point(self, request: web.Request) -> web.Response:
        """Hear a click."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            said = await read_json(request, PointRequest)
            run = said.run_prediction
            segment = segment_of(lease)
            return await self._changed(
                lease, "click", lambda: segment.point(said.coordinates, said.include_interaction, run), run
            )

    async def box(self, request: web.Request) -> web.Response:
        """Hear a box."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            said = await read_json(request, BoxRequest)
            run = said.run_prediction
            segment = segment_of(lease)
            return await self._changed(
                lease, "box", lambda: segment.box(said.bbox_coords, said.include_interaction, run), run
            )

    async def scribble(self, request: web.Request) -> web.Response:
        """Hear a stroke of a pencil."""
        return await self._drawn(request, "scribble", Segment.scribble)

    async def lasso(self, request: web.Request) -> web.Response:
        """Hear an outline in a slice."""
        return await self._drawn(request, "lasso", Segment.lasso)

    async def initial_mask(self, request: web.Request) -> web.Response:
        """Begin anew with a mask."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            run = _meta(request, MaskMeta).run_prediction
            mask_ZYX = await self._mask(request)
            return await self._changed(lease, "mask", lambda: segment_of(lease).initial_mask(mask_ZYX, run), run)

    async def predict(self, request: web.Request) -> web.Response:
        """Give the mask under all that was said, or the automatic one."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            await read_json(request, Nothing)
            return await self._changed(lease, "prediction", segment_of(lease).predict)

    async def undo(self, request: web.Request) -> web.Response:
        """Take back what was said last."""
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            await read_json(request, Nothing)
            return await self._changed(lease, "undo", segment_of(lease).undo)

    async def _drawn(self, request: web.Request, what: str, hear: Callable[..., Change]) -> web.Response:
        lease = self._lease(request)
        with self._hall.leases.request(lease, is_action=True):
            meta = _meta(request, DrawingMeta)
            drawn_zyx = await self._mask(request)
            sides = meta.interaction_bbox or [[0, size] for size in drawn_zyx.shape]
            if tuple(high - low for low, high in sides) != drawn_zyx.shape:
                raise WireError(
                    f"a {what} of shape {drawn_zyx.shape} came for the box {sides}; expected the box's shape"
                )
            corner, run = [low for low, _ in sides], meta.run_prediction
            segment, positive = segment_of(lease), meta.include_interaction
            return await self._changed(lease, what, lambda: hear(segment, drawn_zyx, corner, positive, run), run)

    async def _mask(self, request: web.Request) -> npt.NDArray[Any]:
        """Take a mask of three axes."""
        largest = self._hall.largest_bytes
        body = await read_body(request, largest + BYTES_BESIDE)
        mask_zyx = await asyncio.to_thread(unpack_array, body, largest)
        if mask_zyx.ndim != 3:
            raise WireError(f"a mask with {mask_zyx.ndim} axes came, expected 3 (Z, Y, X)")
        return mask_zyx

    def _lease(self, request: web.Request) -> Lease:
        lease = self._hall.leases.find(request.headers.get(LEASE_HEADER))
        segment_of(lease)
        return lease

    async def _changed(
        self, lease: Lease, what: str, act: Callable[[], Change | None], ran: bool = True
    ) -> web.Response:
        """Do something in the thread of the network, and answer with what it changed."""
        async with lease.turn:
            change = await self._hall.worker.run(f"{lease.name}: {what}", act)
        if change is None or change.values is None:
            return _binary({"ran_prediction": ran and change is not None, "bbox": None})
        body = await asyncio.to_thread(pack_array, change.values)
        assert change.sides is not None
        return _binary(
            {
                "ran_prediction": True,
                "bbox": [list(side) for side in change.sides],
                "dtype": change.values.dtype.name,
                "shape": list(change.values.shape),
            },
            body,
        )


def _meta(request: web.Request, form: type[Any]) -> Any:
    return parse_json(request.headers.get(META_HEADER, "{}"), form)


def _binary(meta: dict[str, Any], body: bytes = b"") -> web.Response:
    headers = {META_HEADER: json.dumps(meta, separators=(",", ":"))}
    return web.Response(body=body, content_type="application/octet-stream", headers=headers)
