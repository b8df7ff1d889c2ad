"""Give every test nnU-Net folders of its own, before nnU-Net is imported, and one tiny dataset."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(tempfile.mkdtemp(prefix="sam3dnet_tests_"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    (ROOT / _name).mkdir()
    os.environ[_name] = str(ROOT / _name)

# No test downloads, whatever it plans; those of downloads take this off and name a server of their own.
os.environ["SAM3D_OFFLINE"] = "1"
for _name in ("SAM3D_WEIGHTS", "SAM3D_WEIGHTS_URL", "SAM3D_WEIGHTS_REGISTRY"):
    os.environ.pop(_name, None)

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402  (the variables come before anything that might import nnU-Net)
from phantoms import make_raw_dataset  # noqa: E402

TINY_DATASET = "Dataset901_Tiny"


@pytest.fixture(autouse=True)
def folders_of_the_tests() -> Iterator[None]:
    """Point nnU-Net's variables at these folders again after a test that took others."""
    yield
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(ROOT / name)


@pytest.fixture(scope="session")
def nnunet_root() -> Path:
    """The folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_dataset(nnunet_root: Path) -> str:
    """The name of a sound dataset in nnUNet_raw: 6 cases, one CT-like channel, background, organ and lesion."""
    make_raw_dataset(nnunet_root / "nnUNet_raw" / TINY_DATASET)
    return TINY_DATASET


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images to predict, a, b and c."""
    from tiny_models import write_image

    for seed, name in enumerate("abc"):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "images"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with one trained fold."""
    from tiny_models import make_model

    return make_model(tmp_path / "results")


@pytest.fixture
def predict(tmp_path: Path, model: Path, images: Path) -> Callable[..., Any]:
    """Predict the three images into the folder "out"; the options are those of predict_folder."""
    from commands import predict_folder

    def run(**options: Any) -> Any:
        return predict_folder(images, tmp_path / "out", options.pop("model", model), device="cpu", **options)

    return run


@pytest.fixture
def not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of an annotation that are prepared, but do not run."""
    from sam3dnet.annotation import learning

    monkeypatch.setattr(learning.Learning, "begin_training", lambda self, begun: None)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Make clients of nnInteractive's that are closed at the end."""
    from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    clients = []

    def make(served: Any, class_name: str = "", **options: Any) -> Any:
        client = nnInteractiveRemoteInferenceSession(f"{served.url}/{class_name}", **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from browsing import CHROMIUM, QUIETLY
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        made = running.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a new window; what the page writes to its console is an error."""
    from browsing import WAIT_MS, wait_for

    windows, said = [], []

    def make(address: str, **options: Any) -> Any:
        window = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        windows.append(window)
        page = window.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda problem: said.append(str(problem)))
        page.goto(address)
        wait_for(page, lambda now: now["session"] and not now["busy"])
        return page

    make.said = said  # type: ignore[attr-defined]
    yield make
    for window in windows:
        window.close()
