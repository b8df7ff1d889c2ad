"""The page in the browser: its files, and what it asks of the server.

The page names cases, never files; what it may read are the images of the folder that is served, and what it writes are
label maps and prompts in the output folder.
"""

import asyncio
import gzip
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web

from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.economy import is_out_of_memory
from sam3dnet.inference.writing import remove_abandoned
from sam3dnet.interactive.classes import prompt_classes
from sam3dnet.preprocessing.cases import channel_names
from sam3dnet.preprocessing.modalities import SOFT_TISSUE_HU
from sam3dnet.serving.access import PAGE, Access
from sam3dnet.serving.annotating import Annotating
from sam3dnet.serving.annotation_routes import AnnotationRoutes
from sam3dnet.serving.arrays import WireError
from sam3dnet.serving.bodies import TooLargeError, answer, parse_json, read_body
from sam3dnet.serving.case_files import remedy_of
from sam3dnet.serving.casework import CaseWork, Seen
from sam3dnet.serving.forms import (
    BYTES_A_PLACE,
    BoxRequest,
    ClickRequest,
    OpenRequest,
    PaintMeta,
    ScribbleRequest,
    SessionRequest,
    hear,
)
from sam3dnet.serving.hall import NO_MEMORY, Hall
from sam3dnet.serving.leases import GoneError, Lease
from sam3dnet.serving.segment import LARGEST_SCRIBBLE

logger = logging.getLogger(__name__)

SILENT_S = 150.0  # a browser lets a page in the background speak once a minute
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SMALL = 1 << 16  # bytes that are not worth packing
FASTEST = 1
SAMPLED = 1_000_000  # voxels
SHOWN_SHARE = (0.5, 99.5)  # percent of the grey values that a first window shows
OBLIQUE = 0.02  # radians, about, from which axes are no longer those of the patient
META = "X-Meta"
MOST_TAKEN = 1000


class TakenError(Sam3dError):
    """Another window has the case now."""


class Viewer:
    """The page and its routes.

    Args:
        hall: The model and its clients; it has a folder of images.
        access: Who may ask.
        output: Folder for label maps and prompts.
        annotating: The dataset that is annotated; None if none is.
    """

    def __init__(self, hall: Hall, access: Access, output: Path, annotating: Annotating | None = None):
        assert hall.images is not None
        self._hall, self._access, self.output = hall, access, output
        self._annotating, self.leases = annotating, hall.leases
        self._images = hall.images
        self._dataset = hall.model.loaded.dataset_json
        self._classes = prompt_classes(hall.model.loaded.labels)
        self._files = _read_files()
        self._opening: set[asyncio.Task[None]] = set()
        self._taken: deque[str] = deque(maxlen=MOST_TAKEN)  # tokens of sessions whose case another window has
        output.mkdir(parents=True, exist_ok=True)
        remove_abandoned(output)

    def routes(self) -> list[web.RouteDef]:
        """Give all routes."""
        changes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            "click": self.click,
            "scribble": self.scribble,
            "box": self.box,
            "paint": self.paint,
            "undo": self.undo,
            "redo": self.redo,
            "reset": self.reset,
        }
        return [
            web.get("/", self.to_page),
            web.get("/viewer", self.to_page),
            web.get("/viewer/", self.page),
            web.get("/viewer/api/state", self.state),
            web.post("/viewer/api/open", self.open),
            web.get("/viewer/api/progress", self.progress),
            web.get("/viewer/api/image", self.image),
            web.get("/viewer/api/labels", self.labels),
            web.post("/viewer/api/save", self.save),
            web.post("/viewer/api/heartbeat", self.heartbeat),
            web.post("/viewer/api/close", self.close),
            *(web.post(f"/viewer/api/{name}", handler) for name, handler in changes.items()),
            *([] if self._annotating is None else AnnotationRoutes(self, self._annotating).routes()),
            web.get("/viewer/{file}", self.file),
        ]

    async def to_page(self, _: web.Request) -> web.StreamResponse:
        """Lead to the page."""
        return _to_page()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Give the page; the first time with the key in its address, which then goes into a cookie."""
        if "key" in request.query:
            response = _to_page()
            response.set_cookie(
                self._access.cookie, self._access.ticket, httponly=True, samesite="Strict", path="/viewer/"
            )
            return response
        return self._file("index.html")

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Give a file of the page."""
        return self._file(request.match_info["file"])

    async def state(self, _: web.Request) -> web.Response:
        """Say what there is to segment, and into what."""
        cases = await asyncio.to_thread(self._images.cases)
        ending = self._dataset["file_ending"]
        return answer(
            {
                "title": self._hall.title,
                "classes": [{"name": name, "label": one.label} for name, one in self._classes.items()],
                "cases": [
                    {"name": case.name, "begun": (self.output / f"{case.name}{ending}").exists()} for case in cases
                ],
                "annotation": None if self._annotating is None else await self._annotating.status(),
                "output": str(self.output),
                "instance": self._hall.instance,
            }
        )

    async def open(self, request: web.Request) -> web.Response:
        """Begin to work on a case; it is read and segmented while the page asks how far that is."""
        name = (await hear(request, OpenRequest)).case
        async with self._while_nothing_goes_back():
            case = {one.name: one for one in await asyncio.to_thread(self._images.cases)}.get(name)
            if case is None:
                raise DatasetError(f"there is no image {name} any more; reload the page")
            before = self._take_over(name)
            work = CaseWork(
                self._hall.new_session(),
                case,
                self._hall.model.loaded.reader,
                self._classes,
                self.output,
                self._dataset["file_ending"],
                None if self._annotating is None else self._annotating.model,
            )
            lease = self.leases.claim(work, f"{name} in the browser", SILENT_S)
        async with lease.turn:
            await _let_end(before)
        task = asyncio.create_task(self._open(lease, work))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return answer({"session": lease.token})

    def _while_nothing_goes_back(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._annotating is None else self._annotating.opening

    def _take_over(self, case: str) -> list[tuple[Lease, CaseWork]]:
        """End the sessions of a case, which another window has from now on, and name those that may yet save."""
        leaving, served = _sessions_of(self.leases.leaving(), case), _sessions_of(self.leases.all(), case)
        for lease, _ in served:
            self._taken.append(lease.token)
            self.leases.release(lease.token)
        return leaving + served

    async def progress(self, request: web.Request) -> web.Response:
        """Say how far opening is."""
        lease, work = self.find(request.query.get("session"))
        with self.leases.request(lease, is_action=False):
            return answer(
                {
                    "share": work.share,
                    "waiting": 0 if work.has_begun else max(0, self._hall.worker.unfinished - 1),
                    "image": True,
                    "ready": work.is_ready,
                    "error": work.problem,
                    "warnings": work.warnings,
                }
            )

    async def image(self, request: web.Request) -> web.Response:
        """Give a channel's voxels."""
        lease, work = self.find(request.query.get("session"))
        channel = _whole_number(request.query.get("channel", "0"))
        with self.leases.request(lease, is_action=True):
            voxels = await asyncio.to_thread(work.voxels, channel)
            meta = await asyncio.to_thread(self._describe, work, voxels, channel)
        return _binary(meta, memoryview(voxels.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]

    async def labels(self, request: web.Request) -> web.Response:
        """Give the whole label map."""
        lease, work = self.find(request.query.get("session"))
        with self.leases.request(lease, is_action=True):
            async with lease.turn:
                labels = await self._hall.worker.run(f"{lease.name}: label map", work.labels)
            return await _packed(work.status() | {"shape": list(labels.shape)}, labels)

    async def click(self, request: web.Request) -> web.Response:
        """Hear a click."""
        said = await hear(request, ClickRequest)
        lease, work = self.find(said.session)
        i, j, k = said.at
        return await self._changed(lease, work, "click", lambda: work.click(said.class_name, (i, j, k), said.positive))

    async def scribble(self, request: web.Request) -> web.Response:
        """Hear a stroke of a pencil."""
        said = await hear(request, ScribbleRequest, BYTES_A_PLACE * LARGEST_SCRIBBLE)
        lease, work = self.find(said.session)
        places = [(i, j, k) for i, j, k in said.at]
        act = partial(work.scribble, said.class_name, places, said.positive)
        return await self._changed(lease, work, "scribble", act)

    async def box(self, request: web.Request) -> web.Response:
        """Hear a box."""
        said = await hear(request, BoxRequest)
        lease, work = self.find(said.session)
        low, high = (tuple(corner) for corner in (said.low, said.high))
        return await self._changed(lease, work, "box", lambda: work.box(said.class_name, low, high))  # type: ignore[arg-type]

    async def paint(self, request: web.Request) -> web.Response:
        """Hear a stroke of the brush."""
        lease, work = self.find(request.query.get("session"))
        meta = parse_json(request.headers.get(META, "{}"), PaintMeta)
        sides = tuple((start, stop) for start, stop in meta.box)
        shape = [stop - start for start, stop in sides]
        within = zip(sides, work.grid.shape, strict=True)
        if not all(0 <= start < stop <= size for (start, stop), size in within):
            raise WireError(f"a stroke in {meta.box} came, the image has shape {work.grid.shape}")
        size = int(np.prod(shape))
        with self.leases.request(lease, is_action=True):
            try:
                body = await read_body(request, size)
            except TooLargeError:
                raise WireError(
                    f"a stroke of more than {size} bytes came, its box {meta.box} asks for {size}"
                ) from None
            if len(body) != size:
                raise WireError(f"a stroke of {len(body)} bytes came, its box {meta.box} asks for {size}")
            mask = np.frombuffer(body, np.uint8).reshape(shape) != 0
            return await self._changed(lease, work, "stroke", lambda: work.paint(meta.label, sides, mask))

    async def undo(self, request: web.Request) -> web.Response:
        """Take back what was done last."""
        lease, work = self.find((await hear(request, SessionRequest)).session)
        return await self._changed(lease, work, "undo", work.undo)

    async def redo(self, request: web.Request) -> web.Response:
        """Do again what was taken back."""
        lease, work = self.find((await hear(request, SessionRequest)).session)
        return await self._changed(lease, work, "redo", work.redo)

    async def reset(self, request: web.Request) -> web.Response:
        """Go back to the automatic label map."""
        lease, work = self.find((await hear(request, SessionRequest)).session)
        return await self._changed(lease, work, "reset", work.reset)

    async def save(self, request: web.Request) -> web.Response:
        """Write the label map, also where nothing was changed."""
        lease, work = self.find((await hear(request, SessionRequest)).session)
        with self.leases.request(lease, is_action=True):
            async with lease.turn:
                await self.save_work(work)
        return answer({"saved": work.files.labels.name, "folder": str(self.output)})

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Hear that the page is still there."""
        lease, _ = self.find((await hear(request, SessionRequest)).session)
        with self.leases.request(lease, is_action=False):
            return answer({})

    async def close(self, request: web.Request) -> web.Response:
        """Hear that the page goes; what it has asked for before is still done, unless another window has the case."""
        self.leases.release((await hear(request, SessionRequest)).session)
        return answer({})

    async def _open(self, lease: Lease, work: CaseWork) -> None:
        begun, name = time.monotonic(), work.case.name
        with self.leases.request(lease, is_action=True):
            try:
                report = self._hall.reporter(lease)
                if self._annotating is not None:
                    await self._annotating.prepare(work)
                await self._hall.worker.run(f"{lease.name}: {name}", work.open, report, is_long=True)
            except GoneError:
                logger.info("%s: nobody waits for %s any more", lease.name, name)
            except Sam3dError as problem:
                logger.warning("%s: %s", name, problem)
                work.problem = str(problem)
            except Exception as problem:
                work.problem = _why_not_opened(name, problem)
            else:
                logger.info("%s: %s segmented in %.1f s", lease.name, name, time.monotonic() - begun)
                self._hall.worker.in_spare_time(work, CaseWork.look_ahead)
        if work.problem == NO_MEMORY:
            self._hall.release_cached()  # no longer inside of the exception, which holds what was computed

    async def _changed(self, lease: Lease, work: CaseWork, what: str, act: Callable[[], Seen]) -> web.Response:
        """Do something, save it, and answer with what it changed."""
        with self.leases.request(lease, is_action=True):
            async with lease.turn:
                seen = await self._hall.worker.run(f"{lease.name}: {what}", act)
                meta = {"message": seen.message, "box": seen.sides}
                try:
                    await self.save_work(work)
                except DatasetError as problem:
                    logger.error("%s", problem)
                    meta |= {"message": str(problem), "saved": None}
                meta = work.status() | meta
            return await _packed(meta, seen.labels)

    async def save_work(self, work: CaseWork) -> None:
        """Write what was done on a case.

        Raises:
            DatasetError: If it cannot be written.
            GoneError: If the case belongs to another window now, or has gone back.
        """
        try:
            await asyncio.to_thread(work.save)
        except (OSError, RuntimeError) as problem:  # ITK raises its own
            reason = getattr(problem, "strerror", None) or problem
            raise DatasetError(
                f"{work.files.labels} cannot be written ({reason}); {remedy_of(problem)}, then save again"
            ) from problem

    def find(self, token: str | None) -> tuple[Lease, CaseWork]:
        """Find the session of a window, and its work.

        Raises:
            TakenError: If another window has the case now.
            GoneError: If the session has ended.
        """
        if token in self._taken:
            raise TakenError(
                "this image was opened in another window, which has it now; choose it here to take it back"
            )
        lease = self.leases.find(token)
        if not isinstance(lease.work, CaseWork):
            raise GoneError("this session is of a viewer; reload the page")
        return lease, lease.work

    def _describe(self, work: CaseWork, voxels: npt.NDArray[Any], channel: int) -> dict[str, Any]:
        """Say where the voxels lie and how they are best shown."""
        names = list(channel_names(self._dataset).values())
        step = max(1, voxels.size // SAMPLED)
        sample = np.nan_to_num(voxels.reshape(-1)[::step].astype(np.float64), posinf=0.0, neginf=0.0)
        is_ct = str(names[channel]).lower() == "ct"
        low, high = SOFT_TISSUE_HU if is_ct else np.percentile(sample, SHOWN_SHARE)
        direction = np.abs(np.asarray(work.grid.direction).reshape(3, 3))
        return {
            "shape": list(voxels.shape),
            "dtype": voxels.dtype.name,
            "spacing": [float(mm) for mm in work.grid.spacing_mm[::-1]],
            "axes": work.grid.orientation,
            "oblique": bool((direction.max(0) < np.cos(OBLIQUE)).any()),
            "channels": [str(name) for name in names],
            "range": [float(sample.min()), float(sample.max())],
            "window": [float(low), float(max(high, low + 1e-6))],
            "is_ct": is_ct,
        }

    def _file(self, name: str) -> web.Response:
        if name not in self._files:
            raise web.HTTPNotFound
        content, kind = self._files[name]
        headers = {"Content-Security-Policy": POLICY}
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)


def _sessions_of(leases: Sequence[Lease], case: str) -> list[tuple[Lease, CaseWork]]:
    works = ((lease, lease.work) for lease in leases)
    return [(lease, work) for lease, work in works if isinstance(work, CaseWork) and work.case.name == case]


async def _let_end(sessions: Sequence[tuple[Lease, CaseWork]]) -> None:
    """Let what sessions have begun end, and see that they save nothing after it."""
    for lease, work in sessions:
        async with lease.turn:
            await asyncio.to_thread(work.files.close)


def _to_page() -> web.Response:
    return web.Response(status=302, headers={"Location": PAGE})


def _read_files() -> dict[str, tuple[bytes, str]]:
    """Read the page's own files, by name; nothing else is given out."""
    folder = resources.files("sam3dnet.serving") / "page"
    found = {file.name: Path(file.name).suffix for file in folder.iterdir() if file.is_file()}
    return {name: ((folder / name).read_bytes(), TYPES[end]) for name, end in found.items() if end in TYPES}


def _why_not_opened(name: str, problem: Exception) -> str:
    """Say why a case cannot be opened where that is not of the user's making, and tell the log."""
    if is_out_of_memory(problem):
        logger.error("the memory does not suffice for %s: %s", name, problem)
        return NO_MEMORY
    logger.error("%s cannot be opened", name, exc_info=problem)
    return f"{name} cannot be opened ({type(problem).__name__}); the server's log says more"


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise WireError(f"channel: {text[:20]!r} came, expected a number")
    return int(text)


def _binary(meta: dict[str, Any], body: Any = b"", **headers: str) -> web.Response:
    headers = {META: json.dumps(meta, separators=(",", ":")), **headers}
    return web.Response(body=body, content_type="application/octet-stream", headers=headers)


async def _packed(meta: dict[str, Any], labels: npt.NDArray[Any] | None) -> web.Response:
    """Answer with labels, and after them the prompts, too long for a header; packed where that is worth it."""
    content, meta = await asyncio.to_thread(_framed, meta, labels)
    if len(content) < SMALL:
        return _binary(meta, content)
    return _binary(meta, await asyncio.to_thread(gzip.compress, content, FASTEST), **{"Content-Encoding": "gzip"})


def _framed(meta: dict[str, Any], labels: npt.NDArray[Any] | None) -> tuple[bytes, dict[str, Any]]:
    prompts = json.dumps(meta["prompts"], separators=(",", ":")).encode()
    rest = {name: value for name, value in meta.items() if name != "prompts"}
    return (b"" if labels is None else labels.tobytes()) + prompts, rest | {"prompts_bytes": len(prompts)}
