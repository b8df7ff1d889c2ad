"""Who is being served: a bounded number of clients, each with a token, forgotten when they fall silent.

Two clocks, as the protocol of nnInteractive has them: a client must show some sign of life, and the user must do
something from time to time. Neither runs out while a request of the client's is being answered.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sam3dnet.errors import Sam3dError

logger = logging.getLogger(__name__)

REAP_EVERY_S = 5.0
MOST_ASIDE = 1000


class FullError(Sam3dError):
    """As many clients as are allowed are being served."""


class GoneError(Sam3dError):
    """A client's session has ended, or never began."""


class AsideError(GoneError):
    """A client's session has ended, and what was being done in it is set aside."""


@dataclass(eq=False)
class Lease:
    """A client that is being served.

    Attributes:
        token: Its secret.
        name: For the log.
        work: What it does here.
        silent_s: After which it is taken for dead that says from time to time that it is there; None of others.
        turn: Held while one of its requests changes something.
    """

    token: str
    name: str
    work: object
    sign_s: float
    action_s: float
    silent_s: float | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: int = 0


class Leases:
    """All clients that are being served.

    Args:
        most: How many at the same time.
        idle_s: Without an action of the user's.
        clock: Gives the time in seconds.
    """

    def __init__(self, most: int, idle_s: float, clock: Callable[[], float] = time.monotonic):
        self.most, self.idle_s = most, idle_s
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._leaving: dict[str, Lease] = {}
        self._aside: deque[str] = deque(maxlen=MOST_ASIDE)  # tokens of clients whose work is set aside
        self._count = 0

    def __len__(self) -> int:
        return len(self._leases)

    def claim(self, work: object, title: str, silent_s: float | None) -> Lease:
        """Serve one more client.

        Args:
            work: What it does here.
            title: Of that, for the log.
            silent_s: After which it is taken for dead; None for clients that send no sign of life.

        Raises:
            FullError: If there are as many as are allowed.
        """
        self.reap()
        if len(self._leases) >= self.most:
            raise FullError(
                f"all {self.most} sessions of this server are taken; close one in a viewer, or start the server with a "
                "larger --max-sessions"
            )
        now = self._clock()
        self._count += 1
        lease = Lease(secrets.token_hex(16), f"session {self._count}", work, now, now, silent_s)
        self._leases[lease.token] = lease
        logger.info("%s begins: %s; %d of %d", lease.name, title, len(self._leases), self.most)
        return lease

    def all(self) -> list[Lease]:
        """List all clients."""
        return list(self._leases.values())

    def leaving(self) -> list[Lease]:
        """List those who are clients no more, and of whose requests some are not answered yet."""
        return list(self._leaving.values())

    def find(self, token: str | None) -> Lease:
        """Give the client with a token.

        Raises:
            AsideError: If it was set aside.
            GoneError: If there is none.
        """
        lease = self._leases.get(token or "")
        if lease is None and token in self._aside:
            raise AsideError("all has gone back, and what was being done here is set aside; open the image again")
        if lease is None:
            raise GoneError("this session has ended, or the server was started anew; connect again in the viewer")
        return lease

    def remaining_s(self, lease: Lease) -> float:
        """How long until the user has done nothing for too long."""
        return max(0.0, lease.action_s + self.idle_s - self._clock())

    @contextmanager
    def request(self, lease: Lease, is_action: bool) -> Iterator[None]:
        """Keep a client while one of its requests is answered, and start its clocks anew."""
        lease.running += 1
        try:
            yield
        finally:
            lease.running -= 1
            if not lease.running:
                self._leaving.pop(lease.token, None)
            lease.sign_s = self._clock()
            if is_action:
                lease.action_s = lease.sign_s

    def release(self, token: str | None, aside: bool = False) -> None:
        """Serve a client no more, but for the requests that it has made; nothing happens where there is none.

        Args:
            token: Its secret.
            aside: Whether what it was doing is set aside, which it is told when it asks for more.
        """
        lease = self._leases.pop(token or "", None)
        if lease is not None:
            if aside:
                self._aside.append(lease.token)
            if lease.running:
                self._leaving[lease.token] = lease
            logger.info("%s ends", lease.name)

    def reap(self) -> None:
        """Serve those no more who have been silent or idle for too long."""
        now = self._clock()
        for lease in [one for one in self._leases.values() if not one.running]:
            if lease.silent_s is not None and now - lease.sign_s > lease.silent_s:
                logger.info("%s ends: nothing was heard of its viewer for %.0f s", lease.name, lease.silent_s)
                del self._leases[lease.token]
            elif now - lease.action_s > self.idle_s > 0:
                logger.info("%s ends: its user did nothing for %.0f s", lease.name, self.idle_s)
                del self._leases[lease.token]

    async def keep_reaping(self) -> None:
        """Look at the clocks every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            self.reap()
