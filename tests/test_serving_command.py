"""The command sam3d_serve: what it prints, when it ends, and what users get wrong."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fake_prompts import make_promptable_model
from tiny_models import make_model, write_image

from sam3dnet.cli import serve
from sam3dnet.errors import Sam3dError
from sam3dnet.settings.serving import ServingSettings

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from sam3dnet.cli.serve import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_promptable_model(tmp_path_factory.mktemp("serve") / "results")


@pytest.fixture
def start(tmp_path, model):
    """Start the command, and give its process and all that it printed until it was ready."""
    running = []

    def run(*options, env=None):
        script = SCRIPT.format(tests=str(Path(__file__).parent))
        line = [sys.executable, "-c", script, str(model), "--port", "0", "--device", "cpu", *options]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        running.append(process)
        lines = []
        for text in process.stdout:
            lines.append(text)
            if text.startswith("Ctrl-C"):
                break
        return process, "".join(lines)

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_to_paste_and_ends_when_told(start, ended_by):
    process, printed = start()
    addresses = re.findall(r"(http://127\.0\.0\.1:\d+/\w+)", printed)
    assert [address.rpartition("/")[2] for address in addresses] == ["organ", "lesion"]
    assert "Key" not in printed
    claimed = httpx.post(f"{addresses[1]}/claim", trust_env=False)
    assert claimed.status_code == 200
    process.send_signal(ended_by)
    assert process.wait(30) == 0
    assert process.stdout.read().endswith("The server has ended.\n")


def test_the_page_is_served_with_its_address(start, tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz")
    _, printed = start("--viewer", "--images", str(tmp_path / "images"))
    (address,) = re.findall(r"http://[\d.:]+/viewer/", printed)
    assert str(tmp_path / "images_sam3d") in printed
    assert httpx.get(f"{address}api/state", trust_env=False).json()["cases"] == [{"name": "a", "begun": False}]


def test_other_addresses_ask_for_a_key_which_is_printed(start, tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz")
    _, printed = start("--host", "0.0.0.0", "--viewer", "--images", str(tmp_path / "images"))
    (key,) = re.findall(r"^Key: (\S{30,})$", printed, re.MULTILINE)
    (port,) = set(re.findall(rf"http://{re.escape(socket.gethostname())}:(\d+)/viewer", printed))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.post("/claim").status_code == 401
        assert client.post("/claim", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get(f"/viewer/?key={key}").status_code == 302


def test_a_port_that_is_taken_is_told(model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main([str(model), "--device", "cpu", "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1, port {port} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "--port 70000: expected a number from 0"),
        ({"viewer": True}, "name it: --images FOLDER"),
        ({"output": "x"}, "add --viewer"),
        ({"max_sessions": 0}, "--max-sessions 0: expected"),
        ({"idle_minutes": -1.0}, "--idle-minutes"),
        ({"max_upload": float("nan")}, "--max-upload nan"),
    ],
)
def test_impossible_settings_are_told(options, message):
    with pytest.raises(Sam3dError, match=re.escape(message)):
        ServingSettings(**options)


def test_a_model_without_prompts_is_told(tmp_path, capsys):
    assert serve.main([str(make_model(tmp_path / "results")), "--device", "cpu", "--port", "0"]) == 2
    assert "does not answer prompts" in capsys.readouterr().err


def test_a_folder_without_images_is_told(tmp_path, model, capsys):
    (tmp_path / "images").mkdir()
    options = ["--device", "cpu", "--port", "0", "--images", str(tmp_path / "images")]
    assert serve.main([str(model), *options]) == 2
    assert "it holds no image" in capsys.readouterr().err


def test_a_missing_library_is_told(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert serve.main([str(model)]) == 2
    assert "pip install 'sam3dnet[serve]'" in capsys.readouterr().err
