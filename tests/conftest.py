"""Give every test nnU-Net folders of its own, before nnU-Net is imported, and one tiny dataset."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(tempfile.mkdtemp(prefix="sam3dnet_tests_"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    (ROOT / _name).mkdir()
    os.environ[_name] = str(ROOT / _name)

import pytest  # noqa: E402  (the variables come before anything that might import nnU-Net)
from phantoms import make_raw_dataset  # noqa: E402

TINY_DATASET = "Dataset901_Tiny"


@pytest.fixture(scope="session")
def nnunet_root() -> Path:
    """The folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_dataset(nnunet_root: Path) -> str:
    """The name of a sound dataset in nnUNet_raw: 6 cases, one CT-like channel, background, organ and lesion."""
    make_raw_dataset(nnunet_root / "nnUNet_raw" / TINY_DATASET)
    return TINY_DATASET
