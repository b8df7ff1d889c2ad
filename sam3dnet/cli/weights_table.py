"""The lines of sam3d_info --weights: all that a machine without internet needs."""

import os
from pathlib import Path

from sam3dnet.network.weights_cache import cache_folder, digest_of
from sam3dnet.network.weights_file import WEIGHTS_VARIABLE, places
from sam3dnet.network.weights_registry import KnownFile, known_files


def weights_lines() -> list[str]:
    """Say of every known file whether it is here, and how to get it if it is not; every digest is computed anew."""
    variable = os.environ.get(WEIGHTS_VARIABLE)
    lines = [
        f"${WEIGHTS_VARIABLE}: {variable or 'not set (a file, or a folder of files)'}",
        f"Downloads go to: {cache_folder()}",
    ]
    for file in known_files():
        lines += ["", *_lines_of(file)]
    return lines


def _lines_of(file: KnownFile) -> list[str]:
    size = "size not known" if file.bytes is None else f"{file.bytes:,} bytes"
    title = f"{file.name}: {file.family}, {file.encoder}, {size}{f', {file.licence}' if file.licence else ''}"
    looked = places(file)
    states = [f"  {path}: {_state(path, file)}" for path in looked]
    if any(path.is_file() and _is_right(path, file) for path in looked):
        return [title, *states]
    algorithm = file.digest.partition(":")[0]
    return [
        title,
        *states,
        "  on a machine with internet:",
        f"    curl -fL -o {file.name} '{file.address}'",
        f"    {algorithm}sum {file.name}    # expected {file.digest.partition(':')[2]}",
        f"  then copy it here, to {looked[0]}",
    ]


def _state(path: Path, file: KnownFile) -> str:
    if not path.is_file():
        return "not there"
    if _is_right(path, file):
        return f"present, verified ({file.digest})"
    return f"present, but another file or damaged: {digest_of(path, file.digest.partition(':')[0])}"


def _is_right(path: Path, file: KnownFile) -> bool:
    return digest_of(path, file.digest.partition(":")[0], anew=True) == file.digest
