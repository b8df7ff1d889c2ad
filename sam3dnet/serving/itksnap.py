"""The routes that ITK-SNAP's deep learning extensions speak, version 4.4 and, with a list of models, 4.6.

Each class is a "model" of its own. ITK-SNAP says where its image lies, so it is brought to the orientation of the
model's images; it wants the whole mask after each click, and undoes by itself, without telling.
"""

import asyncio
import base64
import gzip
import logging
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from sam3dnet.preprocessing.geometry import Mask
from sam3dnet.serving.arrays import WireError
from sam3dnet.serving.bodies import answer, parse_json, read_parts
from sam3dnet.serving.hall import Hall, segment_of
from sam3dnet.serving.leases import GoneError, Lease
from sam3dnet.serving.segment import Segment

logger = logging.getLogger(__name__)

SPOKEN_VERSION = "0.1.6"  # of the server that ITK-SNAP 4.6 compares with the oldest that it takes
MOST_COMPONENTS = 64
BYTES_BESIDE = 1 << 20
FASTEST = 1  # of gzip: masks are small, and the network is near
Number = Annotated[float, Field(allow_inf_nan=False)]


class Metadata(BaseModel):
    """Beside an image: its grid, along (x, y, z), in LPS."""

    model_config = ConfigDict(extra="ignore")

    dimensions: Annotated[list[Annotated[int, Field(gt=0, le=1 << 20)]], Field(min_length=3, max_length=3)]
    spacing: Annotated[list[Number], Field(min_length=3, max_length=3)]
    direction: Annotated[list[Number], Field(min_length=9, max_length=9)] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    components_per_pixel: Annotated[int, Field(gt=0, le=MOST_COMPONENTS)] = 1


class ItkSnap:
    """The routes.

    Args:
        hall: Where sessions are kept.
    """

    def __init__(self, hall: Hall):
        self._hall = hall

    def routes(self) -> list[web.RouteDef]:
        """Give all routes, of both versions."""
        both = [
            *(web.post(f"{prefix}/upload_raw/{{session}}", self.upload) for prefix in ("", "/v2")),
            *(web.get(f"{prefix}/process_point_interaction/{{session}}", self.point) for prefix in ("", "/v2")),
            *(web.get(f"{prefix}/reset_interactions/{{session}}", self.reset) for prefix in ("", "/v2")),
            *(web.get(f"{prefix}/end_session/{{session}}", self.end) for prefix in ("", "/v2")),
        ]
        drawn = [
            web.post(f"{prefix}/process_{kind}_interaction/{{session}}", partial(self.drawn, kind, hear))
            for prefix in ("", "/v2")
            for kind, hear in (("scribble", Segment.scribble), ("lasso", Segment.lasso))
        ]
        return [
            web.get("/status", self.status),
            web.get("/v2/models", self.models),
            web.get("/start_session", self.start),
            web.get("/v2/start_session/{model}", self.start),
            *both,
            *drawn,
        ]

    async def status(self, _: web.Request) -> web.Response:
        """Say that the server is there."""
        return answer({"status": "ok", "version": SPOKEN_VERSION})

    async def models(self, _: web.Request) -> web.Response:
        """List the classes, each as a model."""
        known = {"channels": [1], "dimensions": 3, "interactions": ["point", "scribble", "lasso"]}
        return answer({"models": [{"id": short, **known} for short in self._hall.class_names]})

    async def start(self, request: web.Request) -> web.Response:
        """Begin a session."""
        return answer({"session_id": self._hall.claim(request.match_info.get("model"), beats=False).token})

    async def upload(self, request: web.Request) -> web.Response:
        """Take an image and segment it automatically."""
        lease = self._find(request)
        if lease is None:
            return _invalid()
        with self._hall.leases.request(lease, is_action=True):
            async with lease.turn:
                image_CZYX, meta = await self._image(request)
                spacing = [abs(mm) for mm in meta.spacing[::-1]]
                await self._hall.set_image(lease, image_CZYX, spacing, _axes(meta.direction))
        return answer({"message": "the image is segmented"})

    async def point(self, request: web.Request) -> web.Response:
        """Hear a click, and give the whole mask."""
        lease = self._find(request)
        if lease is None:
            return _invalid()
        at = _place(request)

        def act() -> Mask:
            segment = segment_of(lease)
            return segment.answered(lambda: segment.point(at, _is_positive(request), run=False))

        return await self._mask(lease, "click", act)

    async def reset(self, request: web.Request) -> web.Response:
        """Take back everything."""
        lease = self._find(request)
        if lease is None:
            return _invalid()
        with self._hall.leases.request(lease, is_action=True):
            async with lease.turn:
                await self._hall.worker.run(f"{lease.name}: reset", segment_of(lease).reset)
        return answer({"status": "success"})

    async def end(self, request: web.Request) -> web.Response:
        """End a session, or none."""
        self._hall.leases.release(request.match_info["session"])
        return answer({"message": "the session has ended"})

    async def drawn(self, kind: str, hear: Callable[..., object], request: web.Request) -> web.Response:
        """Hear a scribble or a lasso, and give the whole mask."""
        lease = self._find(request)
        if lease is None:
            return _invalid()
        with self._hall.leases.request(lease, is_action=True):
            drawn_CZYX, _ = await self._image(request)
            if len(drawn_CZYX) != 1:
                raise WireError(f"a {kind} with {len(drawn_CZYX)} components came, expected 1")

        def act() -> Mask:
            segment = segment_of(lease)
            segment.require_shape(drawn_CZYX.shape[1:], f"the {kind}")
            return segment.answered(lambda: hear(segment, drawn_CZYX[0], (0, 0, 0), _is_positive(request), run=False))

        return await self._mask(lease, kind, act)

    async def _image(self, request: web.Request) -> tuple[npt.NDArray[np.float32], Metadata]:
        """Take an array (C, Z, Y, X), and what is said of it."""
        parts = await read_parts(request, self._hall.largest_bytes + BYTES_BESIDE)
        meta = parse_json(parts.get("metadata", b"{}"), Metadata)
        if "file" not in parts:
            raise WireError("the part with the image is missing")
        return await asyncio.to_thread(_unpacked, parts.pop("file"), meta, self._hall.largest_bytes), meta

    async def _mask(self, lease: Lease, what: str, act: Callable[[], Mask]) -> web.Response:
        with self._hall.leases.request(lease, is_action=True):
            async with lease.turn:
                mask_ZYX = await self._hall.worker.run(f"{lease.name}: {what}", act)
            packed = await asyncio.to_thread(_packed, mask_ZYX)
        return answer({"status": "success", "result": packed})

    def _find(self, request: web.Request) -> Lease | None:
        try:
            lease = self._hall.leases.find(request.match_info["session"])
            segment_of(lease)
            return lease
        except GoneError:
            return None


def _invalid() -> web.Response:
    return answer({"error": "Invalid session"})


def _is_positive(request: web.Request) -> bool:
    return request.query.get("foreground", "true").lower() in ("true", "1")


def _place(request: web.Request) -> list[float]:
    """Read a voxel (z, y, x) from the address, as either version writes it."""
    given = request.query.getall("point", []) or [request.query.get(axis, "") for axis in "xyz"]
    try:
        place = [float(value) for value in reversed(given)]
    except ValueError:
        place = []
    if len(place) != 3 or not all(map(math.isfinite, place)):
        raise WireError(f"a click at {given} came, expected three numbers (x, y, z)")
    return place


def _unpacked(packed: bytes, meta: Metadata, largest: int) -> npt.NDArray[np.float32]:
    """Unpack an image (C, Z, Y, X) of float32; no more than the grid asks for is unpacked."""
    width, height, depth = meta.dimensions
    size = 4 * depth * height * width * meta.components_per_pixel
    if size > largest:
        raise WireError(f"an image of {size} bytes came, {largest} are allowed; see --max-upload")
    unpacking = zlib.decompressobj(wbits=31)
    try:
        values = unpacking.decompress(packed, size + 1)
    except zlib.error as problem:
        raise WireError(f"the image cannot be unpacked ({problem}); send it again") from problem
    if len(values) != size or not unpacking.eof:
        raise WireError(f"the image has other than {size} bytes, which its grid of {meta.dimensions} asks for")
    image_ZYXC = np.frombuffer(values, "<f4").reshape(depth, height, width, meta.components_per_pixel)
    return np.moveaxis(image_ZYXC, -1, 0)


def _packed(mask_ZYX: Mask) -> str:
    return base64.b64encode(gzip.compress(mask_ZYX.astype(np.int8).tobytes(), FASTEST)).decode()


def _axes(direction: list[float]) -> str | None:
    """Say to which sides the axes (z, y, x) run, from the columns of a direction in LPS; None of one that is none."""
    import SimpleITK as sitk

    matrix: npt.NDArray[Any] = np.array(direction).reshape(3, 3)
    if abs(abs(np.linalg.det(matrix)) - 1) > 0.1:
        return None
    letters = str(sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(direction))
    return letters[::-1] if len(letters) == 3 else None
