"""What a model's confidences are worth: learned from the cases of its validation, which it was not trained on.

p, what the network says, becomes sigmoid(shift of the class + slope * logit(p)); shifts and slope are those under which
what validation found is likeliest (Platt 1999, with slope 1 and shift 0 as the prior, so that few cases change little).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import expit, logit

from sam3dnet.errors import CheckpointError
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Part, checked

FILE = "sam3d_confidence.json"  # of a fold
FORMAT = "sam3dnet-calibration/1"
REMEDY = "validate the fold again: sam3d_train DATASET FOLD --validate-only"
CLOSEST = 1e-3  # to 0 and 1; logits of both are infinite
SLOPE_DEVIATION, SHIFT_DEVIATION, CLASS_DEVIATION = 0.5, 1.0, 0.5  # of the prior
DICE_WEIGHT = 5.0  # a Dice tells as much as so many objects that are real or not: its spread is less
GROUPS = 10  # at most, of cases that are left out together
BINS = 10

Floats = npt.NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Pairs:
    """What was said and what was found, value by value.

    Attributes:
        case: Of each.
        class_name: Of each.
        said: By the network, 0 to 1.
        found: 0 to 1.
    """

    case: Sequence[str] = ()
    class_name: Sequence[str] = ()
    said: Sequence[float] = ()
    found: Sequence[float] = ()

    def of_cases(self, names: Iterable[str]) -> "Pairs":
        """Give those of some cases."""
        wanted = set(names)
        kept = [number for number, case in enumerate(self.case) if case in wanted]
        return _columns([(self.case[n], self.class_name[n], self.said[n], self.found[n]) for n in kept])


@dataclass(frozen=True)
class Curve:
    """From what the network says to what is to be expected."""

    slope: float = 1.0
    shift: float = 0.0
    of_class: Mapping[str, float] = field(default_factory=dict)

    def at(self, class_name: str, said: float) -> float:
        """Give what is to be expected, 0 to 1."""
        return float(expit(self.shift + self.of_class.get(class_name, 0.0) + self.slope * _logit(said)))


IDENTITY = Curve()


def fit(pairs: Pairs, weight: float = 1.0) -> Curve:
    """Find the curve under which pairs are likeliest.

    Args:
        pairs: At least one, or the curve is the identity.
        weight: Of each, against the prior.
    """
    if not pairs.said:
        return IDENTITY
    names = sorted(set(pairs.class_name))
    said, found = _logit(np.array(pairs.said)), np.array(pairs.found, float)
    number = np.array([names.index(name) for name in pairs.class_name])
    of_class = np.eye(len(names))[number]
    design = np.concatenate([said[:, None], np.ones((len(said), 1)), of_class], axis=1)
    prior = np.array([1.0, 0.0] + [0.0] * len(names))
    tightness = 1 / np.array([SLOPE_DEVIATION, SHIFT_DEVIATION] + [CLASS_DEVIATION] * len(names)) ** 2

    def loss(values: Floats) -> tuple[float, Floats]:
        scores = design @ values
        unlikely = weight * (np.logaddexp(0, scores) - found * scores).sum()
        apart = values - prior
        gradient = weight * design.T @ (expit(scores) - found) + tightness * apart
        return float(unlikely + 0.5 * (tightness * apart**2).sum()), gradient

    best = minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=[(0.05, None)] + [(None, None)] * (len(names) + 1))
    slope, shift, *rest = best.x.tolist()
    return Curve(slope, shift, dict(zip(names, rest, strict=True)))


def _logit(share: Any) -> Any:
    return logit(np.clip(share, CLOSEST, 1 - CLOSEST))


@dataclass(frozen=True)
class Calibration:
    """Both curves of a model.

    Attributes:
        num_cases: That it was learned from; 0 where confidences are the network's own.
    """

    of_dice: Curve = IDENTITY
    of_objects: Curve = IDENTITY
    num_cases: int = 0

    def dice(self, class_name: str, expected: float) -> float:
        """Give the Dice to be expected of a class."""
        return self.of_dice.at(class_name, expected)

    def object_is_real(self, class_name: str, certainty: float) -> float:
        """Give the probability that an object of this mean certainty is one."""
        return self.of_objects.at(class_name, certainty)


UNCALIBRATED = Calibration()


class _Said(Part):
    case: str
    class_name: str
    said: Share
    found: Share


class _File(Part):
    format: Literal["sam3dnet-calibration/1"]
    dice: list[_Said]
    objects: list[_Said]


@dataclass(frozen=True)
class Validated:
    """What a validation found: of each class of each case, and of each object."""

    dice: Pairs = Pairs()
    objects: Pairs = Pairs()

    @classmethod
    def of_cases(cls, contents: Mapping[str, Mapping[str, Any]]) -> "Validated":
        """Take what CASE_confidence.json of a validation hold, by case."""
        dice, objects = [], []
        for case, content in contents.items():
            for name, one in content["classes"].items():
                if one["expected_dice"] is not None:
                    dice.append((case, name, one["expected_dice"], one["true_dice"]))
                objects += [(case, name, found["certainty"], float(found["real"])) for found in one["objects"]]
        return cls(_columns(dice), _columns(objects))

    def calibration(self) -> Calibration:
        """Learn from all of it."""
        cases = {*self.dice.case, *self.objects.case}
        return Calibration(fit(self.dice, DICE_WEIGHT), fit(self.objects), len(cases))

    def errors(self) -> dict[str, Any]:
        """Measure how wrong confidences are before and after calibration, each on cases that it did not learn from."""
        return {
            "dice": _errors(self.dice, DICE_WEIGHT, _dice_errors),
            "objects": _errors(self.objects, 1.0, _object_errors),
        }

    def write(self, fold: Path) -> str:
        """Write it beside the weights that were validated; give what it shows as a sentence."""
        errors = self.errors()
        content = {"format": FORMAT, "errors": errors, "dice": _rows(self.dice), "objects": _rows(self.objects)}
        write_json(fold / FILE, content)
        return _in_words(errors)


def read_validated(folds: Iterable[Path]) -> Validated:
    """Read what the validations of folds found, as far as they did.

    Raises:
        CheckpointError: If a file is damaged.
    """
    dice, objects = [], []
    for file in (fold / FILE for fold in folds):
        if file.is_file():
            content = checked(_File, read_json(file, CheckpointError, REMEDY), file, CheckpointError, REMEDY)
            dice += [(one.case, one.class_name, one.said, one.found) for one in content.dice]
            objects += [(one.case, one.class_name, one.said, one.found) for one in content.objects]
    return Validated(_columns(dice), _columns(objects))


def _columns(rows: Sequence[tuple[str, str, float, float]]) -> Pairs:
    return Pairs([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows])


def _rows(pairs: Pairs) -> list[dict[str, Any]]:
    columns = zip(pairs.case, pairs.class_name, pairs.said, pairs.found, strict=True)
    return [dict(zip(("case", "class_name", "said", "found"), row, strict=True)) for row in columns]


def _errors(pairs: Pairs, weight: float, measure: Any) -> dict[str, Any] | None:
    """Measure pairs as they are, and each as the curve of the other cases has it; None where there are none."""
    if not pairs.said:
        return None
    said, found = np.array(pairs.said, float), np.array(pairs.found, float)
    names = sorted(set(pairs.case))
    expected = said.copy()
    if len(names) > 1:
        for group in (names[start::GROUPS] for start in range(min(GROUPS, len(names)))):
            curve = fit(pairs.of_cases(set(names) - set(group)), weight)
            for number in [number for number, case in enumerate(pairs.case) if case in group]:
                expected[number] = curve.at(pairs.class_name[number], pairs.said[number])
    return {"number": len(said), "uncalibrated": measure(said, found), "calibrated": measure(expected, found)}


def _in_words(errors: Mapping[str, Any]) -> str:
    dice, objects = errors["dice"], errors["objects"]
    if dice is None:
        return "Confidence: nothing was segmented"
    after, before = dice["calibrated"]["mean_error"], dice["uncalibrated"]["mean_error"]
    of_dice = f"the Dice of a class is foretold to {after:.3f} ({before:.3f} before calibration)"
    after, before = (objects[which]["calibration_error"] for which in ("calibrated", "uncalibrated"))
    return f"Confidence: {of_dice}; calibration error of {objects['number']} objects {after:.3f} ({before:.3f})"


def _dice_errors(expected: Floats, found: Floats) -> dict[str, float]:
    return {"mean_error": float(np.abs(expected - found).mean()), "bias": float((expected - found).mean())}


def _object_errors(expected: Floats, found: Floats) -> dict[str, float]:
    """Give the calibration error over ten bins (Naeini et al. 2015, Guo et al. 2017), and Brier's score."""
    numbers = np.minimum((expected * BINS).astype(int), BINS - 1)
    error = sum(abs((expected - found)[numbers == number].sum()) / len(found) for number in np.unique(numbers))
    return {"calibration_error": float(error), "brier": float(((expected - found) ** 2).mean())}
