"""Which file of SAM's weights is meant, where it lies, and whether it is the one that a plan was made for."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import CheckpointError
from sam3dnet.network.weights_cache import cache_folder, digest_of, has_digest
from sam3dnet.network.weights_download import download, recent_failure
from sam3dnet.network.weights_registry import SAM, KnownFile, families, known_file, known_files
from sam3dnet.planning.encoder import SamWeights

WEIGHTS_VARIABLE = "SAM3D_WEIGHTS"
OPTION = "--sam-checkpoint"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFile:
    """A file that the user named; its digest is not known beforehand."""

    path: Path


def find_sam_weights(encoder: str, named: str | Path | None = None) -> Path | None:
    """Find the file with SAM's weights for an encoder among those that are here.

    Looked for in this order: the file that was named; a file or folder in `$SAM3D_WEIGHTS`; the user's cache.

    Args:
        encoder: "vit_b", "vit_l" or "vit_h".
        named: "sam", "medsam", a family of the user's registry, or a file; None: `$SAM3D_WEIGHTS`, else "sam".

    Returns:
        The file, or None if there is none. One that is known by name has the digest that it must have.

    Raises:
        CheckpointError: If a file or folder was named, here or in `$SAM3D_WEIGHTS`, that does not exist; or one in that
            folder has the name of a known file, and another content.
    """
    wanted = _wanted(encoder, named)
    return wanted.path if isinstance(wanted, OwnFile) else _present(wanted)


def require_sam_weights(
    encoder: str, named: str | Path | None = None, planned: Mapping[str, Any] | None = None
) -> Path:
    """Find the file with SAM's weights as `find_sam_weights` does, downloading it if need be.

    Args:
        encoder: "vit_b", "vit_l" or "vit_h".
        named: What the user named; None takes what the plan was made for.
        planned: The plan's record of its weights; None for an older plan, which has none.

    Raises:
        CheckpointError: If there is none to be had, or, where none was named, it is not the plan's; the message ends
            with the ways out.
    """
    try:
        wanted = None if named is not None else _planned(encoder, planned)
        wanted = wanted or _wanted(encoder, named)
        path = wanted.path if isinstance(wanted, OwnFile) else _present(wanted) or download(wanted)
        _compare_with_plan(path, named, planned)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; name a file with {OPTION} PATH or ${WEIGHTS_VARIABLE} (sam3d_info --weights says how to get the "
            "official ones), or train without: --from-scratch"
        ) from error
    return path


def weights_for_plan(encoder: str, asked: bool, named: str | Path | None = None) -> SamWeights:
    """Get SAM's weights for a plan, downloading a known file that is not here.

    Args:
        encoder: "vit_b", "vit_l" or "vit_h".
        asked: Whether the user asked for the encoder; if not, a download that failed a short while ago is not tried
            again.
        named: As for `find_sam_weights`.

    Raises:
        CheckpointError: If a file or folder was named that does not exist, or does not hold what its name says.
    """
    wanted = _wanted(encoder, named)
    if isinstance(wanted, OwnFile):
        return SamWeights(_own_record(wanted.path.absolute()))
    missing = None
    if _present(wanted) is None:
        missing = None if asked else recent_failure(wanted)
        if missing is None:
            try:
                download(wanted)
            except CheckpointError as error:
                missing = str(error)
    if missing:
        missing += "; sam3d_info --weights says how to get it by other means"
    return SamWeights(_record(wanted), missing)


def check_named_file(encoder: str, named: str | Path | None = None) -> None:
    """Check the file that the user named, if one was: that it exists, is in SAM's format, and holds this encoder.

    Raises:
        CheckpointError: If not.
    """
    wanted = _wanted(encoder, named)
    if isinstance(wanted, OwnFile):
        from sam3dnet.network.sam_file import check_sam_file

        check_sam_file(wanted.path, encoder)


def places(file: KnownFile) -> list[Path]:
    """List where a known file is looked for: in `$SAM3D_WEIGHTS`, a folder or a file of that name, and in the cache."""
    cached, variable = cache_folder() / file.name, os.environ.get(WEIGHTS_VARIABLE)
    if not variable:
        return [cached]
    own = Path(variable)
    if own.is_dir():
        own = own / file.name
    return [own, cached] if own.name == file.name else [cached]


def _wanted(encoder: str, named: str | Path | None) -> KnownFile | OwnFile:
    """Say which file is meant."""
    if isinstance(named, str) and named in families():
        return known_file(named, encoder)
    if named is not None:
        return OwnFile(_existing(Path(named), OPTION))
    variable = os.environ.get(WEIGHTS_VARIABLE)
    if variable and not _existing(Path(variable), f"${WEIGHTS_VARIABLE}").is_dir():
        return OwnFile(Path(variable))
    return known_file(SAM, encoder)


def _existing(path: Path, where: str) -> Path:
    if not path.exists() or (path.is_dir() and where == OPTION):
        what = "is a folder" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{where} names {path}, which {what}; expected one of {', '.join(families())}, or a file in SAM's format"
        )
    return path


def _present(file: KnownFile) -> Path | None:
    """Find a known file that is here and whole; a damaged one in the cache counts as none, and is written anew."""
    *own, cached = places(file)
    for path in own:
        if path.is_file():
            if has_digest(path, file.digest):
                return path
            raise CheckpointError(
                f"{path} is not {file.name} of {file.family}: expected {file.digest}, found "
                f"{digest_of(path, file.digest.partition(':')[0])}; get it again, or give it another name and name it"
            )
    if not cached.is_file():
        return None
    if has_digest(cached, file.digest):
        return cached
    _log.warning("Warning: %s is damaged: its digest is not %s; it is not used", cached, file.digest)
    return None


def _record(file: KnownFile) -> dict[str, Any]:
    return {"family": file.family, "name": file.name, "digest": file.digest, "bytes": file.bytes, "path": None}


def _own_record(path: Path) -> dict[str, Any]:
    for file in known_files():
        if path.name == file.name and not has_digest(path, file.digest):
            _log.warning(
                "Warning: %s has the name of a %s file, but not its digest (%s)", path, file.family, file.digest
            )
    digest, size = digest_of(path, "sha256"), path.stat().st_size
    return {"family": None, "name": path.name, "digest": digest, "bytes": size, "path": str(path)}


def _planned(encoder: str, planned: Mapping[str, Any] | None) -> KnownFile | OwnFile | None:
    """Say which file a plan was made for; None where it does not say."""
    if not planned:
        return None
    if planned.get("family"):
        return known_file(str(planned["family"]), encoder)
    path = Path(str(planned.get("path")))
    if path.is_file():
        return OwnFile(path)
    same = [file for file in known_files() if file.digest == planned.get("digest")]
    if same:
        return same[0]
    if os.environ.get(WEIGHTS_VARIABLE):
        return None
    raise CheckpointError(f"the plan was made for {path} ({planned.get('digest')}), which does not exist")


def _compare_with_plan(path: Path, named: str | Path | None, planned: Mapping[str, Any] | None) -> None:
    """Warn where another file than the plan's was named; refuse one that nobody named."""
    expected = str((planned or {}).get("digest") or "")
    algorithm = expected.partition(":")[0]
    if algorithm not in ("sha256", "md5") or has_digest(path, expected):
        return
    difference = f"{path} ({digest_of(path, algorithm)}) is not the file that the plan was made for, {expected}"
    if named is None:
        raise CheckpointError(f"{difference}; plan again")
    _log.warning("Warning: %s; training starts from it, as asked", difference)
