"""Write a trained model into one zip file, in the layout of nnU-Net's own exports, or to the hub."""

import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sam3dnet.errors import CheckpointError
from sam3dnet.inference.calibration import FILE as CALIBRATION_FILE
from sam3dnet.inference.calibration import cases_in, with_numbers
from sam3dnet.inference.cascade import missing_first_stage, previous_model_folder
from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans, trained_folds
from sam3dnet.inference.models import choose_checkpoint, trained_model
from sam3dnet.inference.postprocessing import FILE as POSTPROCESSING_FILE
from sam3dnet.inference.writing import unfinished_folder
from sam3dnet.planning.likeness import PLANNED_LIKE
from sam3dnet.portable.card import model_card
from sam3dnet.portable.content import CARD, RECORD, record_of
from sam3dnet.portable.hub import hub_model, is_on_hub, push
from sam3dnet.portable.onnx_file import ENDING, export_onnx
from sam3dnet.preprocessing.checks_description import ACCEPT_KEY
from sam3dnet.preprocessing.folders import parse_fold, write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.reading import READER_KEY
from sam3dnet.settings.export import ExportSettings

CHECKPOINT = "checkpoint_final.pth"  # the name that stock nnU-Net predicts with
KEPT = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch")
# Of dataset.json, what predictions need, and words about it; all else may name cases, in whatever way a dataset does.
NEEDED = (
    *("channel_names", "modality", "labels", "regions_class_order", "file_ending", "numTraining", "phrases"),
    *(READER_KEY, ACCEPT_KEY),
)
IN_WORDS = ("name", "description", "reference", "licence", "license", "release")
STORED_AS_THEY_ARE = ".pth"
REMEDY = "validate the fold again, sam3d_train --validate-only, or delete the file"

logger = logging.getLogger(__name__)


def export_model(settings: ExportSettings, model_folder: Path) -> str:
    """Write a model, of a cascade with its first stage, to the hub or into a file that appears whole or not at all.

    What is written holds plans, of dataset.json what predictions need, the folds' weights without the optimiser's
    state, what was chosen and measured in validation with numbers in place of the cases' names, a model card, and a
    digest of each file. Of a name that ends in .onnx see `onnx_file.py`.

    Args:
        settings: What is asked for.
        model_folder: The model.

    Returns:
        The file, or the model's address on the hub.

    Raises:
        CheckpointError: If a fold is not trained, a checkpoint cannot be read, the file is there already, the upload
            fails, or the network cannot be expressed in ONNX.
    """
    on_hub = hub_model(settings.output) if is_on_hub(settings.output) else None
    target = Path(settings.output)
    if on_hub is None:
        _require_free(target)
    as_onnx = on_hub is None and target.suffix == ENDING
    for what, value in (("licence", settings.licence), ("intended-use", settings.intended_use)):
        if not value:
            where = target.with_suffix(".json").name if as_onnx else "the model card"
            logger.warning('Warning: %s says no %s; say it with --%s "..."', where, what, what)
    if as_onnx:
        return export_onnx(settings, model_folder)
    with _workplace(target if on_hub is None else None) as name:
        root = name / "content"
        stages = list(_stages(model_folder, settings.folds))
        numbers = _case_numbers(folder / f"fold_{fold}" for folder, folds in stages for fold in folds)
        copied = [_copy_stage(folder, folds, root, settings, numbers) for folder, folds in stages]
        if on_hub is not None:
            shutil.copy(copied[0] / CARD, root / CARD)
            logger.info("%s", push(root, on_hub, private=not settings.public))
            return str(on_hub)
        packed = name / target.name
        _pack(root, packed)
        os.replace(packed, target)
    return str(target)


def _require_free(target: Path) -> None:
    if target.suffix not in (".zip", ENDING):
        raise CheckpointError(f"{target}: expected the name of a file that ends in .zip or {ENDING}; name one with -o")
    if target.exists():
        raise CheckpointError(f"{target} is there already; remove it, or name another one with -o")


@contextmanager
def _workplace(target: Path | None) -> Iterator[Path]:
    """Give a folder that goes afterwards: beside the file that is made, so that it can be moved there whole."""
    if target is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(target.absolute().parent) as name:
        yield Path(name)


def _stages(model_folder: Path, folds: Sequence[str | int] | None) -> Iterator[tuple[Path, tuple[int | str, ...]]]:
    """Yield the model and, of a cascade, the stages before it, with the folds that are exported."""
    there = trained_folds(model_folder)
    asked = tuple(map(parse_fold, folds)) if folds else there
    lacking = [str(fold) for fold in asked if fold not in there]
    if lacking or not asked:
        trained = f"trained are {', '.join(map(str, there))}" if there else "none is trained"
        raise CheckpointError(f"{model_folder}: fold {', '.join(lacking) or 'none'} cannot be exported; {trained}")
    yield model_folder, asked
    plans = read_model_plans(model_folder)
    stage = plans["configurations"][trained_model(model_folder).configuration].get("previous_stage")
    if stage is not None:
        first = previous_model_folder(model_folder, stage)
        if not trained_folds(first):
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

            raise CheckpointError(missing_first_stage(first, stage, PlansManager(plans)))
        same = [fold for fold in trained_folds(first) if fold in asked]
        yield from _stages(first, same or None)


def _copy_stage(
    source: Path, folds: Sequence[int | str], root: Path, settings: ExportSettings, numbers: Mapping[str, str]
) -> Path:
    """Copy a model into the place below a folder that nnU-Net has for it, and give that."""
    plans, described, model = read_model_plans(source), _needed(read_model_dataset(source)), trained_model(source)
    target = root / model.dataset_name / model.name
    target.mkdir(parents=True)
    write_json(target / "plans.json", _without_places(plans))
    write_json(target / "dataset.json", described)
    if (source / POSTPROCESSING_FILE).is_file():
        write_json(target / POSTPROCESSING_FILE, read_json(source / POSTPROCESSING_FILE, CheckpointError, REMEDY))
    for fold in folds:
        (target / f"fold_{fold}").mkdir()
        _copy_fold(source / f"fold_{fold}", target / f"fold_{fold}", settings, numbers)
    card = model_card(model, plans, described, folds, settings.licence, settings.intended_use)
    (target / CARD).write_text(card, encoding="utf-8")
    files = sorted(file for file in target.rglob("*") if file.is_file())
    write_json(target / RECORD, record_of(target, files, settings.half).model_dump())
    return target


def _copy_fold(source: Path, target: Path, settings: ExportSettings, numbers: Mapping[str, str]) -> None:
    _, checkpoint = choose_checkpoint(source, settings.checkpoint)
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    kept["init_args"] = _without_cases(kept["init_args"])
    if "trained_in" in checkpoint.get("sam3d", {}):
        kept["sam3d"] = {"trained_in": checkpoint["sam3d"]["trained_in"]}
    if settings.half:
        kept["network_weights"] = {name: _halved(value) for name, value in kept["network_weights"].items()}
    torch.save(kept, target / CHECKPOINT)
    if (source / POSTPROCESSING_FILE).is_file():
        write_json(target / POSTPROCESSING_FILE, read_json(source / POSTPROCESSING_FILE, CheckpointError, REMEDY))
    if (source / CALIBRATION_FILE).is_file():
        found = read_json(source / CALIBRATION_FILE, CheckpointError, REMEDY)
        write_json(target / CALIBRATION_FILE, with_numbers(found, numbers))


def _halved(value: Any) -> Any:
    return value.half() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _without_cases(init_args: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(init_args)
    if isinstance(kept.get("dataset_json"), Mapping):
        kept["dataset_json"] = _needed(kept["dataset_json"])
    if isinstance(kept.get("plans"), Mapping):
        kept["plans"] = _without_places(kept["plans"])
    return kept


def _without_places(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where files lay on the machine that planned."""
    block = dict(plans.get("sam3d") or {})
    block.pop(PLANNED_LIKE, None)
    weights = block.get("weights")
    if isinstance(weights, Mapping) and "path" in weights:
        block["weights"] = {**weights, "path": Path(weights["path"]).name}
    return {**plans, "sam3d": block} if "sam3d" in plans else dict(plans)


def _needed(described: Mapping[str, Any]) -> dict[str, Any]:
    """Give what an exported model needs of a dataset.json."""
    return {key: one for key, one in described.items() if key in NEEDED or (key in IN_WORDS and isinstance(one, str))}


def _case_numbers(folds: Iterable[Path]) -> dict[str, str]:
    """Give the cases on which folds were validated numbers in their order: each its own, whatever the fold."""
    files = [fold / CALIBRATION_FILE for fold in folds if (fold / CALIBRATION_FILE).is_file()]
    names = sorted({name for file in files for name in cases_in(read_json(file, CheckpointError, REMEDY))})
    digits = len(str(len(names)))
    return {name: f"case_{number:0{digits}}" for number, name in enumerate(names)}


def _pack(root: Path, file: Path) -> None:
    """Zip a folder, the same bytes for the same content."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
                stored = path.suffix == STORED_AS_THEY_ARE
                entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                with path.open("rb") as content, archive.open(entry, "w", force_zip64=True) as packed:
                    while chunk := content.read(1 << 20):
                        packed.write(chunk)
