"""What a model's confidences are worth: learned from the cases of its validation, which it was not trained on.

p, what the network says, becomes sigmoid(shift of the class + slope * logit(p)); shifts and slope are those under which
what validation found is likeliest (Platt 1999, with slope 1 and shift 0 as the prior, so that few cases change little).
Of objects their size counts, too, as a share s of the largest of the class in the case: + slope of sizes * log(s).
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
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
SLOPE_DEVIATION, SHIFT_DEVIATION, SIZE_DEVIATION, CLASS_DEVIATION = 0.5, 1.0, 0.5, 0.5  # of the prior
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
        share: Size of an object as a share of the largest of its class in the case; 1 where it does not matter.
    """

    case: Sequence[str] = ()
    class_name: Sequence[str] = ()
    said: Sequence[float] = ()
    found: Sequence[float] = ()
    share: Sequence[float] = ()

    def of_cases(self, names: Iterable[str]) -> "Pairs":
        """Give those of some cases."""
        wanted = set(names)
        kept = [number for number, case in enumerate(self.case) if case in wanted]
        return _columns([(self.case[n], self.class_name[n], self.said[n], self.found[n], self.share[n]) for n in kept])


@dataclass(frozen=True)
class Curve:
    """From what the network says to what is to be expected."""

    slope: float = 1.0
    shift: float = 0.0
    of_size: float = 0.0
    of_class: Mapping[str, float] = field(default_factory=dict)

    def at(self, class_name: str, said: float, share: float = 1.0) -> float:
        """Give what is to be expected, 0 to 1."""
        shift = self.shift + self.of_class.get(class_name, 0.0) + self.of_size * float(np.log(share))
        return float(expit(shift + self.slope * _logit(said)))


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
    design = np.column_stack([said, np.ones(len(said)), np.log(pairs.share), of_class])
    prior = np.array([1.0, 0.0, 0.0] + [0.0] * len(names))
    deviations = [SLOPE_DEVIATION, SHIFT_DEVIATION, SIZE_DEVIATION] + [CLASS_DEVIATION] * len(names)
    tightness = 1 / np.array(deviations) ** 2

    def loss(values: Floats) -> tuple[float, Floats]:
        scores = design @ values
        unlikely = weight * (np.logaddexp(0, scores) - found * scores).sum()
        apart = values - prior
        gradient = weight * design.T @ (expit(scores) - found) + tightness * apart
        return float(unlikely + 0.5 * (tightness * apart**2).sum()), gradient

    bounds = [(0.05, None)] + [(None, None)] * (len(prior) - 1)  # surer is never less likely
    slope, shift, of_size, *rest = minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    return Curve(slope, shift, of_size, dict(zip(names, rest, strict=True)))


def _logit(share: Any) -> Any:
    return logit(np.clip(share, CLOSEST, 1 - CLOSEST))


@dataclass(frozen=True)
class Calibration:
    """Both curves of a model.

    Attributes:
        num_cases: That it was learned from; 0 where all confidences are the network's own.
        source: Digest of what it was learned from; what was written with another one is written anew.
    """

    of_dice: Curve = IDENTITY
    of_objects: Curve = IDENTITY
    num_cases: int = 0
    source: str = ""

    @property
    def left_out(self) -> list[str]:
        """Name the confidences that are the network's own."""
        curves = {"the Dice of classes": self.of_dice, "whether objects are real": self.of_objects}
        return [what for what, curve in curves.items() if curve is IDENTITY]

    def dice(self, class_name: str, expected: float) -> float:
        """Give the Dice to be expected of a class."""
        return self.of_dice.at(class_name, expected)

    def object_is_real(self, class_name: str, certainty: float, share: float) -> float:
        """Give the probability that an object of this mean certainty and share of the largest one's size is one."""
        return self.of_objects.at(class_name, certainty, share)


UNCALIBRATED = Calibration()


class _Said(Part):
    case: str
    class_name: str
    said: Share
    found: Share
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class _Both(Part):
    dice: list[_Said]
    objects: list[_Said]


class _File(_Both):
    format: Literal["sam3dnet-calibration/1"]
    without_postprocessing: _Both | None = None


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
                if one["expected_dice"] is not None and "true_dice" in one:
                    dice.append((case, name, one["expected_dice"], one["true_dice"], 1.0))
                largest = max((found["volume_ml"] for found in one["objects"]), default=1.0)
                objects += [
                    (case, name, found["certainty"], float(found["real"]), found["volume_ml"] / largest)
                    for found in one["objects"]
                    if "real" in found
                ]
        return cls(_columns(dice), _columns(objects))

    def calibration(self) -> Calibration:
        """Learn from all of it, where that makes the confidences of other cases better."""
        errors = self.errors()
        of_dice = fit(self.dice, DICE_WEIGHT) if _is_better(errors["dice"]) else IDENTITY
        of_objects = fit(self.objects) if _is_better(errors["objects"]) else IDENTITY
        return Calibration(of_dice, of_objects, 0 if of_dice is of_objects else self.num_cases, self.digest)

    @property
    def digest(self) -> str:
        """Tell it from others; "" for nothing."""
        rows = [_rows(self.dice), _rows(self.objects)]
        return sha256(json.dumps(rows).encode()).hexdigest()[:16] if self.num_cases else ""

    @property
    def num_cases(self) -> int:
        """Count the cases in which something was said."""
        return len({*self.dice.case, *self.objects.case})

    def errors(self) -> dict[str, Any]:
        """Measure how wrong confidences are before and after calibration, each on cases that it did not learn from."""
        return {
            "dice": _errors(self.dice, DICE_WEIGHT, _dice_errors),
            "objects": _errors(self.objects, 1.0, _object_errors),
        }

    def write(self, fold: Path, without_postprocessing: "Validated | None" = None) -> None:
        """Write it beside the weights that were validated.

        Args:
            fold: Where to.
            without_postprocessing: What the same validation found of label maps without the post-processing that it
                chose; None where it chose none.
        """
        before = {} if without_postprocessing is None else {"without_postprocessing": without_postprocessing._as_rows()}
        write_json(fold / FILE, {"format": FORMAT, "errors": self.errors(), **self._as_rows(), **before})

    def _as_rows(self) -> dict[str, Any]:
        return {"dice": _rows(self.dice), "objects": _rows(self.objects)}

    def in_words(self) -> str:
        """Say how wrong confidences are."""
        errors = self.errors()
        if errors["dice"] is None or errors["objects"] is None:
            return "Confidence: nothing was segmented"
        of_dice = f"the Dice of a class is foretold to {_before_and_after(errors['dice'], 'mean_error')}"
        number, error = errors["objects"]["number"], _before_and_after(errors["objects"], "calibration_error")
        return f"Confidence: {of_dice}; calibration error of {number} objects {error}"


def read_validated(folds: Iterable[Path], postprocessed: Collection[str] | None = None) -> Validated:
    """Read what the validations of folds found, as far as they did.

    Args:
        folds: Their folders.
        postprocessed: The classes whose label maps go through post-processing; of others counts what validation found
            without it. None: all.

    Raises:
        CheckpointError: If a file is damaged.
    """
    dice: list[Row] = []
    objects: list[Row] = []
    for file in (fold / FILE for fold in folds):
        if file.is_file():
            content = checked(_File, read_json(file, CheckpointError, REMEDY), file, CheckpointError, REMEDY)
            for part, is_after in ((content, True), (content.without_postprocessing or content, False)):
                for rows, found in ((dice, part.dice), (objects, part.objects)):
                    rows += [
                        _row_of(one)
                        for one in found
                        if (postprocessed is None or one.class_name in postprocessed) == is_after
                    ]
    return Validated(_columns(dice), _columns(objects))


def cases_in(content: Any) -> set[str]:
    """Name the cases in what is in such a file."""
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    own = {str(content["case"])} if isinstance(content, Mapping) and "case" in content else set[str]()
    return own.union(*map(cases_in, parts))


def with_numbers(content: Any, numbers: Mapping[str, str]) -> Any:
    """Put something else in place of the names of the cases in what is in such a file."""
    if isinstance(content, Mapping):
        return {key: numbers[one] if key == "case" else with_numbers(one, numbers) for key, one in content.items()}
    return [with_numbers(one, numbers) for one in content] if isinstance(content, list) else content


Row = tuple[str, str, float, float, float]


def _row_of(one: _Said) -> Row:
    return one.case, one.class_name, one.said, one.found, one.share


def _columns(rows: Sequence[Row]) -> Pairs:
    case, class_name, said, found, share = ([row[column] for row in rows] for column in range(5))
    return Pairs(case, class_name, said, found, share)  # type: ignore[arg-type]


def _rows(pairs: Pairs) -> list[dict[str, Any]]:
    columns = zip(pairs.case, pairs.class_name, pairs.said, pairs.found, pairs.share, strict=True)
    return [dict(zip(("case", "class_name", "said", "found", "share"), row, strict=True)) for row in columns]


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
                expected[number] = curve.at(pairs.class_name[number], pairs.said[number], pairs.share[number])
    compared = {"uncalibrated": measure(said, found), "calibrated": measure(expected, found)}
    return {"number": len(said), "cases": len(names), **compared}


def _is_better(errors: Mapping[str, Any] | None) -> bool:
    """Tell whether calibration makes confidences of cases better that it did not learn from: of few it may not."""
    if errors is None or errors["cases"] < 2:  # nothing was left out, of one
        return False
    before, after = errors["uncalibrated"], errors["calibrated"]
    score = "mean_error" if "mean_error" in before else "brier"
    return bool(after[score] <= before[score])


def _before_and_after(errors: Mapping[str, Any], key: str) -> str:
    before, after = (errors[which][key] for which in ("uncalibrated", "calibrated"))
    if _is_better(errors):
        return f"{after:.3f} ({before:.3f} before calibration)"
    if errors["cases"] < 2:
        return f"{before:.3f} (not calibrated: a single case)"
    return f"{before:.3f} (not calibrated, which would make it {after:.3f}: too few cases)"


def _dice_errors(expected: Floats, found: Floats) -> dict[str, float]:
    return {"mean_error": float(np.abs(expected - found).mean()), "bias": float((expected - found).mean())}


def _object_errors(expected: Floats, found: Floats) -> dict[str, float]:
    """Give the calibration error over ten bins (Naeini et al. 2015, Guo et al. 2017), and Brier's score."""
    numbers = np.minimum((expected * BINS).astype(int), BINS - 1)
    error = sum(abs((expected - found)[numbers == number].sum()) / len(found) for number in np.unique(numbers))
    return {"calibration_error": float(error), "brier": float(((expected - found) ** 2).mean())}
