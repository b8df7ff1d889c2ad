"""The challenges' protocols: boxes, clicks and figures worked out by hand, with the click study's obedient session."""

import csv
import json
import math
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import study_challenge
from phantoms import write_volume
from test_evaluation_clicks import (
    DATASET,
    FAR,
    OBJECT,
    SHAPE,
    SPACING_MM,
    FakeSession,
    Obedient,
    folders,  # noqa: F401 (a fixture)
    mask,
)

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation import autopet4, clicks
from sam3dnet.evaluation.challenge_results import challenge_folder, format_challenge, write_challenge
from sam3dnet.evaluation.challenges import ALL_CLASSES, ChallengeStudy
from sam3dnet.evaluation.clicks import Mask
from sam3dnet.evaluation.cvpr25 import StepScore, error_click, mean_of_classes, slice_box, steps_of_class
from sam3dnet.evaluation.lesions import voxels_without_partner
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.prompts.types import Box, Point


class Draws:
    """A source of randomness that draws one number, if it may."""

    def __init__(self, number: int) -> None:
        self.number = number

    def integers(self, end: int) -> int:
        assert self.number < end == 6
        return self.number


def wide_truth() -> Mask:
    """In slices 1, 2 and 4 of 600 x 300 voxels; the middle one of these, 2, holds y 100 to 109 and x 3 to 19."""
    truth = np.zeros((6, 600, 300), bool)
    truth[1, :50, :50] = truth[4, 590:, 290:] = True
    truth[2, 100:110, 3:20] = True
    return truth


@pytest.mark.parametrize(
    ("drawn", "low", "high"),
    [
        (0, (1, 100, 3), (4, 109, 19)),
        # int(1 * 600 / 256) = 2 and int(1 * 300 / 256) = 1; int(5 * 600 / 256) = 11 and int(5 * 300 / 256) = 5.
        (1, (1, 98, 2), (4, 111, 20)),
        (5, (1, 89, 0), (4, 120, 24)),
    ],
)
def test_box_is_as_high_as_the_class_and_as_wide_as_its_middle_slice(drawn: int, low: Any, high: Any) -> None:
    rng: Any = Draws(drawn)
    assert slice_box(wide_truth(), rng) == Box(low, high)
    other = np.zeros((6, 600, 300), bool)
    other[3, 595:, 298] = True
    # Of two slices the upper one counts.
    both = other.copy()
    both[2, 300, 100] = True
    assert slice_box(both, rng).high == (3, *slice_box(other, rng).high[1:])
    box = slice_box(other, rng)
    assert (box.low[0], box.high) == (3, (3, 599, min(299, 298 + int(drawn * 300 / 256))))


def test_a_click_takes_missed_and_false_voxels_for_one_error_and_has_the_polarity_of_the_truth() -> None:
    truth = mask((slice(0, 3), slice(0, 3), slice(0, 3)))
    # All missed: its middle, a positive click.
    assert error_click(mask(), truth) == Point((1, 1, 1))
    # 27 missed voxels touch 5 x 5 x 5 false ones by their corner: one error of 152 voxels, deepest in the false part.
    shape = (9, 10, 11)
    truth = mask((slice(0, 3), slice(0, 3), slice(0, 3)), shape=shape)
    false = mask((slice(3, 8), slice(3, 8), slice(3, 8)), shape=shape)
    apart = mask((8, slice(9, 10), slice(9, 11)), shape=shape)
    assert error_click(false | apart, truth) == Point((5, 5, 5), positive=False)
    assert error_click(truth, truth) is None


def test_a_click_is_deepest_in_voxels_and_ties_are_drawn_with_seed_42() -> None:
    # In what is one voxel thick all are as deep. With seed 42 numpy draws number 3 of 6, 2 of 3 and 0 of 2.
    assert error_click(mask(), mask((2, slice(1, 3), slice(4, 7)))) == Point((2, 2, 4))
    assert error_click(mask(), mask((2, 1, slice(4, 7)))) == Point((2, 1, 6))
    assert error_click(mask(), mask((2, 1, slice(4, 6)))) == Point((2, 1, 4))
    # 3 x 3 x 4 voxels: two are two deep, the border of the array counts as outside.
    corner = mask((slice(0, 3), slice(0, 3), slice(0, 4)))
    assert error_click(mask(), corner) == Point((1, 1, 1))


def test_steps_begin_with_the_box_and_keep_a_mask_that_is_right() -> None:
    truth = mask(OBJECT)
    session = Obedient(automatic=mask(FAR), hidden=truth)
    steps = list(steps_of_class(session, truth, "lesion", Box((1, 1, 2), (2, 5, 8))))
    assert session.boxes == [((2, 1, 1), (8, 5, 2))]
    # Two slices by the box; a slab of all by a click in the third; the false positive goes.
    assert [step.mask.sum() for step in steps] == [70 + 18, 105 + 18, 105, 105, 105, 105]
    assert [positive for _, positive, _ in session.clicks] == [True, False]
    assert [step.seconds > 0 for step in steps] == [True] * 3 + [False] * 3


def test_a_class_without_box_begins_with_an_empty_mask() -> None:
    truth = mask(OBJECT)
    session = Obedient(automatic=truth, hidden=truth)
    steps = list(steps_of_class(session, truth, "lesion", None))
    assert (steps[0].mask.sum(), steps[0].seconds) == (0, 0)
    assert session.boxes == []
    assert session.clicks[0][1] is True
    assert steps[1].mask.sum() == 105


def test_nsd_is_zero_where_the_mean_dice_of_the_classes_is_low() -> None:
    first = [StepScore(0.1, 0.6), StepScore(0.0, 0.9)]
    second = [StepScore(0.5, 0.2), StepScore(0.4, 0.7)]
    assert mean_of_classes([first, second]) == [StepScore(pytest.approx(0.3), pytest.approx(0.4)), StepScore(0.2, 0.0)]
    assert mean_of_classes([first]) == [StepScore(0.1, 0.0), StepScore(0.0, 0.0)]


def test_volumes_are_of_components_by_18_neighbours_that_touch_nothing() -> None:
    truth = mask((0, 0, slice(0, 4)))
    predicted = mask((0, 0, 3), (1, 1, 3), (3, 3, 3), (4, 4, 3), (5, 5, 4))
    # The second voxel shares an edge with the first, which is true; the third and fourth share an edge with each other;
    # the fifth touches the fourth by a corner alone.
    assert voxels_without_partner(predicted, truth, 18) == 3
    assert voxels_without_partner(predicted, mask((4, 4, 3)), 18) == 3
    assert voxels_without_partner(predicted, mask((4, 4, 3)), 26) == 2
    assert voxels_without_partner(truth, mask((0, 1, 3)), 18) == 4
    assert voxels_without_partner(truth, mask(), 18) == 4
    assert voxels_without_partner(mask(), truth, 18) == 0


def bright_image() -> np.ndarray:
    image = np.zeros((20, 25, 30), np.float32)
    image[2:5, 3:6, 4:7] = 9  # 27 of 15,000 voxels are the brightest 0.25 %, beside the class
    image[10:15, 10:15, 10:15] = 20  # the class itself
    return image


def test_clicks_in_pairs_are_drawn_in_components_and_where_background_is_brightest() -> None:
    image = bright_image()
    truth = image == 20
    truth[18, 20:24, 25] = True
    drawn = autopet4.draw_clicks(truth, image, None, np.random.default_rng(3))
    assert (len(drawn.foreground), len(drawn.background)) == (10, 10)
    assert set(drawn.foreground[:2]) == {(12, 12, 12), (18, 20, 25)}
    assert all(truth[voxel] for voxel in drawn.foreground)
    # Further clicks are at the surface, in turn in each component.
    assert all(voxel[0] == 18 or {10, 14} & set(voxel) for voxel in drawn.foreground[2:])
    assert [voxel[0] == 18 for voxel in drawn.foreground[2:]] in ([True, False] * 4, [False, True] * 4)
    assert drawn.background[0] == (3, 4, 5)
    assert all(image[voxel] == 9 for voxel in drawn.background)
    assert autopet4.draw_clicks(truth, image, None, np.random.default_rng(3)) == drawn
    assert drawn.first(1).points == (Point(drawn.foreground[0]), Point((3, 4, 5), positive=False))
    assert drawn.first(4).points[4:] == tuple(Point(voxel, positive=False) for voxel in drawn.background[:4])


def test_clicks_in_pairs_leave_out_what_is_ignored_and_what_there_is_not() -> None:
    image = bright_image()
    ignored = image == 9
    none = np.zeros(image.shape, bool)
    drawn = autopet4.draw_clicks(none, image, ignored, np.random.default_rng(3))
    assert drawn.foreground == ()
    assert not any(ignored[voxel] for voxel in drawn.background)
    assert all(image[voxel] == 20 for voxel in drawn.background)
    # An even image: anywhere beside the class; and no background click where there is no background.
    even = np.ones(image.shape, np.float32)
    beside = autopet4.draw_clicks(ignored, even, None, np.random.default_rng(1)).background
    assert len(beside) == 10
    assert not any(ignored[voxel] for voxel in beside)
    assert autopet4.draw_clicks(~none, even, None, np.random.default_rng(1)).background == ()


def test_curves_of_pairs_start_anew_at_each_step() -> None:
    truth = mask(OBJECT)
    session = Obedient(automatic=mask(FAR), hidden=truth)
    pairs = autopet4.Clicks(((1, 1, 2), (3, 1, 2)), ((0, 0, 13), (5, 7, 12)))
    found = autopet4.curves_of_class(session, truth, "lesion", pairs, SPACING_MM)
    # One click adds two slices, two add three; the first background click hits nothing, the second the false positive.
    assert found["dice"][:3] == [0, pytest.approx(2 * 70 / (105 + 88)), 1]
    ml = 3.0 * 0.7 * 1.1 / 1000
    assert found["false_positive_ml"][:3] == [pytest.approx(18 * ml), pytest.approx(18 * ml), 0]
    assert found["false_negative_ml"][:3] == [pytest.approx(105 * ml), 0, 0]
    assert found["dice"][2:] == [1] * 9
    assert session.together == [2] + [4] * 9
    # Two false voxels that touch by a corner are apart, so that one of them alone is right.
    session = Obedient(automatic=mask((0, 0, 0), (1, 1, 1)), hidden=mask())
    found = autopet4.curves_of_class(session, mask((1, 1, 1)), "lesion", autopet4.Clicks((), ()), SPACING_MM)
    assert found["false_positive_ml"] == [pytest.approx(ml)] * 11


@pytest.fixture
def cvpr25(folders: Folders) -> ChallengeStudy:  # noqa: F811
    return study_challenge("cvpr25", folders, dataset="907")


def test_cvpr25_averages_the_classes_of_each_case(cvpr25: ChallengeStudy) -> None:
    assert cvpr25.classes == (ALL_CLASSES, "organ", "lesion")
    assert cvpr25.failed == {"refused": "this image is refused"}
    assert cvpr25.absent == {"lesion": 1}
    # Case b has the organ alone. The box finds the organ; the lesion keeps its false positive of as many voxels.
    lesion = 2 / 3
    assert cvpr25.values("organ", "dice", 0) == [1, 1]
    assert cvpr25.values("lesion", "dice", 0) == [pytest.approx(lesion)]
    assert cvpr25.values(ALL_CLASSES, "dice", 0) == [pytest.approx((1 + lesion) / 2), 1]
    # One click removes it: five steps with clicks of Dice 1, four trapezoids.
    assert cvpr25.values("lesion", "auc_dice") == cvpr25.values("lesion", "auc_nsd") == [4]
    assert cvpr25.values(ALL_CLASSES, "final_nsd") == [1, 1]


def test_the_box_is_left_out_where_told(folders: Folders) -> None:  # noqa: F811
    study = study_challenge("cvpr25", folders, without_box=["organ"])
    assert study.values("organ", "dice", 0) == [0, 0]
    assert study.values(ALL_CLASSES, "dice", 0) == [pytest.approx(1 / 3), 0]
    assert study.values("organ", "dice", 5) == [1, 1]
    with pytest.raises(DatasetError, match=r"--without-box vessel: no such class; the model has organ, lesion"):
        study_challenge("cvpr25", folders, without_box=["organ", "vessel"])


def test_a_class_that_takes_too_long_scores_nothing(
    folders: Folders,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All that is timed takes 25 s: the image, of which each of case a's classes bears half, and each prompt, of which
    # the organ needs one and the lesion two.
    ticks = count(0, 25)
    monkeypatch.setattr(clicks, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert study_challenge("cvpr25", folders).late == []
    ticks = count(0, 41)
    study = study_challenge("cvpr25", folders)
    # 20.5 + 41 s for the organ of case a, 20.5 + 82 for its lesion.
    assert study.late == ["a, lesion (102 s)"]
    assert study.values("lesion", "dice", 5) == study.values("lesion", "auc_nsd") == [0]
    assert study.values(ALL_CLASSES, "final_dice") == [0.5, 1]
    assert "Too late, counted as 0: a, lesion (102 s)." in format_challenge(study)


def test_area_under_the_curve_leaves_out_the_box() -> None:
    from sam3dnet.evaluation.challenges import CHALLENGES, _figures

    case: Any = SimpleNamespace(image=SimpleNamespace(name="a"))
    found = {
        f.metric: f.value for f in _figures(CHALLENGES["cvpr25"], case, "organ", {"dice": [0.9, 0, 0.5, 0.5, 1, 0.75]})
    }
    # 0.25 + 0.5 + 0.75 + 0.875
    assert (found["auc_dice"], found["final_dice"]) == (2.375, 0.75)
    found = {
        f.metric: f.value
        for f in _figures(CHALLENGES["autopet4"], case, "organ", {"false_positive_ml": [8.0, 4.0, *[0.0] * 9]})
    }
    assert found["auc_false_positive_ml"] == 8


def test_autopet4_counts_absent_classes_without_dice(folders: Folders) -> None:  # noqa: F811
    study = study_challenge("autopet4", folders)
    assert study.classes == ("organ", "lesion")
    assert study.absent == {"lesion": 1}
    present, absent = study.values("lesion", "dice", 10)
    assert 0 < present <= 1
    assert math.isnan(absent)
    assert [math.isnan(value) for value in study.values("lesion", "auc_dice")] == [False, True]
    false_positive = 18 * 3.0 * 0.7 * 1.1 / 1000
    assert study.values("lesion", "false_positive_ml", 0) == [pytest.approx(false_positive)] * 2
    assert study.values("lesion", "final_false_negative_ml") == [0, 0]
    # The same clicks again, whatever the model answers.
    assert study_challenge("autopet4", folders).figures[:40] == study.figures[:40]
    assert FakeSession.images[0].shape[1:] == SHAPE


def test_tables_and_files_tell_units(cvpr25: ChallengeStudy, tmp_path: Path) -> None:
    text = format_challenge(cvpr25)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "class protocol figure unit mean 95 % interval median cases"
    assert "lesion cvpr25 auc_dice Dice x click steps, at most 4 4.000 - 4.000 1" in lines
    steps = "lesion box, then corrective one-by-one dice Dice from 0 to 1 mean 0.667 1.000 1.000 1.000 1.000 1.000 1"
    assert steps in lines
    assert "lesion: not in 1 case(s)." in lines
    json_file, csv_file = write_challenge(cvpr25, tmp_path / "out")
    content = json.loads(json_file.read_text())
    assert content["units"]["nsd"] == "NSD from 0 to 1 at 2 mm"
    assert "MONAI" in content["surfaces"]
    (found,) = [
        row for row in content["summary"] if (row["class"], row["metric"], row["step"]) == ("lesion", "dice", "box")
    ]
    assert (found["median"], found["count"]) == (pytest.approx(2 / 3), 1)
    with csv_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Cases b and a: all classes and organ twice, lesion once; two metrics, six steps and two sums.
    assert len(rows) == 5 * 2 * 8
    assert {"protocol": "cvpr25", "given": "one-by-one", "unit": "NSD x click steps, at most 4"}.items() <= next(
        row for row in rows if row["metric"] == "auc_nsd"
    ).items()
    assert challenge_folder(cvpr25).parts[-2:] == ("fold_1", "clicks_cvpr25")


def test_units_of_volumes(folders: Folders, tmp_path: Path) -> None:  # noqa: F811
    study = study_challenge("autopet4", folders)
    lines = [" ".join(line.split()) for line in format_challenge(study).splitlines()]
    assert any(line.startswith("lesion autopet4 auc_false_positive_ml ml x click steps ") for line in lines)
    assert any(line.startswith("lesion autopet4 auc_dice Dice x click steps, at most 10 ") for line in lines)
    _, csv_file = write_challenge(study, tmp_path)
    with csv_file.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "dice" and row["class"] == "lesion"]
    # What is undefined is left empty.
    assert sum(row["value"] == "" for row in rows) == 11
    assert {row["step"] for row in rows} >= {"0 pairs", "1 pair", "10 pairs"}


@pytest.mark.parametrize("name", ["cvpr25", "autopet4"])
def test_overlapping_regions_of_a_model_are_prompted(name: Any, tmp_path: Path) -> None:
    """With the session itself, and classes of which one lies within the other."""
    from fake_prompts import make_promptable_model
    from tiny_models import REGIONS

    labels = np.zeros((8, 12, 10), np.uint16)
    labels[2:6, 3:9, 2:7] = 1
    labels[3:5, 4:7, 3:6] = 700
    image = labels / 350 + np.random.default_rng(0).normal(0, 0.05, labels.shape)
    for place, file, voxels in (("images", "a_0000", image.astype(np.float32)), ("labels", "a", labels)):
        (tmp_path / place).mkdir()
        write_volume(voxels, tmp_path / place / f"{file}.nii.gz", SPACING_MM)
    make_promptable_model(tmp_path / "results", labels=REGIONS)
    places = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    study = study_challenge(name, places, images=tmp_path / "images", labels=tmp_path / "labels", device="cpu")
    assert study.failed == {}
    last = {"cvpr25": 5, "autopet4": 10}[name]
    for region in ("whole", "core"):
        (value,) = study.values(region, "dice", last)
        assert 0 < value <= 1
        assert study.values(region, "final_dice") == [value]
    assert DATASET not in str(study.model)
