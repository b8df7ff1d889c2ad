"""Where the file with SAM's pretrained weights lies: named by the user, in the cache, or to be downloaded."""

import hashlib
import http.client
import logging
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.progress import Progress

# The six characters at the end of an official name are the first of the file's SHA-256.
OFFICIAL_NAMES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}
OFFICIAL_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything"

WEIGHTS_VARIABLE = "SAM3D_WEIGHTS"
ADDRESS_VARIABLE = "SAM3D_WEIGHTS_URL"

_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


def find_sam_weights(encoder: str, explicit: Path | None = None, download: bool = False) -> Path | None:
    """Find the file with SAM's weights for an encoder, or say that there is none to be had.

    Looked for in this order: the explicit path, `$SAM3D_WEIGHTS` (a file, or a folder of files under their official
    names), the user's cache, the official address.

    Args:
        encoder: "vit_b", "vit_l" or "vit_h".
        explicit: File that the user named, or None.
        download: Whether to download the file to the cache when it is found nowhere.

    Returns:
        The file, or None if there is none and none can be downloaded; the reason is logged.

    Raises:
        CheckpointError: If the user named a file or folder, here or in `$SAM3D_WEIGHTS`, that does not exist.
    """
    for path in (_named_by_user(encoder, explicit), cache_folder() / OFFICIAL_NAMES[encoder]):
        if path is not None and path.is_file():
            return path
    if not download:
        return None
    try:
        return download_sam_weights(encoder)
    except CheckpointError as error:
        _log.info("No pretrained SAM weights: %s", error)
        return None


def require_sam_weights(encoder: str, explicit: Path | None = None) -> Path:
    """Find the file with SAM's weights as `find_sam_weights` does, downloading it if need be.

    Raises:
        CheckpointError: If there is none to be had; names the file, its address and --from-scratch.
    """
    return find_sam_weights(encoder, explicit) or download_sam_weights(encoder)


def download_sam_weights(encoder: str) -> Path:
    """Download an official file of SAM's weights to the cache; it appears there whole and verified, or not at all.

    The address is `$SAM3D_WEIGHTS_URL`, if set, in place of the official one.

    Raises:
        CheckpointError: If the address cannot be reached, or what came is truncated or has the wrong SHA-256.
    """
    name = OFFICIAL_NAMES[encoder]
    address = f"{os.environ.get(ADDRESS_VARIABLE, OFFICIAL_ADDRESS).rstrip('/')}/{name}"
    target = cache_folder() / name
    _log.info("Downloading %s to %s", address, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download_verified(address, target)
    except urllib.error.HTTPError as error:
        error.close()
        raise _failure(name, address, error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failure(name, address, error) from error
    return target


def _failure(name: str, address: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} could not be downloaded from {address}: {error}; get the file there by other means and name it "
        f"with --sam-checkpoint PATH or ${WEIGHTS_VARIABLE}, or train without it: --from-scratch"
    )


def cache_folder() -> Path:
    """Folder for downloaded weights, below the user's cache folder of the platform; it may not exist yet."""
    if sys.platform == "darwin":
        fallback = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        fallback = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        fallback = Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or fallback) / "sam3dnet"


def _named_by_user(encoder: str, explicit: Path | None) -> Path | None:
    variable = os.environ.get(WEIGHTS_VARIABLE)
    named, where = (explicit, "--sam-checkpoint") if explicit else (variable and Path(variable), f"${WEIGHTS_VARIABLE}")
    if not named:
        return None
    if not named.exists():
        name = OFFICIAL_NAMES[encoder]
        raise CheckpointError(
            f"{where} names {named}, which does not exist; expected SAM's weights, such as {name} from "
            f"{OFFICIAL_ADDRESS}/{name}; correct the path, or train without SAM's weights: --from-scratch"
        )
    return named / OFFICIAL_NAMES[encoder] if named.is_dir() else named


def _download_verified(address: str, target: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            _receive(address, file, expected_hash=target.stem.rpartition("_")[2])
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _receive(address: str, file: BinaryIO, expected_hash: str) -> None:
    """Write what the address sends into the file; ValueError if it is truncated or its SHA-256 begins differently."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as response:
        announced = int(response.headers.get("Content-Length") or 0)
        with Progress(announced // 2**20 or None, Path(address).name, "MiB") as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk) / 2**20)
    if announced and file.tell() != announced:
        raise ValueError(f"the file is truncated, {file.tell()} of {announced} bytes came")
    if not digest.hexdigest().startswith(expected_hash):
        raise ValueError(f"its SHA-256 begins with {digest.hexdigest()[:6]}, expected {expected_hash}")
    file.flush()
    os.fsync(file.fileno())
