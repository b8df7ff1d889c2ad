"""A whole run of `sam3d_predict`: from images or DICOM to label maps, and to what else was asked for beside them."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam3dnet.dicom.cases import WRITABLE, DicomCase, find_dicom_cases, write_images
from sam3dnet.dicom.choosing import rules_of
from sam3dnet.dicom.files import as_folder, holds_dicom, read_headers, require_highdicom
from sam3dnet.dicom.segmentation import write_segmentation
from sam3dnet.dicom.stacks import Stack
from sam3dnet.dicom.structures import write_structures
from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans
from sam3dnet.inference.output_record import DicomOrigin, Series, Source, digest_of, is_changed, note_companion
from sam3dnet.inference.predictor import PredictionReport, model_folder_of, prepare_output_folder
from sam3dnet.inference.writing import unfinished_folder
from sam3dnet.outputs.formats import write_image, write_slicer_segmentation
from sam3dnet.outputs.measures import as_csv, measure_case
from sam3dnet.planning.orientation import axis_along_world
from sam3dnet.portable.hub import is_on_hub
from sam3dnet.portable.sources import model_folder
from sam3dnet.preprocessing.cases import channel_names, foreground_classes, read_dataset_json
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.names import entries
from sam3dnet.preprocessing.reading import reader_named
from sam3dnet.settings.prediction import PredictionSettings

if TYPE_CHECKING:
    from sam3dnet.settings.choices import OutputFormat

logger = logging.getLogger(__name__)

ENDINGS: "Mapping[OutputFormat, str]" = {
    "nifti": ".nii.gz",
    "nrrd": ".nrrd",
    "seg.nrrd": ".seg.nrrd",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}
HEAD_AND_FEET = 2  # axis of the world
STATISTICS = "statistics"
PICTURE = ".png"
Classes = Mapping[str, Sequence[int]]
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
    with _opened(settings) as (opened, model):
        return _predict(opened, model, predict)


@contextmanager
def _opened(settings: PredictionSettings) -> Iterator[tuple[PredictionSettings, Path]]:
    """Find the model; that of an exported file is unpacked meanwhile, for other machines beside the output."""
    given = settings.model_folder
    if given is None or not (is_on_hub(given) or Path(given).expanduser().is_file()):
        found = model_folder_of(settings)
        yield replace(settings, model_folder=found), found
        return
    with ExitStack() as stack:
        shared = None
        if settings.scheduler is not None:
            prepare_output_folder(Path(settings.output_folder), Path(settings.input_folder))
            shared = Path(stack.enter_context(unfinished_folder(Path(settings.output_folder).absolute())))
        source = (given, settings.root, settings.configuration, settings.plans)
        unpacked = stack.enter_context(model_folder(*source, shared=shared))
        yield replace(settings, model_folder=unpacked), unpacked


def _predict(
    settings: PredictionSettings, model: Path, predict: Callable[[PredictionSettings], PredictionReport]
) -> PredictionReport:
    dataset_json = read_model_dataset(model)
    ending, is_dicom = dataset_json["file_ending"], _is_dicom(settings, dataset_json["file_ending"])
    formats = [name for name in settings.output_format or () if ENDINGS[name] != ending]
    _require_possible(formats, ending, is_dicom)
    with _source(settings, list(channel_names(dataset_json).values()), ending, is_dicom) as source:
        if is_dicom and not source.cases:  # other processes have them all
            return PredictionReport([], [], source.failed)
        report = predict(source.settings)
        made = _Made(source.settings, formats, model, source.cases, report.written)
        failed = source.failed | report.failed | made.of([*report.written, *report.skipped])
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
        known = tuple(sorted({*(case.name for case in cases), *failed}))
        cases = sorted(cases, key=lambda case: case.name)[settings.part_id :: settings.num_parts]
        failed = failed if settings.part_id == 0 else {}
        if not cases:
            yield _Source(settings, failed=failed)
            return
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
            Source(origins={name: _origin_of(case) for name, case in written.items()}, known=known).write(Path(images))
            yield _Source(replace(settings, input_folder=images, num_parts=1, part_id=0), written, failed)


def _require_reference(case: DicomCase, formats: "Sequence[OutputFormat]") -> None:
    stack, asked = case.stacks[0], [name for name in formats if name in OF_DICOM]
    if asked and not stack.frame_of_reference:
        raise DatasetError(
            f"{stack.in_words()}: it names no frame of reference, which {' and '.join(asked)} refer to; take another "
            "--output-format, or export it with this element"
        )


def _origin_of(case: DicomCase) -> DicomOrigin:
    """Say which slices a case is made of; parts of one series are told apart by them."""
    return DicomOrigin(study=case.stacks[0].study, series=tuple(_series_of(stack) for stack in case.stacks))


def _series_of(stack: Stack) -> Series:
    frames = [[str(frame.instance.header.SOPInstanceUID), frame.number] for frame in stack.frames]
    return Series(uid=stack.series, slices=digest_of(frames))


def _name_of(given: Path) -> str:
    """Name the case of a folder or file after it."""
    name = given.absolute().name
    return name if given.is_dir() else name.removesuffix(".zip").removesuffix(".dcm")


class _Made:
    """What is made of label maps, and lies beside them.

    Args:
        settings: Whose input is a folder of images.
        formats: Other than the label maps' own.
        model: Its folder.
        cases: Those of DICOM.
        anew: Names of the cases whose label maps were written just now.
    """

    def __init__(
        self,
        settings: PredictionSettings,
        formats: "list[OutputFormat]",
        model: Path,
        cases: Mapping[str, DicomCase],
        anew: Sequence[str],
    ):
        self._settings, self._formats, self._cases, self._anew = settings, formats, cases, set(anew)
        self._images, self._output = Path(settings.input_folder), Path(settings.output_folder)
        self._plans, self._described = read_model_plans(model), read_model_dataset(model)
        self._ending = str(self._described["file_ending"])
        self._called = str(self._plans.get("dataset_name", model.name))

    def of(self, names: Sequence[str]) -> dict[str, str]:
        """Make all that is asked for; give the cases of which something could not be made, and why."""
        failed: dict[str, str] = {}
        measured: dict[str, Any] = {}
        if not (self._formats or self._settings.preview or self._settings.statistics):
            self._write_statistics({})
            self._tell_left()
            return {}
        classes = foreground_classes(read_dataset_json(self._output))  # a text that was asked for is a class too
        for name in names:
            try:
                self._write_formats(name, classes)
                if self._settings.preview or self._settings.statistics:
                    measured |= {name: found} if (found := self._look_at(name, classes)) is not None else {}
            except (Sam3dError, OSError, RuntimeError) as problem:
                failed[name] = f"predicted, but {problem}"
        self._write_statistics(measured)
        self._tell_left()
        return failed

    def _tell_left(self) -> None:
        """Name what lies beside new label maps and is of those before: not known to be ours, or changed since."""
        for name in sorted(self._anew):
            label_map = self._output / f"{name}{self._ending}"
            beside = [self._output / f"{name}{ending}" for ending in {*ENDINGS.values(), PICTURE} - {self._ending}]
            for file in sorted(file for file in beside if file.is_file() and not _is_newer(file, label_map)):
                logger.warning("Warning: %s is of an earlier label map of this name, and stays; move it away", file)

    def _write_formats(self, name: str, classes: Classes) -> None:
        """Write what there is not yet, or is older than the label map; each appears whole or not at all."""
        import SimpleITK as sitk

        label_map = self._output / f"{name}{self._ending}"
        places = {kind: self._output / f"{name}{ENDINGS[kind]}" for kind in self._formats}
        to_do = {kind: file for kind, file in places.items() if not _is_newer(file, label_map)}
        if not to_do:
            return
        image = sitk.ReadImage(str(label_map))
        labels_ZYX = sitk.GetArrayFromImage(image)
        for kind, file in sorted(to_do.items(), key=lambda one: is_changed(label_map, one[1])):  # which stops, last
            with _written_beside(label_map, file) as making:
                if kind == "seg.nrrd":
                    write_slicer_segmentation(labels_ZYX, making, image, classes)
                elif kind == "dicom-seg":
                    write_segmentation(labels_ZYX, making, self._cases[name].stacks[0], classes, self._called)
                elif kind == "rtstruct":
                    write_structures(labels_ZYX, making, self._cases[name].stacks[0], classes, self._called)
                else:
                    write_image(labels_ZYX, making, image)

    def _look_at(self, name: str, classes: Classes) -> dict[str, Any] | None:
        """Draw a case whose picture is older than its label map, and measure it; None where that is not asked for."""
        from sam3dnet.outputs.preview import preview

        reader = reader_named(str(self._plans["image_reader_writer"]), self._described)
        channels = list(channel_names(self._described).values())
        label_map = self._output / f"{name}{self._ending}"
        files = [self._images / f"{name}_{number:04d}{self._ending}" for number in range(len(channels))]
        picture = self._output / f"{name}{PICTURE}"
        draws = self._settings.preview and not _is_newer(picture, label_map)
        if not (draws or self._settings.statistics):
            return None
        image_CZYX, properties = reader.read_images(files)
        labels_ZYX = reader.read_seg(label_map)[0][0].astype(np.int32)
        spacing_mm = properties["spacing"]
        if draws:
            with _written_beside(label_map, picture) as making:
                making.write_bytes(preview(labels_ZYX, image_CZYX[0], spacing_mm, classes, name))
        if not self._settings.statistics:
            return None
        grid, _ = reader.read_grid(name, files[0])
        axial = 0 if grid is None else axis_along_world(grid, reader, HEAD_AND_FEET)
        return measure_case(labels_ZYX, image_CZYX, spacing_mm, classes, channels, axial)

    def _write_statistics(self, measured: Mapping[str, Any]) -> None:
        """Write the measures of these cases, and keep those of earlier ones whose label maps are still as measured."""
        file = self._output / f"{STATISTICS}.json"
        before = (read_json_if_whole(file) or {}) if file.is_file() else {}
        if not self._settings.statistics and self._anew.isdisjoint(before):
            return
        there = {name for name in before if (self._output / f"{name}{self._ending}").is_file()}
        kept = {name: before[name] for name in there - self._anew}
        together = dict(sorted((kept | dict(measured)).items()))
        write_json(file, together)
        with written_whole(self._output / f"{STATISTICS}.csv") as making:
            making.write_text(as_csv(together), encoding="utf-8")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give a place to write to, which becomes the file when all is written."""
    with unfinished_folder(file.parent) as folder:
        yield Path(folder) / file.name
        os.replace(Path(folder) / file.name, file)


@contextmanager
def _written_beside(label_map: Path, file: Path) -> Iterator[Path]:
    """Give a place as `written_whole` does, and note the file, so that it is known whether somebody changed it.

    Raises:
        DatasetError: If somebody did since it was written.
    """
    if is_changed(label_map, file):
        raise DatasetError(
            f"{file} was changed after sam3d_predict wrote it, and is older than the label map; it is left as it is; "
            "give another folder with -o, or move it away"
        )
    with written_whole(file) as making:
        yield making
    note_companion(label_map, file)


def _is_newer(file: Path, label_map: Path) -> bool:
    return file.is_file() and file.stat().st_mtime_ns >= label_map.stat().st_mtime_ns
