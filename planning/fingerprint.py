"""Make the dataset fingerprint: nnU-Net's own keys, and a block "sam3d" with the objects of each class.

Stock nnU-Net reads the same file and ignores the block. The block records which files the fingerprint was made from, so
that one that has gone stale is made anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sam3dnet.errors import DatasetError
from sam3dnet.planning.objects import measure_classes
from sam3dnet.preprocessing.cases import (
    TrainingCase,
    channel_names,
    foreground_classes,
    list_training_cases,
    read_dataset_json,
)
from sam3dnet.preprocessing.folders import Folders, write_json
from sam3dnet.preprocessing.json_files import read_json, read_json_if_whole
from sam3dnet.preprocessing.reading import DatasetReader, reader_of_cases
from sam3dnet.preprocessing.workers import Workers, map_cases

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "dataset_fingerprint.json"
BLOCK = "sam3d"
BLOCK_VERSION = 3
# Drawn from the whole dataset for the intensity statistics: 10,000 in either tail. nnU-Net draws fifty times as many,
# which takes longer than reading the images and changes nothing.
FOREGROUND_SAMPLES = 2_000_000
# Enough points to integrate a clipped mean from, small enough for a file that people read.
QUANTILE_POINTS = 201


def load_or_make_fingerprint(
    dataset_name: str, folders: Folders, workers: Workers | int, progress: bool = True
) -> dict[str, Any]:
    """Read the fingerprint of a dataset, or make it where there is none or its files have changed since.

    Args:
        dataset_name: A folder in `folders.raw`.
        folders: nnU-Net's three folders, already active (see `activate_folders`).
        workers: Cases read at the same time, 1 to read them in this process; or a cluster.
        progress: Show a progress bar.

    Returns:
        nnU-Net's keys and "sam3d"; also written to dataset_fingerprint.json in the preprocessed folder.

    Raises:
        DatasetError: If the dataset has no cases or no foreground, a file is missing, or a worker died.
    """
    raw_folder = folders.raw / dataset_name
    fingerprint_file = folders.preprocessed / dataset_name / FINGERPRINT_FILE
    dataset_json = read_dataset_json(raw_folder)
    cases = list_training_cases(raw_folder, dataset_json)
    if not cases:
        raise DatasetError(
            f"{raw_folder / 'imagesTr'}: holds no training case; expected images named "
            f"CASE_0000{dataset_json['file_ending']}; put them there"
        )
    reader = reader_of_cases(dataset_json, cases)
    record = files_record(raw_folder, cases, reader)
    known = read_if_current(fingerprint_file, record)
    if known is not None:
        return known
    measures = measure_cases(cases, dataset_json, reader, workers, progress, [raw_folder])
    num_channels = len(channel_names(dataset_json))
    fingerprint = summarise(measures, num_channels, dataset_name)
    fingerprint[BLOCK] = {"version": BLOCK_VERSION, "files": record, **summarise_classes(measures, dataset_json)}
    fingerprint[BLOCK]["foreground_quantiles"] = foreground_quantiles(measures, num_channels)
    write_json(fingerprint_file, fingerprint)
    # Read back, so that a first run and every later one plan from the very same values.
    stored: dict[str, Any] = read_json(fingerprint_file, DatasetError, "plan again")
    return stored


def files_record(raw_folder: Path, cases: Iterable[TrainingCase], reader: DatasetReader) -> dict[str, Any]:
    """Say what a fingerprint is made from: dataset.json by content, the files of the cases by name, size and time.

    Raises:
        DatasetError: If a file of a case is missing.
    """
    digest = hashlib.sha256((raw_folder / "dataset.json").read_bytes())
    count = 0
    for case in cases:
        for file in reader.files_of(case.images, case.label):
            try:
                status = file.stat()
            except OSError as error:
                raise DatasetError(
                    f'case "{case.name}": {file} cannot be read ({error.strerror}); add it, or leave the case out'
                ) from error
            digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            count += 1
    return {"count": count, "sha256": digest.hexdigest()}


def read_if_current(fingerprint_file: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Read the fingerprint if it is ours, readable and made from the files of `record`."""
    if not fingerprint_file.is_file():
        return None
    fingerprint = read_json_if_whole(fingerprint_file)
    if fingerprint is None:
        logger.warning("%s is damaged; it is made anew", fingerprint_file)
        return None
    block = fingerprint.get(BLOCK, {})
    if block.get("version") != BLOCK_VERSION or block.get("files") != record:
        logger.info("%s was made from other files or by another program; it is made anew", fingerprint_file)
        return None
    return fingerprint


class ReadCase:
    """Hands arrays that are in memory to nnU-Net functions that want a reader."""

    def __init__(self, images_CZYX: np.ndarray, labels_1ZYX: np.ndarray, properties: dict[str, Any]) -> None:
        self.images_CZYX = images_CZYX
        self.labels_1ZYX = labels_1ZYX
        self.properties = properties

    def read_images(self, _files: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Give the images, whatever file is asked for."""
        return self.images_CZYX, self.properties

    def read_seg(self, _file: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Give the labels, whatever file is asked for."""
        return self.labels_1ZYX, self.properties


def measure_case(
    case: TrainingCase, reader: DatasetReader, classes: dict[str, tuple[int, ...]], num_samples: int
) -> dict[str, Any]:
    """Measure one case: nnU-Net's values and, per class, the objects. Each file is read once."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    images, label = [str(file) for file in case.images], str(case.label)
    images_CZYX, properties = reader.read_images(images)
    labels_1ZYX, _ = reader.read_seg(label)
    z_mm, y_mm, x_mm = (float(mm) for mm in properties["spacing"])
    measured = measure_classes(images_CZYX, labels_1ZYX[0], classes, (z_mm, y_mm, x_mm))
    objects = {name: None if measures is None else measures.as_dict() for name, measures in measured.items()}
    read_case = ReadCase(images_CZYX, labels_1ZYX, properties)
    # nnU-Net's function crops and samples; it must come last, since it marks the labels outside the crop.
    shape, spacing, intensities, _, relative_size = DatasetFingerprintExtractor.analyze_case(
        images, label, lambda: read_case, num_samples
    )
    return {
        "name": case.name,
        "shape": [int(n) for n in shape],
        "spacing": [float(mm) for mm in spacing],
        "intensities": intensities,
        "relative_size": float(relative_size),
        "objects": objects,
    }


def measure_cases(
    cases: Sequence[TrainingCase],
    dataset_json: dict[str, Any],
    reader: DatasetReader,
    workers: Workers | int,
    progress: bool,
    folders: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """Measure all cases, which lie in `folders`, in the order given; one process alone is this one.

    Raises:
        DatasetError: If cases cannot be read, or a worker died (most often for want of memory).
    """
    measure = partial(
        measure_case,
        reader=reader,
        classes=foreground_classes(dataset_json),
        num_samples=max(1, FOREGROUND_SAMPLES // len(cases)),
    )
    outcomes = map_cases(measure, cases, 0 if workers == 1 else workers, "fingerprint", progress, folders=folders)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        lines = "\n".join(f'  case "{o.item.name}": {type(o.error).__name__}: {o.error}' for o in failed)
        raise DatasetError(
            f"{len(failed)} of {len(cases)} cases could not be measured; correct them, or leave them out:\n{lines}"
        ) from failed[0].error
    return [outcome.result for outcome in outcomes if outcome.result is not None]


def summarise(measures: list[dict[str, Any]], num_channels: int, dataset_name: str) -> dict[str, Any]:
    """Summarise the cases in nnU-Net's keys.

    Raises:
        DatasetError: If no case has a labelled voxel.
    """
    channels: dict[str, dict[str, float]] = {}
    for channel in range(num_channels):
        values = channel_values(measures, channel)
        if values.size == 0:
            raise DatasetError(f"{dataset_name}: no case has a labelled voxel; are labelsTr the right files?")
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        channels[str(channel)] = {
            "mean": float(np.mean(values)),
            "median": float(median),
            "std": float(np.std(values)),
            "min": float(np.min(values)),
            "max": float(np.max(values)),
            "percentile_99_5": float(high),
            "percentile_00_5": float(low),
        }
    return {
        "spacings": [case["spacing"] for case in measures],
        "shapes_after_crop": [case["shape"] for case in measures],
        "foreground_intensity_properties_per_channel": channels,
        "median_relative_size_after_cropping": float(np.median([case["relative_size"] for case in measures])),
    }


def channel_values(measures: list[dict[str, Any]], channel: int) -> np.ndarray:
    """Gather the sampled foreground intensities of one channel over all cases that have foreground."""
    parts = [np.asarray(case["intensities"][channel]) for case in measures if len(case["intensities"][channel])]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def foreground_quantiles(measures: list[dict[str, Any]], num_channels: int) -> dict[str, list[float]]:
    """Give, per channel, the foreground intensities at evenly spaced quantiles from 0 to 1."""
    levels = np.linspace(0.0, 1.0, QUANTILE_POINTS)
    quantiles = {}
    for channel in range(num_channels):
        values = np.quantile(channel_values(measures, channel), levels)
        quantiles[str(channel)] = [float(value) for value in values]
    return quantiles


def summarise_classes(measures: list[dict[str, Any]], dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Gather, per class, extents, counts and volumes of each case that has it, and typical intensities."""
    classes = {}
    for name, values in foreground_classes(dataset_json).items():
        present = [case for case in measures if case["objects"][name] is not None]
        objects = [case["objects"][name] for case in present]
        classes[name] = {
            "label_values": list(values),
            "cases": [case["name"] for case in present],
            "largest_extent_voxels": [o["largest_extent_voxels"] for o in objects],
            "largest_extent_mm": [o["largest_extent_mm"] for o in objects],
            "object_count": [o["object_count"] for o in objects],
            "largest_voxels": [o["largest_voxels"] for o in objects],
            "voxels": [o["voxels"] for o in objects],
            "volume_mm3": [o["volume_mm3"] for o in objects],
            "centre_mm": [o["centre_mm"] for o in objects],
            "inside": typical([o["inside"] for o in objects]),
            "around": typical([o["around"] for o in objects]),
        }
    return {"classes": classes}


def typical(descriptions: list[list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Take, per channel and statistic, the median over the cases."""
    result: dict[str, dict[str, float]] = {}
    for channel in range(len(descriptions[0]) if descriptions else 0):
        of_channel = [case[channel] for case in descriptions if case[channel]]
        keys = of_channel[0] if of_channel else {}
        result[str(channel)] = {key: float(np.median([d[key] for d in of_channel])) for key in keys}
    return result
