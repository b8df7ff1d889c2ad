"""The folder for downloaded weights, and what is remembered there: computed digests, failed downloads."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole

_DIGESTS = "digests.json"
_CHUNK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder for downloaded weights, below the user's cache folder of the platform; it may not exist yet."""
    import pooch

    return Path(pooch.os_cache("sam3dnet"))


def recall(name: str) -> dict[str, Any]:
    """Read a small JSON file of the cache; empty if there is none, or it is damaged."""
    return read_json_if_whole(cache_folder() / name) or {}


def remember(name: str, entries: Mapping[str, Any]) -> None:
    """Add entries to a small JSON file of the cache, an entry None removes; where it cannot be written, do nothing."""
    kept = {key: value for key, value in {**recall(name), **entries}.items() if value is not None}
    try:
        write_json(cache_folder() / name, kept)
    except OSError as error:
        _log.debug("%s cannot be remembered: %s", name, error)


def digest_of(path: Path, algorithm: str, anew: bool = False) -> str:
    """Give a file's digest, such as "sha256:ec2d...".

    It is remembered with the file's size and time of change, so that a start does not read gigabytes.

    Args:
        path: The file.
        algorithm: "sha256" or "md5".
        anew: Read the file, whatever is remembered.
    """
    key, state = f"{algorithm}:{path.absolute()}", path.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    known = recall(_DIGESTS).get(key)
    if not anew and isinstance(known, list) and known[:2] == stamp and len(known) == 3:
        return str(known[2])
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    digest = f"{algorithm}:{hasher.hexdigest()}"
    remember(_DIGESTS, {key: [*stamp, digest]})
    return digest


def has_digest(path: Path, digest: str, anew: bool = False) -> bool:
    """Tell whether a file has a digest such as "sha256:ec2d..."."""
    return digest_of(path, digest.partition(":")[0], anew) == digest
