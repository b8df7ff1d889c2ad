"""Models go to the Hugging Face hub and come back, here a stand-in on this machine; in processes of their own, as its
client reads the address when it is imported."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from hub import Hub
from tiny_models import labels_of, make_model

from sam3dnet.cli.predict import predict
from sam3dnet.errors import CheckpointError
from sam3dnet.portable.hub import hub_model, is_on_hub


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run(hub, tmp_path, command, *words):
    """Run one of our commands with the stand-in as the hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "HF_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x"}
    environment |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": os.path.dirname(__file__), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", f"sam3dnet.cli.{command}", *map(str, words)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )


def test_a_model_goes_there_and_predicts_from_there(hub, tmp_path, images):
    model = make_model(tmp_path / "results", folds=(0, 1))
    predict(input_folder=images, output_folder=tmp_path / "here", model_folder=model, device="cpu")
    done = run(hub, tmp_path, "export", "-m", model, "-o", "hf://me/tiny", "--licence", "CC0-1.0")
    assert done.returncode == 0, done.stderr
    assert "hf://me/tiny; predict with: sam3d_predict -i IMAGES -o OUT -m hf://me/tiny" in done.stdout
    assert hub.created[0]["name"] == "tiny" and hub.created[0]["visibility"] == "private"
    stored = hub.files["me/tiny"]
    assert stored["README.md"].startswith(b"---\nlicense: CC0-1.0")
    assert sum(name.endswith("checkpoint_final.pth") for name in stored) == 2
    shutil.rmtree(tmp_path / "results")
    options = ("-i", images, "-o", tmp_path / "there", "-m", "hf://me/tiny", "--device", "cpu")
    done = run(hub, tmp_path, "predict", *options)
    assert done.returncode == 0, done.stderr
    for name in "abc":
        here, there = (labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in ("here", "there"))
        np.testing.assert_array_equal(here, there)
    assert "0 written, 3 there already" in run(hub, tmp_path, "predict", *options).stdout
    folder = next(name for name in stored if name.endswith("plans.json"))
    stored[folder] = stored[folder].replace(b"Dataset901", b"Dataset902")
    shutil.rmtree(tmp_path / "hf")
    done = run(hub, tmp_path, "predict", *options)
    assert done.returncode == 2 and "hf://me/tiny: plans.json is damaged" in done.stderr


def test_an_upload_leaves_nothing_of_the_model_that_was_there(hub, tmp_path):
    """Folds that are exported no longer would predict along; what is not of the model stays."""
    model = make_model(tmp_path / "results", folds=(0, 1))
    assert run(hub, tmp_path, "export", "-m", model, "-o", "hf://me/tiny").returncode == 0
    stored = hub.files["me/tiny"]
    before = set(stored)
    stored["notes/ours.md"] = stored["Dataset901_Tiny/other/plans.json"] = b"{}"
    done = run(hub, tmp_path, "export", "-m", model, "-o", "hf://me/tiny", "-f", 1)
    assert done.returncode == 0, done.stderr
    assert set(stored) - before == {"notes/ours.md", "Dataset901_Tiny/other/plans.json"}
    gone = before - set(stored)
    assert gone and all(name.startswith("Dataset901_Tiny/") and "/fold_0/" in name for name in gone)
    assert [name for name in stored if name.endswith(".pth")] == [
        name for name in before if name.endswith("fold_1/checkpoint_final.pth")
    ]


def test_what_is_not_there_says_so(hub, tmp_path, images):
    done = run(hub, tmp_path, "predict", "-i", images, "-o", tmp_path / "out", "-m", "hf://me/none", "--device", "cpu")
    assert done.returncode == 2
    assert "hf://me/none cannot be downloaded (RepositoryNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://me/tiny", ("me/tiny", None)),
        ("hf:/me/tiny.v2@main", ("me/tiny.v2", "main")),
        ("hf://me/t@v1.0/", ("me/t", "v1.0")),
    ],
)
def test_names_are_read(source, expected):
    model = hub_model(source)
    assert is_on_hub(source) and (model.repository, model.revision) == expected
    assert str(hub_model(str(model))) == str(model)


@pytest.mark.parametrize("source", ["hf://tiny", "hf://me/a/b", "hf://", "hf://me/../x", "hf://me/a b"])
def test_what_is_no_name_says_so(source):
    with pytest.raises(CheckpointError, match="expected hf://OWNER/NAME"):
        hub_model(source)


def test_other_names_are_not_the_hubs():
    assert not any(map(is_on_hub, ("501", "/models/hf", "Dataset501_X", "hf", "model.zip")))
