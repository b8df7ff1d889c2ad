"""Who may ask: the key, the names that the server goes by, and pages of other sites, which may not.

A page that a user has open elsewhere can send requests to the user's own machine. Its browser says where the page is
from (Origin, Sec-Fetch-Site), and a name that was made to point here is not one of this server's (Host).
"""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

FOREIGN_SITES = {"cross-site", "same-site"}
OPEN_PATHS = {"/healthz"}
PAGE = "/viewer/"
PAGES = {"/", "/viewer", PAGE}


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_key() -> str:
    """Make a key that cannot be guessed."""
    return secrets.token_urlsafe(24)


class Access:
    """Decides on each request by its headers, before its body is read.

    Args:
        key: That a client must show; None asks for none.
        names: Further names that the server goes by, such as behind a proxy.

    Attributes:
        cookie: Name of the cookie of a page that has shown the key.
    """

    def __init__(self, key: str | None, names: Iterable[str] = ()):
        self._key = key
        self.cookie = f"sam3d_{secrets.token_hex(4)}"  # of its own, since cookies know no ports
        self._ticket = secrets.token_urlsafe(24)
        own = ("localhost", socket.gethostname(), socket.getfqdn(), *names)
        self._names = {name.lower().rstrip(".") for name in own}

    def require(self, request: web.Request) -> None:
        """Let a request pass, or not.

        Raises:
            web.HTTPForbidden: If it comes by a name that is not the server's, or from a page of another site.
            web.HTTPUnauthorized: If the key is missing or wrong.
        """
        self._require_name(request)
        self._require_own_page(request)
        if (
            self._key is not None
            and request.path not in OPEN_PATHS
            and not self._has_key(request)
            and not self._enters(request)
        ):
            raise web.HTTPUnauthorized(
                text="the key is missing or wrong; give the one that sam3d_serve printed",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def lets_in(self, key: str) -> bool:
        """Tell whether this is the key, or none is asked for."""
        return self._key is None or hmac.compare_digest(key.encode(), self._key.encode())

    @property
    def ticket(self) -> str:
        """What the cookie of a page holds that has shown the key."""
        return self._ticket

    def _enters(self, request: web.Request) -> bool:
        """Tell whether a page is asked for with the key in its address, which then becomes a cookie."""
        return request.method == "GET" and request.path == PAGE and self.lets_in(request.query.get("key", ""))

    def _require_name(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if name not in self._names:
                raise web.HTTPForbidden(
                    text=f"this server does not go by the name {name!r}; start sam3d_serve with --name {name or 'NAME'}"
                ) from None

    def _require_own_page(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        is_other = origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower()
        is_foreign = request.headers.get("Sec-Fetch-Site") in FOREIGN_SITES
        is_visit = (
            request.path in PAGES and request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        )
        if is_other or (is_foreign and not is_visit):
            raise web.HTTPForbidden(text="requests from pages of other sites are not answered")

    def _has_key(self, request: web.Request) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.lets_in(given.strip()):
            return True
        return hmac.compare_digest(request.cookies.get(self.cookie, "").encode(), self._ticket.encode())
