"""What the page asks about a dataset that is annotated."""

from typing import Protocol

from aiohttp import web

from sam3dnet.serving.annotating import Annotating
from sam3dnet.serving.bodies import answer
from sam3dnet.serving.casework import CaseWork
from sam3dnet.serving.forms import EventRequest, SessionRequest, hear
from sam3dnet.serving.leases import Lease, Leases


class Windows(Protocol):
    """What the page's other routes know of its windows."""

    leases: Leases

    def find(self, token: str | None) -> tuple[Lease, CaseWork]:
        """Find the session of a window, and its work."""

    async def save_work(self, work: CaseWork) -> None:
        """Write what was done on a case."""


class AnnotationRoutes:
    """The routes.

    Args:
        windows: The page's other routes.
        annotating: The dataset.
    """

    def __init__(self, windows: Windows, annotating: Annotating):
        self._windows, self._annotating = windows, annotating

    def routes(self) -> list[web.RouteDef]:
        """Give all routes."""
        return [
            web.get("/viewer/api/annotation", self.status),
            web.get("/viewer/api/history", self.history),
            web.post("/viewer/api/accept", self.accept),
            web.post("/viewer/api/skip", self.skip),
            web.post("/viewer/api/train", self.train),
            web.post("/viewer/api/back", self.back),
        ]

    async def status(self, _: web.Request) -> web.Response:
        """Say how things stand."""
        return answer(await self._annotating.status())

    async def history(self, _: web.Request) -> web.Response:
        """Tell all that happened."""
        return answer({"history": await self._annotating.history()})

    async def accept(self, request: web.Request) -> web.Response:
        """Take the case of a session into the dataset."""
        lease, work = self._windows.find((await hear(request, SessionRequest)).session)
        with self._windows.leases.request(lease, is_action=True):
            async with lease.turn:
                await self._windows.save_work(work)
                return answer(await self._annotating.accept(work))

    async def skip(self, request: web.Request) -> web.Response:
        """Put the case of a session off."""
        _, work = self._windows.find((await hear(request, SessionRequest)).session)
        return answer(await self._annotating.skip(work))

    async def train(self, _: web.Request) -> web.Response:
        """Begin a training."""
        return answer(await self._annotating.train())

    async def back(self, request: web.Request) -> web.Response:
        """Go back to an event."""
        return answer(await self._annotating.go_back((await hear(request, EventRequest)).number))
