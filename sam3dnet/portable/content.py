"""What an exported model holds, and how it is seen to be whole."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictStr

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked

RECORD = "sam3d_export.json"
CARD = "README.md"
EXPORT_AGAIN = "export it again with sam3d_export, or copy it again"
CHUNK_BYTES = 1 << 20
USED = (".pth", ".json")  # endings of what predictions read

Digest = Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]


class Record(Part):
    """Written into each model folder of an exported file.

    Attributes:
        made_by: Version of sam3dnet.
        needs: Versions of the packages that it was made with.
        half_precision: Whether weights are stored as half-precision numbers.
        files: SHA-256 of each file of the folder.
    """

    format: Literal["sam3dnet-model/1"]
    made_by: StrictStr
    needs: dict[StrictStr, StrictStr]
    half_precision: bool
    files: dict[StrictStr, Digest]


def digest_of(file: Path) -> str:
    """Give a file's SHA-256."""
    hasher = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def require_whole(model_folder: Path, source: str) -> None:
    """See that an exported model has all files that were written, as they were, and no others that predictions use.

    Of other models nothing is known.

    Args:
        model_folder: Of the model.
        source: What it came from, for messages.

    Raises:
        CheckpointError: If a file is missing, has other bytes, or was not written with the model.
    """
    if not (model_folder / RECORD).is_file():
        return
    record = checked(
        Record,
        read_json(model_folder / RECORD, CheckpointError, EXPORT_AGAIN),
        model_folder / RECORD,
        CheckpointError,
        EXPORT_AGAIN,
    )
    for name, digest in record.files.items():
        file = model_folder / name
        if not file.is_file():
            raise CheckpointError(f"{source}: {name} is missing; {EXPORT_AGAIN}")
        if digest_of(file) != digest:
            raise CheckpointError(
                f"{source}: {name} is damaged, its bytes are not those that were written; {EXPORT_AGAIN}"
            )
    for file in sorted(path for ending in USED for path in model_folder.rglob(f"*{ending}")):
        name = file.relative_to(model_folder).as_posix()
        if name != RECORD and name not in record.files:
            raise CheckpointError(
                f"{source}: {name} is not one of the files that were written, {RECORD} does not name it, and it would "
                "change what is predicted; remove it, or export the model again with sam3d_export"
            )


def record_of(folder: Path, files: Iterable[Path], half_precision: bool) -> Record:
    """Describe the files of a folder."""
    from importlib.metadata import version

    from sam3dnet import __version__

    digests = {file.relative_to(folder).as_posix(): digest_of(file) for file in files}
    needs = {name: version(name) for name in ("torch", "nnunetv2", "numpy")}
    return Record(
        format="sam3dnet-model/1", made_by=__version__, needs=needs, half_precision=half_precision, files=digests
    )
