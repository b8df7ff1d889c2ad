"""SAM's weights: where they are looked for, and downloads from a local server that are whole, broken or refused."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam3dnet.errors import CheckpointError
from sam3dnet.network.weights_file import cache_folder, find_sam_weights, require_sam_weights

NAME = "sam_vit_b_01ec64.pth"
# The SHA-256 of this begins with 01ec64, as the official name promises.
GOOD = b"stand-in for sam_vit_b 7901364"


class Server:
    """Serves one body under any name and counts the requests."""

    def __init__(self) -> None:
        self.body, self.announced, self.status, self.requests = GOOD, len(GOOD), 200, list[str]()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                self.send_response(server.status)
                self.send_header("Content-Length", str(server.announced))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/weights"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SAM3D_WEIGHTS", raising=False)
    return cache_folder()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("SAM3D_WEIGHTS_URL", server.address)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def test_download_goes_to_the_cache_once(server: Server, cache: Path) -> None:
    path = find_sam_weights("vit_b", download=True)
    assert path == cache / NAME
    assert path.read_bytes() == GOOD
    assert find_sam_weights("vit_b", download=True) == require_sam_weights("vit_b") == path
    assert server.requests == [f"/weights/{NAME}"]


def test_nothing_is_downloaded_unasked(server: Server) -> None:
    assert find_sam_weights("vit_b") is None
    assert server.requests == []


def assert_refused(cache: Path, match: str) -> None:
    """Assert that the error names reason, file, address and the way out, and that nothing is left in the cache."""
    with pytest.raises(CheckpointError, match=match) as caught:
        require_sam_weights("vit_b")
    for needed in (NAME, "http://127.0.0.1", "--sam-checkpoint", "--from-scratch"):
        assert needed in str(caught.value)
    assert find_sam_weights("vit_b", download=True) is None
    assert list(cache.iterdir()) == []


def test_truncated_download_is_refused(server: Server, cache: Path) -> None:
    server.announced = len(GOOD) + 7
    assert_refused(cache, match=f"truncated, {len(GOOD)} of {len(GOOD) + 7} bytes")


def test_download_of_the_wrong_hash_is_refused(server: Server, cache: Path) -> None:
    server.body = GOOD[::-1]
    assert_refused(cache, match=r"SHA-256 begins with \w{6}, expected 01ec64")


def test_missing_file_on_the_server_is_refused(server: Server, cache: Path) -> None:
    server.status = 404
    assert_refused(cache, match="404")


def test_no_network_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("SAM3D_WEIGHTS_URL", f"http://127.0.0.1:{port}")
    assert_refused(cache, match="refused")


def test_address_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3D_WEIGHTS_URL", "somewhere")
    with pytest.raises(CheckpointError, match="somewhere/sam_vit_l_0b3195"):
        require_sam_weights("vit_l")


def test_order_of_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    explicit, folder = tmp_path / "medsam_vit_b.pth", tmp_path / "folder"
    for path in (explicit, folder / NAME, cache / NAME):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_sam_weights("vit_b") == cache / NAME
    monkeypatch.setenv("SAM3D_WEIGHTS", str(folder))
    assert find_sam_weights("vit_b") == folder / NAME
    assert find_sam_weights("vit_l") is None
    monkeypatch.setenv("SAM3D_WEIGHTS", str(explicit))
    assert find_sam_weights("vit_b") == explicit
    monkeypatch.setenv("SAM3D_WEIGHTS", str(folder))
    assert find_sam_weights("vit_b", explicit) == explicit


def test_named_file_that_does_not_exist_is_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"--sam-checkpoint names .*absent.pth.*--from-scratch"):
        find_sam_weights("vit_b", tmp_path / "absent.pth", download=True)
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"\$SAM3D_WEIGHTS names .*absent"):
        find_sam_weights("vit_b", download=True)
    assert server.requests == []
