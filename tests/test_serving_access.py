"""Who may ask a server, and what it answers to what nobody should send."""

import gc
import json
import socket
import struct

import httpx
import numpy as np
import pytest
from fake_prompts import make_promptable_model
from served import serving
from tiny_models import SHAPE_ZYX

from sam3dnet.serving.access import is_loopback, make_key
from sam3dnet.serving.arrays import pack_array
from sam3dnet.serving.bodies import LARGEST_JSON
from sam3dnet.serving.leases import FullError, GoneError, Leases

POSTS = (
    *("set_image", "set_target_buffer", "set_do_autozoom", "reset_interactions", "add_point_interaction"),
    *("add_bbox_interaction", "add_scribble_interaction", "add_lasso_interaction", "add_initial_seg_interaction"),
    *("predict", "undo", "heartbeat"),
)
SPACING = {"image_properties": {"spacing": [3.0, 1.1, 0.7]}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_promptable_model(tmp_path_factory.mktemp("served") / "results")


@pytest.fixture
def served(model):
    with serving(model) as running:
        yield running


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served.url, trust_env=False, timeout=30) as made:
        yield made


def claim(client):
    """Begin a session."""
    token = client.post("/claim").raise_for_status().json()["lease_token"]
    client.headers["X-Lease-Token"] = token
    return token


def send_image(client, array=None, meta=SPACING):
    array = np.random.default_rng(0).normal(size=(1, *SHAPE_ZYX)).astype(np.float32) if array is None else array
    return client.post("/set_image", content=pack_array(array), headers={"X-Meta": json.dumps(meta)})


def test_a_key_is_asked_for_everywhere_but_of_the_health(model, caplog):
    key = make_key()
    caplog.set_level("DEBUG")
    with serving(model, key=key) as served, httpx.Client(base_url=served.url, trust_env=False) as client:
        assert client.get("/healthz").json() == {"ok": True}
        for headers in (
            *({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {key[:-1]}"}),
            *({"Authorization": f"Basic {key}"}, {"Authorization": "Bearer é".encode()}, {"Cookie": "sam3d=x"}),
        ):
            for response in (client.post("/claim", headers=headers), client.get("/capabilities", headers=headers)):
                assert response.status_code == 401
                assert response.json()["detail"] == response.reason_phrase
                assert "the key is missing or wrong" in response.reason_phrase
        assert client.post("/claim", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert key not in caplog.text


def test_keys_are_long_and_differ():
    assert len({make_key() for _ in range(50)}) == 50
    assert min(len(make_key()) for _ in range(50)) >= 32


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *(("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("example.org", False), ("", False)),
    ],
)
def test_addresses_that_no_other_machine_reaches(host, own):
    assert is_loopback(host) is own


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", ""])
def test_a_name_that_was_made_to_point_here_is_refused(client, name):
    response = client.post("/claim", headers={"Host": name})
    assert response.status_code in (400, 403)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:{port}", "127.0.0.1", "[::1]:{port}", "10.1.2.3:99", "{own}"])
def test_names_of_the_server(served, client, name):
    name = name.format(port=served.port, own=socket.gethostname())
    assert client.post("/claim", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_pages_of_other_sites_are_refused(served, client, headers):
    response = client.post("/claim", headers=headers)
    assert response.status_code == 403
    assert len(served.hall.leases) == 0
    assert "access-control-allow-origin" not in response.headers


def test_a_page_of_the_server_itself_may_ask(served, client):
    own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/claim", headers=own).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/lesion", "/lesion/nothing", "/../etc/passwd", "/%2e%2e/x", "/docs"]
)
def test_unknown_addresses_are_answered_in_a_sentence(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert "docs/viewers.md" in response.json()["detail"]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_clients_of_other_servers_are_told_what_to_do(client):
    assert "update the extension" in client.post("/upload_image").reason_phrase
    assert "no MONAI Label server" in client.get("/info/").reason_phrase
    assert client.get("/claim").status_code == 405


@pytest.mark.parametrize("name", POSTS)
def test_nothing_is_read_without_a_session(client, name):
    for headers in ({}, {"X-Lease-Token": "0" * 32}):
        response = client.post(f"/{name}", content=b"x" * 100, headers=headers)
        assert response.status_code == 410
        assert "connect again" in response.json()["detail"]


def test_what_is_too_large_is_refused_before_it_is_read(model):
    with serving(model, largest_bytes=100_000) as served:
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            claim(client)
            response = send_image(client, np.zeros((1, 40, 50, 60), np.float32))
            assert response.status_code == 400 and "--max-upload" in response.reason_phrase
            token = client.headers["X-Lease-Token"]
        head = f"POST /set_image HTTP/1.1\r\nHost: localhost\r\nX-Lease-Token: {token}\r\n"
        assert b"413" in exchange(served, f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        chunk = b"f4240\r\n" + b"\0" * 1_000_000 + b"\r\n"
        assert b"413" in exchange(served, chunked + 4 * chunk)


def exchange(served, sent):
    """Send bytes and read the first line of the answer."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(sent)
        return connection.makefile("rb").readline()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/set_target_buffer", b"{"),
        ("/set_target_buffer", b"[]"),
        ("/set_target_buffer", b"null"),
        ("/set_target_buffer", b"{}"),
        ("/set_target_buffer", b'{"shape":[5,9]}'),
        ("/set_target_buffer", b'{"shape":[5,9,0]}'),
        ("/set_target_buffer", b'{"shape":[5,9,1e9]}'),
        ("/set_target_buffer", b'{"shape":[1048576,1048576,1048576]}'),
        ("/set_target_buffer", b'{"shape":[5,9,7],"dtype":"object"}'),
        ("/set_target_buffer", b'{"shape":[5,9,7],"dtype":"float32"}'),
        ("/add_point_interaction", b'{"coordinates":[1,2]}'),
        ("/add_point_interaction", b'{"coordinates":[1,2,NaN]}'),
        ("/add_point_interaction", b'{"coordinates":[1,2,1e999]}'),
        ("/add_point_interaction", b'{"coordinates":[1,2,"x"]}'),
        ("/add_point_interaction", b'{"coordinates":[1,2,3],"include_interaction":"yes"}'),
        ("/add_point_interaction", b"\xff\xfe"),
        ("/add_point_interaction", b"[" * 5000),
        ("/add_bbox_interaction", b'{"bbox_coords":[[1,2],[1,2]]}'),
        ("/add_bbox_interaction", b'{"bbox_coords":[[1,2],[1,2],[1,2,3]]}'),
        ("/add_scribble_interaction", b"NNIA"),
        ("/set_image", b"NNIA"),
        ("/set_image", b""),
        ("/add_initial_seg_interaction", b"NNIA"),
        ("/add_point_interaction", b" " * (LARGEST_JSON + 1)),
    ],
)
def test_what_is_not_as_it_should_be_is_refused_and_changes_nothing(client, path, content):
    claim(client)
    send_image(client).raise_for_status()
    client.post("/set_target_buffer", json={"shape": list(SHAPE_ZYX)}).raise_for_status()
    response = client.post(path, content=content)
    assert response.status_code in (400, 413)
    assert response.json()["detail"] and response.reason_phrase
    point = {"coordinates": [2, 4, 3], "include_interaction": True}
    assert client.post("/add_point_interaction", json=point).status_code == 200
    assert client.post("/undo").status_code == 200
    assert json.loads(client.post("/undo").headers["X-Meta"]) == {"ran_prediction": False, "bbox": None}


@pytest.mark.parametrize("meta", ["{", "[]", '{"image_properties":{"spacing":[1,2]}}', '{"image_properties":7}'])
def test_what_is_said_beside_an_image_is_checked(client, meta):
    claim(client)
    image = pack_array(np.zeros((1, *SHAPE_ZYX), np.float32))
    response = client.post("/set_image", content=image, headers={"X-Meta": meta})
    assert response.status_code == 400


@pytest.mark.parametrize("shape", [SHAPE_ZYX, (2, *SHAPE_ZYX)])
def test_images_of_another_shape_are_refused(client, shape):
    claim(client)
    assert send_image(client, np.zeros(shape, np.float32)).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("add_point_interaction", b'{"coordinates":[2,4]}'),
        ("set_target_buffer", b'{"shape":[1,2,3]}'),
        ("set_image", b"no array"),
        ("set_image", pack_array(np.zeros((2, *SHAPE_ZYX), np.float32))),
        ("add_initial_seg_interaction", pack_array(np.ones((2, 2, 2), np.uint8))),
    ],
    ids=["parsing", "handler", "unpacking", "image", "network"],
)
def test_what_was_refused_keeps_no_image(served, client, path, body):
    """Not even until garbage is collected: an image may take gigabytes."""
    claim(client)
    send_image(client).raise_for_status()
    client.post("/set_target_buffer", json={"shape": list(SHAPE_ZYX)}).raise_for_status()
    client.post("/add_point_interaction", json={"coordinates": [2, 4, 3]}).raise_for_status()
    gc.collect()
    gc.disable()
    try:
        assert client.post(f"/{path}", content=body).status_code == 400
        served.hall.leases.release(client.headers["X-Lease-Token"])
        assert served.keeps_nothing()
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_thousand_random_requests_crash_nothing_and_leak_nothing(served, client):
    """Methods, addresses, headers and bodies by chance, some of them nearly right."""
    rng = np.random.default_rng(5)
    claim(client)
    send_image(client).raise_for_status()
    client.post("/set_target_buffer", json={"shape": list(SHAPE_ZYX)}).raise_for_status()
    image = pack_array(np.random.default_rng(0).normal(size=(1, *SHAPE_ZYX)).astype(np.float32))
    said = [
        b'{"coordinates":[2,4,3],"include_interaction":true,"run_prediction":true}',
        b'{"bbox_coords":[[1,2],[2,6],[1,5]],"include_interaction":true,"run_prediction":true}',
        b'{"shape":[5,9,7],"dtype":"uint8"}',
        *(b"{}", b"", image, pack_array(np.ones(SHAPE_ZYX, np.uint8))),
    ]
    statuses = set()
    for _ in range(1000):
        path = f"/{rng.choice(['', 'lesion/', 'organ/', 'x/'])}{rng.choice([*POSTS, 'claim', 'capabilities'])}"
        body = bytearray(said[rng.integers(len(said))])
        for _ in range(rng.integers(0, 4)):
            if body:
                body[rng.integers(len(body))] = rng.integers(256)
        meta = rng.choice([json.dumps(SPACING), '{"run_prediction":true}', "{", "[]", "", "{}"])
        response = client.request(
            rng.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE"]),
            path,
            content=bytes(body),
            headers={"X-Meta": str(meta), **({"X-Lease-Token": "0" * 32} if rng.random() < 0.1 else {})},
        )
        statuses.add(response.status_code)
        assert response.status_code < 500 or response.status_code == 503, (path, bytes(body)[:200], response.text)
        if len(served.hall.leases) > 2:
            for token in list(served.hall.leases._leases):
                if token != client.headers["X-Lease-Token"]:
                    served.hall.leases.release(token)
    assert {200, 400, 405, 410} <= statuses
    assert served.hall.worker.unfinished == 0
    assert all(lease.running == 0 for lease in served.hall.leases._leases.values())
    send_image(client).raise_for_status()
    for token in list(served.hall.leases._leases):
        served.hall.leases.release(token)
    assert served.keeps_nothing()


def test_bytes_that_are_no_http_are_answered_or_closed(served, client):
    rng = np.random.default_rng(7)
    for _ in range(50):
        exchange(served, rng.integers(0, 256, 200).astype(np.uint8).tobytes() + b"\r\n\r\n")
    exchange(served, b"POST /claim HTTP/1.1\r\n" + struct.pack("<i", 7) + b"\r\n\r\n")
    assert client.get("/healthz").status_code == 200


class Clock:
    """Time that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("silent_s", [50.0, None])
def test_clients_that_fall_silent_or_idle_are_forgotten_but_not_in_the_middle(silent_s):
    clock = Clock()
    leases = Leases(2, 600.0, clock)
    first, second = leases.claim(object(), "a test", silent_s), leases.claim(object(), "a test", silent_s)
    with pytest.raises(FullError, match="all 2 sessions"):
        leases.claim(object(), "a test", silent_s)
    assert leases.remaining_s(first) == 600
    clock.now = 40
    with leases.request(second, is_action=False):
        pass
    clock.now = 60
    leases.reap()
    assert len(leases) == (1 if silent_s else 2)
    with leases.request(second, is_action=False):
        clock.now = 5000
        leases.reap()
        assert leases.find(second.token) is second
    leases.reap()
    with pytest.raises(GoneError, match="has ended"):
        leases.find(second.token)
    assert len(leases) == 0
    third = leases.claim(object(), "a test", silent_s)
    clock.now += 590
    with leases.request(third, is_action=True):
        pass
    assert leases.remaining_s(third) == 600
    leases.release(third.token)
    leases.release(third.token)
    leases.release(None)
    assert len(leases) == 0
