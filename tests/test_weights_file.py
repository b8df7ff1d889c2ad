"""SAM's weights: where they are looked for, downloads whole, broken or refused, and what a plan keeps of them."""

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from weights_server import FAMILY, GOOD, NAME, Server, entry, write_registry

from sam3dnet.errors import CheckpointError
from sam3dnet.network import weights_download
from sam3dnet.network.weights_cache import cache_folder, digest_of, has_digest
from sam3dnet.network.weights_file import find_sam_weights, places, require_sam_weights, weights_for_plan
from sam3dnet.network.weights_registry import known_file

SHA256 = f"sha256:{hashlib.sha256(GOOD).hexdigest()}"
OFFICIAL = "sam_vit_b_01ec64.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return cache_folder()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that takes the place of every official address too, so that nothing goes beyond this machine."""
    server = Server()
    registry = write_registry(tmp_path / "registry.json", entry(f"{server.address}/{NAME}"))
    monkeypatch.setenv("SAM3D_WEIGHTS_REGISTRY", str(registry))
    monkeypatch.setenv("SAM3D_WEIGHTS_URL", server.address)
    monkeypatch.delenv("SAM3D_OFFLINE")
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    if server.silent is not None:
        server.silent.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def left_in(cache: Path) -> set[str]:
    """Names in the cache, without what is remembered there."""
    return {path.name for path in cache.iterdir()} - {"digests.json", "failed_downloads.json"}


def test_download_is_announced_and_goes_to_the_cache_once(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert find_sam_weights("vit_b", FAMILY) is None
    assert server.requests == []
    path = require_sam_weights("vit_b", FAMILY)
    assert path == cache / NAME
    assert path.read_bytes() == GOOD
    assert path.stat().st_mode & 0o044, "others may read it"
    assert caplog.messages[0] == f"Downloading {NAME} (0 MB) from {server.address}/{NAME} to {cache}"
    assert find_sam_weights("vit_b", FAMILY) == require_sam_weights("vit_b", FAMILY) == path
    assert server.requests == [f"/weights/{NAME}"]
    assert left_in(cache) == {NAME}


def test_official_files_come_from_the_mirror_and_only_genuine_ones_pass(server: Server, cache: Path) -> None:
    server.announced = None
    for family, encoder, name in (("sam", "vit_l", "sam_vit_l_0b3195.pth"), ("medsam", "vit_b", "medsam_vit_b.pth")):
        with pytest.raises(CheckpointError, match="hash of downloaded file"):
            require_sam_weights(encoder, family)
        assert server.requests[-1] == f"/weights/{name}"
    assert left_in(cache) == set()


def assert_refused(cache: Path, match: str) -> None:
    """Assert that the error names reason, file, address and the ways out, and that nothing is left in the cache."""
    with pytest.raises(CheckpointError, match=match) as caught:
        require_sam_weights("vit_b", FAMILY)
    for needed in (NAME, "http://127.0.0.1", "--sam-checkpoint", "--from-scratch", "sam3d_info --weights"):
        assert needed in str(caught.value)
    assert left_in(cache) == set()


def test_truncated_download_is_refused(server: Server, cache: Path) -> None:
    server.body = GOOD[:-7]
    assert_refused(cache, match=f"{len(GOOD) - 7} bytes read, 7 more expected")


def test_truncated_download_of_unknown_length_is_refused(server: Server, cache: Path) -> None:
    server.body, server.announced = GOOD[:-7], None
    assert_refused(cache, match="SHA256 hash of downloaded file")


def test_another_size_is_refused_before_it_comes(server: Server, cache: Path) -> None:
    server.body, server.announced, server.silent = b"x", 375, threading.Event()
    assert_refused(cache, match=f"the address offers 375 bytes, expected {len(GOOD):,}")


def test_more_than_the_file_is_refused_on_the_way(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_download, "_CHUNK_BYTES", 1000)
    server.body, server.announced = GOOD * 3, None
    assert_refused(cache, match=f"more than the expected {len(GOOD):,} bytes came")


def test_download_of_the_wrong_hash_is_refused(server: Server, cache: Path) -> None:
    server.body = GOOD[::-1]
    assert_refused(cache, match=f"expected {SHA256} but got")


def test_missing_file_on_the_server_is_refused(server: Server, cache: Path) -> None:
    server.status = 404
    assert_refused(cache, match="the server answers 404 Not Found")


def test_a_server_that_stops_sending_is_given_up(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_download, "SILENCE_TIMEOUT_S", 0.2)
    server.silent = threading.Event()
    assert_refused(cache, match="timed out")


def test_no_network_is_refused(server: Server, tmp_path: Path, cache: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    write_registry(tmp_path / "registry.json", entry(f"http://127.0.0.1:{port}/{NAME}"))
    assert_refused(cache, match=f"{port}/{NAME}: Connection refused;")


def test_address_that_is_no_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3D_WEIGHTS_URL", "somewhere")
    with pytest.raises(CheckpointError, match="somewhere/sam_vit_l_0b3195"):
        require_sam_weights("vit_l")


def test_downloads_can_be_forbidden(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3D_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"own_vit_b.pth is not here, and \$SAM3D_OFFLINE forbids"):
        require_sam_weights("vit_b", FAMILY)
    missing = weights_for_plan("vit_b", False, FAMILY).missing
    assert missing and "$SAM3D_OFFLINE forbids" in missing
    assert server.requests == []
    assert not cache.exists()


def test_ctrl_c_leaves_nothing(server: Server, cache: Path) -> None:
    server.silent = threading.Event()
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's "&" ignores it
    code += "from sam3dnet.network.weights_file import require_sam_weights as r; r('vit_b', 'own')"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while not any(cache.glob(".partial-*/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert b"KeyboardInterrupt" in error
    assert left_in(cache) == set()


def test_what_killed_downloads_left_is_removed_after_a_day(server: Server, cache: Path) -> None:
    for name, age in (("old", 2 * 86400), ("new", 60)):
        (cache / f".partial-{name}").mkdir(parents=True)
        (cache / f".partial-{name}" / "tmp").touch()
        os.utime(cache / f".partial-{name}", (time.time() - age,) * 2)
    require_sam_weights("vit_b", FAMILY)
    assert left_in(cache) == {NAME, ".partial-new"}


@pytest.mark.parametrize(("body", "seconds"), [(b"", 600), (GOOD[::-1], 86400)])
def test_a_failed_download_is_not_tried_again_unasked_for_a_while(
    server: Server, cache: Path, body: bytes, seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.body, server.status = body, 200 if body else 503
    first = weights_for_plan("vit_b", False, FAMILY)
    again = weights_for_plan("vit_b", False, FAMILY)
    assert len(server.requests) == 1
    assert again.missing == first.missing and again.missing is not None
    assert ("503" if not body else "hash") in again.missing
    assert f"{NAME} failed a short while ago; not tried again unasked before" in caplog.messages[-1]
    ((_, failure),) = json.loads((cache / "failed_downloads.json").read_text()).items()
    assert failure["until"] == pytest.approx(time.time() + seconds, abs=60)
    assert weights_for_plan("vit_b", True, FAMILY).missing
    assert len(server.requests) == 2
    server.body, server.status = GOOD, 200
    assert weights_for_plan("vit_b", True, FAMILY).missing is None
    assert json.loads((cache / "failed_downloads.json").read_text()) == {}


def test_damaged_memories_are_none(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name in ("failed_downloads.json", "digests.json"):
        (cache / name).write_text("{")
    assert weights_for_plan("vit_b", False, FAMILY).missing is None
    (cache / NAME).unlink()
    key = f"{server.address}/{NAME} {SHA256}"
    (cache / "failed_downloads.json").write_text(json.dumps({key: {"until": time.time() + 1e9, "reason": "clock"}}))
    assert weights_for_plan("vit_b", False, FAMILY).missing is None


def test_a_damaged_file_in_the_cache_is_told_and_written_anew(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(GOOD[:100])
    assert require_sam_weights("vit_b", FAMILY).read_bytes() == GOOD
    assert f"{NAME} is damaged" in caplog.text


def test_a_digest_is_read_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    reads = []
    original = hashlib.new
    monkeypatch.setattr(hashlib, "new", lambda name, **o: reads.append(name) or original(name, **o))
    assert digest_of(path, "sha256") == digest_of(path, "sha256") == SHA256
    assert reads == ["sha256"]
    assert has_digest(path, f"md5:{original('md5', GOOD).hexdigest()}")
    digest_of(path, "sha256", anew=True)
    assert reads == ["sha256", "md5", "sha256"]
    path.write_bytes(GOOD[::-1])
    os.utime(path, (1, 1))
    assert digest_of(path, "sha256") != SHA256


def test_order_of_the_places(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    explicit, folder = tmp_path / "mine.pth", tmp_path / "folder"
    explicit.touch()
    for path in (folder / NAME, cache / NAME):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD)
    assert find_sam_weights("vit_b", FAMILY) == cache / NAME
    monkeypatch.setenv("SAM3D_WEIGHTS", str(folder))
    assert find_sam_weights("vit_b", FAMILY) == folder / NAME
    assert find_sam_weights("vit_l") is None
    monkeypatch.setenv("SAM3D_WEIGHTS", str(folder / NAME))
    assert find_sam_weights("vit_b", FAMILY) == folder / NAME
    monkeypatch.setenv("SAM3D_WEIGHTS", str(explicit))
    assert find_sam_weights("vit_b") == explicit
    assert find_sam_weights("vit_b", FAMILY) == cache / NAME
    monkeypatch.setenv("SAM3D_WEIGHTS", str(folder))
    assert find_sam_weights("vit_b", str(explicit)) == explicit
    assert server.requests == []


def test_another_file_under_an_official_name_is_refused_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / OFFICIAL).write_bytes(GOOD)
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=rf"{OFFICIAL} is not .* expected sha256:ec2df6.*, found {SHA256}"):
        find_sam_weights("vit_b")


def test_named_file_that_does_not_exist_is_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"--sam-checkpoint names .*absent.pth, which does not exist; .*medsam"):
        find_sam_weights("vit_b", tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"--sam-checkpoint names .*, which is a folder"):
        find_sam_weights("vit_b", tmp_path)
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"\$SAM3D_WEIGHTS names .*absent"):
        weights_for_plan("vit_b", False)
    assert server.requests == []


def test_a_plan_keeps_the_digest_and_training_takes_the_very_file(server: Server, cache: Path) -> None:
    record = weights_for_plan("vit_b", False, FAMILY).record
    assert record == {"family": FAMILY, "name": NAME, "digest": SHA256, "bytes": len(GOOD), "path": None}
    assert require_sam_weights("vit_b", None, record) == cache / NAME


def test_training_from_another_file_than_the_plans_is_told(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    record = weights_for_plan("vit_b", False, FAMILY).record
    assert require_sam_weights("vit_b", str(other), record) == other
    assert "is not the file that the plan was made for" in caplog.text
    assert SHA256 in caplog.text
    caplog.clear()
    copy = tmp_path / "copy.pth"
    copy.write_bytes(GOOD)
    assert require_sam_weights("vit_b", copy, record) == copy
    assert caplog.text == ""


def test_a_file_of_the_users_own_is_found_again_by_the_plan(
    server: Server, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "tuned.pth"
    own.write_bytes(b"tuned")
    record = weights_for_plan("vit_b", True, str(own)).record
    digest = f"sha256:{hashlib.sha256(b'tuned').hexdigest()}"
    assert record == {"family": None, "name": "tuned.pth", "digest": digest, "bytes": 5, "path": str(own)}
    assert require_sam_weights("vit_b", None, record) == own
    own.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=rf"tuned.pth .*is not the file that the plan was made for, {digest}"):
        require_sam_weights("vit_b", None, record)
    own.unlink()
    with pytest.raises(CheckpointError, match=r"the plan was made for .*tuned.pth .*does not exist; name a file"):
        require_sam_weights("vit_b", None, record)
    moved = tmp_path / "moved.pth"
    moved.write_bytes(b"tuned")
    monkeypatch.setenv("SAM3D_WEIGHTS", str(moved))
    assert require_sam_weights("vit_b", None, record) == moved
    assert require_sam_weights("vit_b", None, {**record, "digest": SHA256}) == cache / NAME


def test_an_older_plan_has_no_record_and_takes_what_there_is(server: Server, tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.touch()
    assert require_sam_weights("vit_b", own, None) == own
    assert require_sam_weights("vit_b", FAMILY, {"digest": "nonsense"}).name == NAME


def test_a_plan_of_a_family_that_is_not_known_here_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    record = weights_for_plan("vit_b", False, FAMILY).record
    monkeypatch.delenv("SAM3D_WEIGHTS_REGISTRY")
    with pytest.raises(CheckpointError, match=r"weights 'own': known are sam, medsam; .*\$SAM3D_WEIGHTS_REGISTRY"):
        require_sam_weights("vit_b", None, record)


def test_a_file_that_only_has_an_official_name_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / OFFICIAL).write_bytes(GOOD)
    record = weights_for_plan("vit_b", True, str(tmp_path / OFFICIAL)).record
    assert record and record["digest"] == SHA256
    assert f"{OFFICIAL} has the name of a sam file, but not its digest" in caplog.text


def test_places_are_the_users_folder_and_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = known_file("medsam", "vit_b")
    assert places(file) == [cache / "medsam_vit_b.pth"]
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path))
    assert places(file) == [tmp_path / "medsam_vit_b.pth", cache / "medsam_vit_b.pth"]
    monkeypatch.setenv("SAM3D_WEIGHTS", str(tmp_path / OFFICIAL))
    assert places(file) == [cache / "medsam_vit_b.pth"]
