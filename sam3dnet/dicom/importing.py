"""A dataset of nnU-Net from DICOM: images with DICOM SEG or RTSTRUCT, and nothing that names a patient."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import StrictStr

from sam3dnet.conversion.new_dataset import dataset_name, made_aside, require_free
from sam3dnet.dicom.cases import on_grid
from sam3dnet.dicom.choosing import Rule, by_study, choose_stacks, read_rules_by_name
from sam3dnet.dicom.files import Instance, as_folder, read_headers
from sam3dnet.dicom.labels import is_labels, read_labels, stack_of
from sam3dnet.dicom.stacks import Stack, find_stacks
from sam3dnet.dicom.volumes import read_image
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.folders import Folders, write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked

if TYPE_CHECKING:
    import SimpleITK as sitk

    from sam3dnet.settings.dicom import DicomImportSettings

ENDING = ".nii.gz"
CHANNEL_OF = {"PT": "PET", "MR": "MRI"}  # other modalities are called as DICOM calls them
REMEDY = 'correct it, such as {"GTV.*": "tumour", "Liver": "liver", "BODY": null}'

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]


class _Table(Part):
    """Classes by a regular expression of structures' names; null for those that are left out."""

    names: dict[StrictStr, StrictStr | None]


@dataclass(frozen=True)
class Imported:
    """What was made.

    Attributes:
        dataset: Name of the dataset.
        cases: How many.
        classes: Names.
        channels: Names.
        failed: Studies or files that became no case, and why.
    """

    dataset: str
    cases: int
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    failed: dict[str, str]


@dataclass(frozen=True)
class _Case:
    """Series of one study that are the channels, and files with structures that were drawn on the first."""

    stacks: tuple[Stack, ...]
    labels: tuple[Instance, ...]


def import_dataset(settings: "DicomImportSettings", folders: Folders) -> Imported:
    """Make a dataset; see `DicomImportSettings`.

    Raises:
        DatasetError: If there is no case, or a dataset of this number is there; nothing is left behind then.
    """
    dataset = dataset_name(settings.number, settings.name)
    require_free(dataset, folders)
    table = _read_table(settings.names)
    source = Path(settings.source)
    with as_folder(source) as folder:
        found = read_headers(folder)
        cases, channels, failed = _find_cases(found.instances, settings)
        for file, why in found.damaged.items():
            failed[_told_apart(file, failed)] = f"begins as DICOM does and cannot be read ({why}); export it again"
        if not cases:
            reasons = [f"{name}: {reason}" for name, reason in failed.items()]
            raise DatasetError(
                f"{source}: no series with structures: {'; '.join(reasons) or 'no DICOM SEG or RTSTRUCT is there'}"
            )
        with made_aside(dataset, folders) as made:
            classes, count = _write_cases(cases, made, table, failed)
            labels = {"background": 0} | {name: value for value, name in enumerate(classes, 1)}
            description = {"channel_names": {str(at): name for at, name in enumerate(channels)}, "labels": labels}
            write_json(made / "dataset.json", description | {"numTraining": count, "file_ending": ENDING})
    return Imported(dataset, count, tuple(classes), tuple(channels), failed)


def _read_table(file: str | Path | None) -> dict[str, str | None]:
    if file is None:
        return {}
    path = Path(file)
    given = {"names": read_json(path, DatasetError, REMEDY)}
    table = checked(_Table, given, path, DatasetError, REMEDY).names
    for pattern in table:
        try:
            re.compile(pattern)
        except re.error as problem:
            raise DatasetError(f"{path}: {pattern!r} is no regular expression ({problem}); {REMEDY}") from problem
    return table


def _told_apart(file: Path, others: Mapping[str, str]) -> str:
    """Name a file as short as it can be told from others."""
    parts = file.parts
    names = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next((name for name in names if name not in others), str(file))


def _find_cases(
    instances: Sequence[Instance], settings: "DicomImportSettings"
) -> tuple[list[_Case], list[str], dict[str, str]]:
    """Find what was drawn on which volume; a case each volume, or of several channels each study."""
    stacks = find_stacks(instances)
    failed: dict[str, str] = {}
    drawn: dict[Stack, list[Instance]] = {}
    for instance in filter(is_labels, instances):
        try:
            stack = stack_of(instance, stacks)
        except DatasetError as problem:
            failed[_told_apart(instance.file, failed)] = str(problem)
            continue
        drawn.setdefault(stack, []).append(instance)
    if settings.channels is not None:
        rules = read_rules_by_name(Path(settings.channels))
        return _of_rules(by_study(stacks), drawn, rules, failed), list(rules), failed
    modalities = sorted({stack.modality for stack in drawn})
    if len(modalities) > 1:
        raise DatasetError(
            f"structures were drawn on {', '.join(modalities)}; say with --channels which series are the channels"
        )
    names = [CHANNEL_OF.get(modality, modality) for modality in modalities]
    return [_Case((stack,), tuple(labels)) for stack, labels in drawn.items()], names, failed


def _of_rules(
    studies: Mapping[str, Sequence[Stack]],
    drawn: Mapping[Stack, Sequence[Instance]],
    rules: Mapping[str, Rule],
    failed: dict[str, str],
) -> list[_Case]:
    cases = []
    for number, stacks in enumerate(studies.values(), 1):
        try:
            first, *others = choose_stacks(stacks, list(rules), list(rules.values()))
            on = _drawn_on(first, drawn)
        except DatasetError as problem:
            failed[f"study {number}"] = str(problem)
            continue
        cases.append(_Case((replace(on, units=first.units), *others), tuple(drawn[on])))
    return cases


def _drawn_on(first: Stack, drawn: Mapping[Stack, Sequence[Instance]]) -> Stack:
    """Give the volume of a series that structures were drawn on; of several times or echoes rules know only the series.

    Raises:
        DatasetError: If there is none, or several are.
    """
    volumes = [stack for stack in drawn if stack.series == first.series]
    if not volumes:
        raise DatasetError(f"no structures were drawn on {first.in_words()}, the first channel")
    if len(volumes) > 1:
        raise DatasetError(
            f"structures were drawn on {len(volumes)} volumes of {first.in_words()}, the first channel; export each "
            "as a series of its own"
        )
    return volumes[0]


def _write_cases(
    cases: Sequence[_Case], made: Path, table: Mapping[str, str | None], failed: dict[str, str]
) -> tuple[list[str], int]:
    """Write images and label maps; give the classes, in the order of their labels, and how many cases there are."""
    import SimpleITK as sitk

    for folder in ("imagesTr", "labelsTr"):
        (made / folder).mkdir()
    classes = [name for name in dict.fromkeys(table.values()) if name is not None]
    written: dict[str, dict[str, Mask]] = {}
    unknown: dict[str, None] = {}
    places: dict[str, sitk.Image] = {}
    for case in cases:
        name = f"case_{len(written):03d}"
        try:
            images = [read_image(stack) for stack in case.stacks]
            first = (case.stacks[0], images[0])
            moved = [images[0], *(on_grid(one, first) for one in zip(case.stacks[1:], images[1:], strict=True))]
            masks = _named(case, images[0], table, unknown)
        except DatasetError as problem:
            failed[_told_apart(case.labels[0].file, failed)] = str(problem)
            continue
        if not masks:
            failed[_told_apart(case.labels[0].file, failed)] = "none of its structures is a class"
            continue
        for channel, image in enumerate(moved):
            sitk.WriteImage(_bare(image), str(made / "imagesTr" / f"{name}_{channel:04d}{ENDING}"), useCompression=True)
        written[name], places[name] = masks, _bare(images[0])
        logger.info("%s: %s", name, ", ".join(file.file.name for file in case.labels))
    if not written:
        raise DatasetError("no case could be made: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    if unknown:
        logger.warning("Warning: left out, since the table does not name them: %s", ", ".join(unknown))
    classes += sorted({name for masks in written.values() for name in masks} - set(classes))
    for name, masks in written.items():
        label_map = _label_map(name, masks, classes)
        image = sitk.GetImageFromArray(label_map)
        image.CopyInformation(places[name])
        sitk.WriteImage(image, str(made / "labelsTr" / f"{name}{ENDING}"), useCompression=True)
    return classes, len(written)


def _named(
    case: _Case, image: "sitk.Image", table: Mapping[str, str | None], unknown: dict[str, None]
) -> dict[str, Mask]:
    """Read the structures of a case by class; several that are one class are put together."""
    found: dict[str, Mask] = {}
    for instance in case.labels:
        for name, mask in read_labels(instance, case.stacks[0], image).items():
            fitting = [given for pattern, given in table.items() if re.fullmatch(pattern, name, re.IGNORECASE)]
            if table and not fitting:
                unknown[name] = None
            given = fitting[0] if fitting else None if table else name
            if given is not None:
                found[given] = found[given] | mask if given in found else mask
    return found


def _label_map(name: str, masks: Mapping[str, Mask], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Paint classes in their order, the later over the earlier, and tell where they overlap."""
    first = next(iter(masks.values()))
    label_map = np.zeros(first.shape, np.uint8 if len(classes) <= np.iinfo(np.uint8).max else np.uint16)
    for value, class_name in enumerate(classes, 1):
        mask = masks.get(class_name)
        if mask is None:
            continue
        for below in np.unique(label_map[mask & (label_map > 0)]).tolist():
            count = int((label_map[mask] == below).sum())
            logger.warning(
                "Warning: %s: %d voxels are both %s and %s; they become %s",
                *(name, count, classes[below - 1], class_name, class_name),
            )
        label_map[mask] = value
    return label_map


def _bare(image: "sitk.Image") -> "sitk.Image":
    """Give an image with nothing but values and place."""
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image
