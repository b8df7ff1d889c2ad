"""`sam3d_predict` on DICOM: series become images, and label maps what was asked for, on the series' own slices."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.dicom.cases import WRITABLE, DicomCase, find_dicom_cases, write_images
from sam3dnet.dicom.choosing import rules_of
from sam3dnet.dicom.files import as_folder, holds_dicom, read_headers
from sam3dnet.dicom.segmentation import require_highdicom, write_segmentation
from sam3dnet.dicom.structures import write_structures
from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.models import read_model_dataset, read_model_plans
from sam3dnet.inference.other_formats import write_image, write_slicer_segmentation
from sam3dnet.inference.predictor import PredictionReport, model_folder_of, prepare_output_folder
from sam3dnet.inference.writing import unfinished_folder
from sam3dnet.preprocessing.cases import channel_names, foreground_classes, read_dataset_json
from sam3dnet.preprocessing.names import entries
from sam3dnet.settings.prediction import PredictionSettings

if TYPE_CHECKING:
    from sam3dnet.settings.choices import OutputFormat

ENDINGS: "Mapping[OutputFormat, str]" = {
    "nifti": ".nii.gz",
    "nrrd": ".nrrd",
    "seg.nrrd": ".seg.nrrd",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}
OF_DICOM = ("dicom-seg", "rtstruct")


@dataclass
class _Source:
    """What is predicted: images as they are, or DICOM cases that were turned into images."""

    settings: PredictionSettings
    cases: dict[str, DicomCase] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def predict_any(
    settings: PredictionSettings, predict: Callable[[PredictionSettings], PredictionReport]
) -> PredictionReport:
    """Predict images or DICOM, and write the formats that were asked for beside the label maps.

    Args:
        settings: What is asked for.
        predict: Predicts a folder of images.

    Raises:
        DatasetError: As of `predict`; if the input is DICOM and no series fits the model; if a format is asked for
            that needs DICOM, or a package that is not installed.
    """
    model = model_folder_of(settings)
    settings = replace(settings, model_folder=model)
    dataset_json = read_model_dataset(model)
    ending, is_dicom = dataset_json["file_ending"], _is_dicom(settings, dataset_json["file_ending"])
    formats = [name for name in settings.output_format or () if ENDINGS[name] != ending]
    _require_possible(formats, ending, is_dicom)
    with _source(settings, list(channel_names(dataset_json).values()), ending, is_dicom) as source:
        report = predict(source.settings)
        failed = source.failed | report.failed
        for name in [*report.written, *report.skipped] if formats else ():
            try:
                _write_formats(Path(settings.output_folder), name, ending, formats, model, source.cases.get(name))
            except (Sam3dError, OSError, RuntimeError) as problem:
                failed[name] = f"predicted, but {problem}"
    return PredictionReport(report.written, report.skipped, failed)


def _is_dicom(settings: PredictionSettings, ending: str) -> bool:
    folder = Path(settings.input_folder)
    if settings.series is not None or settings.channels is not None or folder.is_file():
        return True
    if not folder.is_dir() or any(path.name.lower().endswith(ending.lower()) for path in entries(folder)):
        return False
    return holds_dicom(folder)


def _require_possible(formats: "list[OutputFormat]", ending: str, is_dicom: bool) -> None:
    if is_dicom and ending not in WRITABLE:
        raise DatasetError(
            f"the model reads images ending in {ending}, which DICOM is not turned into; expected one of "
            f"{', '.join(WRITABLE)}; convert the images"
        )
    if formats and ending not in WRITABLE:
        raise DatasetError(
            f"--output-format: label maps ending in {ending} cannot be turned into {formats[0]}; the model's images "
            f"would have to end in one of {', '.join(WRITABLE)}"
        )
    for name in formats:
        if name in OF_DICOM and not is_dicom:
            raise DatasetError(
                f"--output-format {name} refers to the DICOM series that was segmented, and the input is none; give a "
                "folder or zip file with DICOM files, or take nifti, nrrd or seg.nrrd"
            )
    if "dicom-seg" in formats:
        require_highdicom()


@contextmanager
def _source(settings: PredictionSettings, channels: list[str], ending: str, is_dicom: bool) -> Iterator[_Source]:
    if not is_dicom:
        yield _Source(settings)
        return
    given, output = Path(settings.input_folder), Path(settings.output_folder)
    rules = rules_of(channels, settings.series, None if settings.channels is None else Path(settings.channels))
    with as_folder(given) as folder:
        cases, failed = find_dicom_cases(read_headers(folder), folder, _name_of(given), channels, rules)
        if not cases:
            raise DatasetError("; ".join(f"{given}: {why}" for why in failed.values()))
        prepare_output_folder(output, given)
        with unfinished_folder(output) as images:
            written = {}
            for case in cases:
                try:
                    _require_reference(case, settings.output_format or ())
                    write_images(case, Path(images), ending)
                    written[case.name] = case
                except DatasetError as problem:
                    failed[case.name] = str(problem)
            if not written:
                raise DatasetError("; ".join(f"{given}: {why}" for why in failed.values()))
            yield _Source(replace(settings, input_folder=images), written, failed)


def _require_reference(case: DicomCase, formats: "Sequence[OutputFormat]") -> None:
    stack, asked = case.stacks[0], [name for name in formats if name in OF_DICOM]
    if asked and not stack.frame_of_reference:
        raise DatasetError(
            f"{stack.in_words()}: it names no frame of reference, which {' and '.join(asked)} refer to; take another "
            "--output-format, or export it with this element"
        )


def _name_of(given: Path) -> str:
    """Name the case of a folder or file after it."""
    name = given.absolute().name
    return name if given.is_dir() else name.removesuffix(".zip").removesuffix(".dcm")


def _write_formats(
    output: Path, name: str, ending: str, formats: "list[OutputFormat]", model: Path, case: DicomCase | None
) -> None:
    """Write what there is not yet, or is older than the label map; each appears whole or not at all."""
    import SimpleITK as sitk

    label_map = output / f"{name}{ending}"
    places = {kind: output / f"{name}{ENDINGS[kind]}" for kind in formats}
    to_do = {kind: file for kind, file in places.items() if not _is_newer(file, label_map)}
    if not to_do:
        return
    image = sitk.ReadImage(str(label_map))
    labels_ZYX = sitk.GetArrayFromImage(image)
    classes = foreground_classes(read_dataset_json(output))
    called = str(read_model_plans(model).get("dataset_name", model.name))
    with unfinished_folder(output) as folder:
        for kind, file in to_do.items():
            making = Path(folder) / file.name
            if kind == "seg.nrrd":
                write_slicer_segmentation(labels_ZYX, making, image, classes)
            elif kind in OF_DICOM:
                assert case is not None
                write = write_segmentation if kind == "dicom-seg" else write_structures
                write(labels_ZYX, making, case.stacks[0], classes, called)
            else:
                write_image(labels_ZYX, making, image)
            os.replace(making, file)


def _is_newer(file: Path, label_map: Path) -> bool:
    return file.is_file() and file.stat().st_mtime_ns >= label_map.stat().st_mtime_ns
