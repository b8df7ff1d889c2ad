"""Where a model comes from: a folder, an exported file, the hub, or the results of a dataset."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from sam3dnet.errors import CheckpointError
from sam3dnet.inference.cascade import previous_model_folder
from sam3dnet.inference.model_folders import (
    OUR_PLANS,
    PLANS_FILE,
    find_model,
    find_model_to_start_from,
    list_models,
    read_model_plans,
    require_model_folder,
)
from sam3dnet.inference.models import trained_model
from sam3dnet.portable.content import require_whole
from sam3dnet.portable.hub import hub_model, is_on_hub, pull
from sam3dnet.preprocessing.folders import activate_folders, is_plain_name


@contextmanager
def model_folder(
    source: Path | str | int | None,
    root: Path | str | None = None,
    configuration: str = "3d_fullres",
    plans: str = OUR_PLANS,
    *,
    shared: Path | None = None,
) -> Iterator[Path]:
    """Give the folder of a model, that of a zip file until the end of the block.

    Args:
        source, root, configuration, plans: As of `load_model`.
        shared: Folder that a model from a file or the hub is written to, for other machines to see; None: where this
            one keeps such.

    Raises:
        CheckpointError: If there is no such model.
    """
    if source is not None and is_on_hub(source):
        model = hub_model(source)
        pulled = pull(model)
        if shared is not None:
            pulled = Path(shutil.copytree(pulled, shared, dirs_exist_ok=True))
        found = _only_model(pulled, plans, configuration)
        _require_whole(found, str(model))
        yield found
        return
    path = None if source is None else Path(str(source)).expanduser()
    if path is not None and path.is_file():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, dir=shared) as unpacked:
            found = _only_model(_unpack(path, Path(unpacked)), plans, configuration)
            _require_whole(found, str(path))
            yield found
        return
    named = path if path is not None and (path / PLANS_FILE).is_file() else None
    yield named or _of_dataset(source, root, plans, configuration)


def source_to_start_from(source: str, results: Path, configuration: str, plans: str) -> str | Path:
    """Say what a plan or training begins with, for `model_folder`: what is named, or the model of a dataset.

    Args:
        source: A dataset by number or name, a model folder, a zip file, or a name of the hub.
        results: nnUNet_results.
        configuration, plans: As of `find_model_to_start_from`.

    Raises:
        CheckpointError: If the dataset has no model, or several and nothing says which.
    """
    if not source.strip():
        raise CheckpointError("the model to start from has an empty name; name a dataset, a model folder or a zip file")
    if is_on_hub(source) or _names_a_place(source):
        return source
    return find_model_to_start_from(results, source, configuration, plans)


def _names_a_place(source: Path | str | int) -> TypeGuard[Path | str]:
    """Tell whether a model is named by where it is, not by its dataset; a number is one's unless a model is there."""
    if isinstance(source, int):
        return False
    path, name = Path(source).expanduser(), str(source)
    if isinstance(source, Path) or path.is_file() or (path / PLANS_FILE).is_file():
        return True
    return not is_plain_name(name) or name.endswith(".zip") or (path.is_dir() and not name.isdecimal())


def _of_dataset(source: Path | str | int | None, root: Path | str | None, plans: str, configuration: str) -> Path:
    if source is not None and _names_a_place(source):
        require_model_folder(Path(source).expanduser())
    dataset = source if isinstance(source, int | None) else str(source)
    results = activate_folders(None if root is None else Path(root)).results
    return find_model(results, dataset, plans_name=plans, configuration=configuration)


def _only_model(results: Path, plans: str, configuration: str) -> Path:
    """Give the model that was asked for, or else the only one but for first stages of cascades."""
    models = list_models(results)
    if not any((one.plans_name, one.configuration) == (plans, configuration) for one in models):
        stages = {
            previous_model_folder(one.folder, stage)
            for one in models
            if (stage := read_model_plans(one.folder)["configurations"][one.configuration].get("previous_stage"))
        }
        last = [one.folder for one in models if one.folder.absolute() not in stages]
        if len(last) == 1:
            return last[0]
    return find_model(results, plans_name=plans, configuration=configuration)


def _require_whole(folder: Path, source: str) -> None:
    """See that a model is whole, of a cascade the stages before it, too."""
    require_whole(folder, source)
    configuration = trained_model(folder).configuration
    stage = read_model_plans(folder)["configurations"][configuration].get("previous_stage")
    first = None if stage is None else previous_model_folder(folder, stage)
    if first is not None and first.is_dir():
        _require_whole(first, source)


def _unpack(file: Path, folder: Path) -> Path:
    """Write what is needed of the models in a zip file below a folder; names that lead elsewhere are left out."""
    age = file.stat().st_mtime_ns  # so that predictions know their model again
    if file.suffix == ".pth":
        raise CheckpointError(
            f"{file}: is a checkpoint; expected the folder of its model, which holds {PLANS_FILE}, such as "
            f"{file.absolute().parent.parent}"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            if not any(name.rpartition("/")[2] == PLANS_FILE for name in archive.namelist()):
                raise CheckpointError(
                    f"{file}: holds no {PLANS_FILE}; expected a zip file with a model, from sam3d_export or "
                    "nnUNetv2_export_model_to_zip"
                )
            for name in archive.namelist():
                parts = name.split("/")
                if Path(name).suffix in (".json", ".pth", ".md") and all(map(is_plain_name, parts)):
                    target = folder.joinpath(*parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as source, target.open("wb") as written:
                        shutil.copyfileobj(source, written)
                    os.utime(target, ns=(age, age))
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:  # RuntimeError: it is encrypted
        raise CheckpointError(
            f"{file}: expected a zip file with a model, from nnUNetv2_export_model_to_zip; it cannot be unpacked "
            f"({error}); export it again"
        ) from error
    return folder
