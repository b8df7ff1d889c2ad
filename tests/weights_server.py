"""A local server of one file of weights, whole, broken or slow, and a registry that lists it."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

NAME, FAMILY = "own_vit_b.pth", "own"
GOOD = b"stand-in for weights " * 1000


class Server:
    """Serves one body under any name and counts the requests.

    Attributes:
        body: What is sent.
        announced: The size in the header; None sends none.
        status: Of the answers.
        silent: Is set to let a request go on that waits before the second half of the body.
    """

    def __init__(self) -> None:
        self.body, self.status, self.requests = GOOD, 200, list[str]()
        self.announced: int | None = len(GOOD)
        self.silent: threading.Event | None = None
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                self.send_response(server.status)
                if server.announced is not None:
                    self.send_header("Content-Length", str(server.announced))
                self.end_headers()
                half = len(server.body) // 2
                self.wfile.write(server.body[:half])
                self.wfile.flush()
                if server.silent is not None:
                    server.silent.wait(30)
                self.wfile.write(server.body[half:])

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/weights"


def entry(where: str, **changes: object) -> dict[str, object]:
    """An entry of a registry for the good body."""
    digest = f"sha256:{hashlib.sha256(GOOD).hexdigest()}"
    known = {"family": FAMILY, "encoder": "vit_b", "name": NAME, "address": where, "digest": digest}
    return {**known, "bytes": len(GOOD), **changes}


def write_registry(path: Path, *entries: dict[str, object]) -> Path:
    """Write a registry."""
    path.write_text(json.dumps({"format": "sam3dnet-weights/1", "weights": list(entries)}), encoding="utf-8")
    return path
