"""The lines of sam3d_info --weights: all that a machine without internet needs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam3dnet.network.weights_registry import KnownFile


def weights_lines() -> list[str]:
    """Say of every known file whether it is here, and how to get it if it is not; every digest is computed anew."""
    from sam3dnet.network.weights_cache import cache_folder
    from sam3dnet.network.weights_file import WEIGHTS_VARIABLE, places
    from sam3dnet.network.weights_registry import known_files

    variable = os.environ.get(WEIGHTS_VARIABLE)
    lines = [
        f"${WEIGHTS_VARIABLE}: {variable or 'not set (a file, or a folder of files)'}",
        f"Downloads go to: {cache_folder()}",
    ]
    for file in known_files():
        lines += ["", *_lines_of(file, places(file))]
    return lines


def _lines_of(file: "KnownFile", looked: list[Path]) -> list[str]:
    size = "size not known" if file.bytes is None else f"{file.bytes:,} bytes"
    title = f"{file.name}: {file.family}, {file.encoder}, {size}{f', {file.licence}' if file.licence else ''}"
    found = {path: _digest(path, file) for path in looked}
    states = [f"  {path}: {_state(digest, file)}" for path, digest in found.items()]
    if file.digest in found.values():
        return [title, *states]
    algorithm, _, digits = file.digest.partition(":")
    return [
        title,
        *states,
        "  on a machine with internet:",
        f"    curl -fL -o {file.name} '{file.address}'",
        f"    {algorithm}sum {file.name}    # expected {digits}",
        f"  then copy it here, to {looked[0]}",
    ]


def _digest(path: Path, file: "KnownFile") -> str | None:
    from sam3dnet.network.weights_cache import digest_of

    return digest_of(path, file.digest.partition(":")[0], anew=True) if path.is_file() else None


def _state(digest: str | None, file: "KnownFile") -> str:
    if digest is None:
        return "not there"
    if digest == file.digest:
        return f"present, verified ({digest})"
    return f"present, but another file or damaged: {digest}"
