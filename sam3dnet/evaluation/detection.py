"""How many lesions are found at how many false ones a case, by the confidence of each object: FROC.

Of predictions that were made with --confidence. Objects below a confidence are left out; the lower it is, the more
lesions are found, and the more objects are none. Source: free-response receiver operating characteristic, as LUNA16
(Setio et al. 2017) has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sam3dnet.errors import DatasetError
from sam3dnet.inference.confidence import ENDING
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked
from sam3dnet.prompts.components import connected, partners

FALSE_A_CASE = (0.25, 1.0, 4.0)
BY_SIZE_AT = 1.0  # false ones a case
SIZES = ("smallest third", "middle third", "largest third")
ROUNDING = 1e-3  # of a volume: spacings are stored in single precision
REMEDY = "predict again with --confidence, or remove the file"


@dataclass(frozen=True)
class Detections:
    """The lesions of a class in a case.

    Attributes:
        volume_ml: Of each true lesion.
        score: Of each true lesion: the highest confidence of the objects that match it; 0 for none.
        false: Confidence of each object that matches no lesion.
    """

    volume_ml: tuple[float, ...]
    score: tuple[float, ...]
    false: tuple[float, ...]


class Object(Part):
    """What is said of an object.

    Attributes:
        volume_ml: Its size.
        at: One of its voxels, (i, j, k) in the image's file.
    """

    confidence: Annotated[float, Field(ge=0, le=1)]
    volume_ml: Annotated[float, Field(gt=0)]
    at: tuple[int, int, int]


class _Class(Part):
    objects: list[Object]


class _File(Part):
    classes: dict[str, _Class]


def read_objects(prediction: Path, name: str) -> dict[str, list[Object]] | None:
    """Read what a prediction's CASE_confidence.json says about objects, by class; None where there is none.

    Raises:
        DatasetError: If the file is damaged.
    """
    file = prediction.with_name(f"{name}{ENDING}")
    if not file.is_file():
        return None
    content = checked(_File, read_json(file, DatasetError, REMEDY), file, DatasetError, REMEDY)
    return {class_name: one.objects for class_name, one in content.classes.items()}


def detect(
    prediction_ZYX: np.ndarray,
    truth_ZYX: np.ndarray,
    marks_ZYX: np.ndarray,
    said: Sequence[Object],
    *,
    voxel_ml: float,
    predicted_voxel_ml: float | None,
    min_iou: float,
    ignored_ZYX: np.ndarray | None = None,
) -> Detections | None:
    """Match the objects of a class in a case with its true lesions.

    Args:
        prediction_ZYX: Bool.
        truth_ZYX: Bool, on the same grid.
        marks_ZYX: The number of an object, from 1, at one voxel of each; 0 elsewhere.
        said: What is said of each object.
        voxel_ml: Size of a voxel of the truth.
        predicted_voxel_ml: The same of the prediction, which may differ by what no voxel notices; None where its file
            does not say, so that only the proportions of volumes can be compared.
        min_iou: Intersection over union from which on two match.
        ignored_ZYX: Voxels that nobody has annotated: an object with more than half of its voxels there is not false.

    Returns:
        The match; None where what is said is of another label map: of other objects, or of other volumes.
    """
    objects_ZYX, count = connected(prediction_ZYX)
    marked = marks_ZYX > 0
    numbers = objects_ZYX[marked].astype(np.int64)
    if sorted(numbers.tolist()) != list(range(1, count + 1)):
        return None
    of_mark = marks_ZYX[marked].astype(np.int64) - 1
    said_ml, voxels = np.array([one.volume_ml for one in said])[of_mark], np.bincount(objects_ZYX.ravel())[numbers]
    size_ml = said_ml.sum() / max(voxels.sum(), 1) if predicted_voxel_ml is None else predicted_voxel_ml
    if not np.allclose(said_ml, voxels * size_ml, rtol=ROUNDING, atol=0):
        return None
    confidence_of = np.zeros(count)
    confidence_of[numbers - 1] = np.array([one.confidence for one in said])[of_mark]
    matched = partners(truth_ZYX, prediction_ZYX, min_iou, ignored_ZYX)
    scores = np.zeros(len(matched.first))
    np.maximum.at(scores, matched.pairs[:, 0] - 1, confidence_of[matched.pairs[:, 1] - 1])
    is_false = ~matched.second & ~matched.second_unknown
    volumes = np.bincount(connected(truth_ZYX)[0].ravel(), minlength=len(scores) + 1)[1:] * voxel_ml
    return Detections(*(tuple(map(float, values)) for values in (volumes, scores, confidence_of[is_false])))


def summarise(cases: Sequence[Detections]) -> dict[str, Any] | None:
    """Give the sensitivity over the lesions of several cases; None where there are no lesions.

    Returns:
        The number of lesions, the sensitivity and the least confidence (None: nothing may count) at several numbers of
        false objects a case, and by size at one.
    """
    scores = np.array([score for case in cases for score in case.score])
    volumes = np.array([volume for case in cases for volume in case.volume_ml])
    false = np.sort([score for case in cases for score in case.false])[::-1]
    if not len(scores):
        return None
    at = [_at_most(false, scores, number * len(cases)) for number in FALSE_A_CASE]
    least = at[FALSE_A_CASE.index(BY_SIZE_AT)]
    order = np.argsort(volumes, kind="stable")
    by_size = [
        {
            "size": name,
            "from_ml": float(volumes[part].min()),
            "to_ml": float(volumes[part].max()),
            "lesions": len(part),
            "sensitivity": _share(scores[part], least),
        }
        for name, part in zip(SIZES, np.array_split(order, len(SIZES)), strict=True)
        if len(part)
    ]
    return {
        "lesions": len(scores),
        "false_a_case": [
            {"at_most": number, "least_confidence": least, "sensitivity": _share(scores, least)}
            for number, least in zip(FALSE_A_CASE, at, strict=True)
        ],
        "by_size": by_size,
    }


def _at_most(false: np.ndarray, scores: np.ndarray, number: float) -> float | None:
    """Give the least confidence, of those that lesions have, from which on there are at most so many false objects.

    None where too many false objects are as sure as the surest lesion: nothing is found then.
    """
    allowed = int(number)
    limit = false[allowed] if allowed < len(false) else 0.0  # objects as sure as this one would be one too many
    kept = scores[scores > limit]
    return float(kept.min()) if len(kept) else None


def _share(scores: np.ndarray, least: float | None) -> float:
    return 0.0 if least is None else float(((scores >= least) & (scores > 0)).mean())


def detection_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Give the cells of the table: a class, its lesions, sensitivities."""
    rows = []
    for name, one in summaries.items():
        cells = [f"{at['sensitivity']:.3f}" for at in one["false_a_case"]]
        thirds = {part["size"]: f"{part['sensitivity']:.3f}" for part in one["by_size"]}
        rows.append((name, str(one["lesions"]), *cells, *(thirds.get(size, "-") for size in SIZES)))
    return rows


HEADER = ("class", "lesions", *(f"{number:g} false" for number in FALSE_A_CASE), *SIZES)
