"""The application: all protocols on one port, who may ask, and what is answered when something goes wrong."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from sam3dnet.errors import Sam3dError
from sam3dnet.inference.economy import is_out_of_memory
from sam3dnet.serving.access import Access
from sam3dnet.serving.annotating import Annotating
from sam3dnet.serving.bodies import TooLargeError, answer
from sam3dnet.serving.hall import NO_MEMORY, Hall
from sam3dnet.serving.itksnap import ItkSnap
from sam3dnet.serving.leases import AsideError, FullError, GoneError
from sam3dnet.serving.nninteractive import NnInteractive
from sam3dnet.serving.viewer import TakenError, Viewer

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RETRY_AFTER_S = 10
LONGEST_REASON = 400
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
OF_OLD_CLIENTS = {
    "upload_image": "this is a server for version 1.0 and later of Slicer's nnInteractive; update the extension",
    "upload_segment": "this is a server for version 1.0 and later of Slicer's nnInteractive; update the extension",
    "info": "this is no MONAI Label server; use nnInteractive's plugin of your viewer",
}


def make_application(
    hall: Hall, access: Access, output: Path | None = None, annotating: Annotating | None = None
) -> web.Application:
    """Make the application of a server.

    Args:
        hall: The model and its clients.
        access: Who may ask.
        output: Folder for what is made in the page in the browser; None for no page.
        annotating: The dataset that is annotated in the page; None if none is.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            access.require(request)
            response = await handler(request)
        except web.HTTPException as problem:
            response = _foreign(request, problem)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as problem:
            response = _refusal(problem)
        if response.status == web.HTTPInsufficientStorage.status_code:
            hall.release_cached()  # no longer inside of the exception, which holds what was computed
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    application = web.Application(middlewares=[guard])
    if output is not None:
        application.add_routes(Viewer(hall, access, output, annotating).routes())
    application.add_routes([*ItkSnap(hall).routes(), *NnInteractive(hall).routes()])
    application.cleanup_ctx.append(_reaping(hall))
    if annotating is not None:
        application.cleanup_ctx.append(_watching(annotating))
    return application


def _watching(annotating: Annotating) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(_: web.Application) -> AsyncIterator[None]:
        async with annotating.watched():
            yield

    return run


def _reaping(hall: Hall) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(_: web.Application) -> AsyncIterator[None]:
        reaper = asyncio.create_task(hall.leases.keep_reaping())
        yield
        reaper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reaper
        await asyncio.to_thread(hall.worker.close)

    return run


def _refusal(problem: Exception) -> web.Response:
    """Answer a request that failed, with a sentence in the body and in the reason, which viewers show."""
    if isinstance(problem, FullError):
        return refusal(503, str(problem), {"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(problem, AsideError):
        return refusal(410, str(problem), aside=True)
    if isinstance(problem, GoneError):
        return refusal(410, str(problem))
    if isinstance(problem, TakenError):
        return refusal(409, str(problem))
    if isinstance(problem, TooLargeError):
        return refusal(413, f"{problem}; start sam3d_serve with a larger --max-upload")
    if isinstance(problem, Sam3dError):
        logger.warning("refused: %s", str(problem))  # a record that is kept must not keep the client's image
        return refusal(400, str(problem))
    if is_out_of_memory(problem):
        logger.error("the memory does not suffice for a request: %s", problem)
        return refusal(507, NO_MEMORY)
    logger.error("a request failed by a bug of ours: %s: %s", type(problem).__name__, problem)
    logger.debug("a bug", exc_info=problem)
    return refusal(500, "the server failed by a bug of its own; its log says more with --verbose")


def _foreign(request: web.Request, problem: web.HTTPException) -> web.Response:
    """Answer what has no handler, or may not be asked."""
    last = request.path.rstrip("/").rpartition("/")[2]
    sentence = problem.text or problem.reason
    if problem.status == web.HTTPNotFound.status_code:
        sentence = OF_OLD_CLIENTS.get(last, "there is nothing at this address; see docs/viewers.md for those there are")
    kept = {name: value for name, value in problem.headers.items() if name in ("WWW-Authenticate", "Allow")}
    return refusal(problem.status, sentence, kept)


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None, **told: bool) -> web.Response:
    """Refuse with a sentence, and what else the page is told."""
    plain = " ".join(sentence.encode("ascii", "replace").decode().split())[:LONGEST_REASON]
    return answer({"detail": sentence, **told}, status=status, reason=plain, headers=headers)
