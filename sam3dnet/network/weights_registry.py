"""The files of SAM's weights that are known by name: address, size and digest of each, so that nothing else passes."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.folders import is_plain_name
from sam3dnet.preprocessing.json_files import read_json

REGISTRY_VARIABLE = "SAM3D_WEIGHTS_REGISTRY"
MIRROR_VARIABLE = "SAM3D_WEIGHTS_URL"
REGISTRY_FORMAT = "sam3dnet-weights/1"

SAM, MEDSAM = "sam", "medsam"
ENCODERS = ("vit_b", "vit_l", "vit_h")
_SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")


@dataclass(frozen=True)
class KnownFile:
    """A file of weights.

    Attributes:
        family: Whose weights they are: what --sam-checkpoint calls them.
        encoder: Size of the image encoder.
        name: Of the file.
        address: Where it is downloaded from, if no mirror is named.
        bytes: Its size; None where that is not known.
        digest: "sha256:" or "md5:" and all of its hexadecimal digits.
        licence: Of the weights.
    """

    family: str
    encoder: str
    name: str
    address: str
    bytes: int | None
    digest: str
    licence: str

    @property
    def source(self) -> str:
        """The address that a download goes to: the mirror's, if one is named and the file is an official one."""
        mirror = os.environ.get(MIRROR_VARIABLE)
        return f"{mirror.rstrip('/')}/{self.name}" if mirror and self in OFFICIAL else self.address

    @property
    def size(self) -> str:
        """The size for a message, "375 MB"."""
        return "size not known" if self.bytes is None else f"{self.bytes / 1e6:,.0f} MB"


def _sam(encoder: str, name: str, size: int | None, sha256: str) -> KnownFile:
    return KnownFile(SAM, encoder, name, f"{_SAM_ADDRESS}/{name}", size, f"sha256:{sha256}", "Apache-2.0")


# The six characters in SAM's names are the first of the MD5; the digests here are those of the whole files.
OFFICIAL = (
    _sam(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam("vit_l", "sam_vit_l_0b3195.pth", None, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam(
        "vit_h",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    KnownFile(
        MEDSAM,
        "vit_b",
        "medsam_vit_b.pth",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
        375_049_145,
        "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
        "CC BY 4.0",
    ),
)


def known_files() -> tuple[KnownFile, ...]:
    """Give the official files, and those of the user's own registry, the file that `$SAM3D_WEIGHTS_REGISTRY` names.

    Raises:
        CheckpointError: If that file cannot be read, an entry is incomplete, or takes an official name.
    """
    named = os.environ.get(REGISTRY_VARIABLE)
    return OFFICIAL if not named else (*OFFICIAL, *_read_registry(Path(named)))


def families() -> list[str]:
    """Name the families of weights, the official ones first."""
    return list(dict.fromkeys(file.family for file in known_files()))


def known_file(family: str, encoder: str) -> KnownFile:
    """Give the file of a family for an encoder.

    Raises:
        CheckpointError: If there is none; says which there are.
    """
    files = {file.encoder: file for file in known_files() if file.family == family}
    if not files:
        raise CheckpointError(
            f"weights {family!r}: known are {', '.join(families())}; name one of these or a file, or the registry that "
            f"lists {family!r} in ${REGISTRY_VARIABLE}"
        )
    if encoder not in files:
        raise CheckpointError(f"weights {family!r}: there are none for {encoder}, only for {', '.join(files)}")
    return files[encoder]


def _read_registry(path: Path) -> list[KnownFile]:
    content = read_json(path, CheckpointError, f"correct the file that ${REGISTRY_VARIABLE} names")
    entries = content.get("weights")
    if content.get("format") != REGISTRY_FORMAT or not isinstance(entries, list):
        raise _wrong(path, "has another format")
    files: list[KnownFile] = []
    for number, entry in enumerate(entries):
        file = _read_entry(path, number, entry)
        if any(file.name == other.name or _key(file) == _key(other) for other in files):
            raise _wrong(path, f"entry {number}: {file.name} is there twice, by name or by family and encoder")
        files.append(file)
    return files


def _read_entry(path: Path, number: int, entry: Any) -> KnownFile:
    if not isinstance(entry, Mapping):
        raise _wrong(path, f"entry {number} is no object")
    family, encoder, name, address = (entry.get(key) for key in ("family", "encoder", "name", "address"))
    digest, size = str(entry.get("digest")).lower(), entry.get("bytes")
    checks = {
        "family": is_plain_name(family) and family not in (SAM, MEDSAM),
        "encoder": encoder in ENCODERS,
        "name": is_plain_name(name) and all(name != file.name for file in OFFICIAL),
        "address": isinstance(address, str) and address.startswith(("http://", "https://")),
        "digest": _DIGEST.fullmatch(digest) is not None,
        "bytes": size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0),
    }
    if wrong := [key for key, right in checks.items() if not right]:
        raise _wrong(path, f"entry {number}: {wrong[0]} is {entry.get(wrong[0])!r}")
    return KnownFile(str(family), str(encoder), str(name), str(address), size, digest, str(entry.get("licence", "")))


def _key(file: KnownFile) -> tuple[str, str]:
    return file.family, file.encoder


def _wrong(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f'${REGISTRY_VARIABLE}: {path} {what}; expected {{"format": "{REGISTRY_FORMAT}", "weights": [...]}} with '
        "family, encoder, name, address, digest (sha256:... or md5:...) and bytes in every entry, and names that are "
        "none of the official ones"
    )
