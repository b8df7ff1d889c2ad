"""Objects that are too small to be real: the volume is chosen by validation, and what is that small goes."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from tiny_models import LABELS, labels_of, make_model

from sam3dnet.cli.info import info
from sam3dnet.errors import PlanError
from sam3dnet.evaluation.metrics import dice_coefficient
from sam3dnet.inference.postprocessing import (
    FILE,
    Postprocessing,
    choose_min_volumes,
    read_postprocessing,
    write_postprocessing,
    write_postprocessing_of_fold,
)
from sam3dnet.inference.small_objects import (
    MOST_OBJECTS,
    MOST_VOLUMES,
    MinVolume,
    ObjectsOfCase,
    ObjectsOfClass,
    choose_min_volume,
    dice_of,
    measure_objects,
)
from sam3dnet.preprocessing.reading import reader_named

READER = reader_named("SimpleITKIO", {"file_ending": ".nii.gz"})


def case(truth, *objects):
    """A case with objects of (mm³, mm³ of it that are right)."""
    volumes, right = zip(*sorted(objects, reverse=True), strict=True) if objects else ((), ())
    real = [int(one > 0) for one in right]
    return ObjectsOfCase(
        truth_mm3=truth,
        volume_mm3=volumes,
        counted_mm3=volumes,
        right_mm3=right,
        real=real,
        false=[1 - one for one in real],
    )


FOUND, EMPTY = case(100, (100, 80), (5, 0)), case(0, (9, 0), (7, 0))


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        pytest.param([FOUND, EMPTY, EMPTY, FOUND], 9, id="false ones alone in a case without the class"),
        pytest.param([FOUND, EMPTY, case(0, (20, 0)), FOUND], 9, id="what any one case less would choose, too"),
        pytest.param([FOUND, EMPTY, EMPTY], 9, id="three cases"),
        pytest.param([FOUND, EMPTY], None, id="too few cases"),
        pytest.param([FOUND, EMPTY, case(0), case(0)], None, id="what has nothing of the class is no case"),
        pytest.param([case(100, (100, 80))] * 4, None, id="nothing false"),
        pytest.param([case(9, (9, 9), (7, 0))] * 2 + [case(6, (6, 6), (8, 0))] * 2, None, id="real ones are as small"),
        pytest.param([case(1e4, (1e4, 9e3), (5, 0))] * 4, None, id="too little to gain"),
        pytest.param([FOUND, FOUND, FOUND, case(0, (50, 0))], 5, id="no case decides alone"),
        pytest.param([case(100, (100, 80))] * 3 + [EMPTY], None, id="one case alone"),
        pytest.param([FOUND, *[EMPTY] * 3, *[case(30, (30, 20), (3, 2))] * 2], 9, id="few real ones go"),
        pytest.param(
            [EMPTY, EMPTY] + [case(100, (100, 80), (4, 4), (3, 3))] * 2, None, id="too many real ones would go"
        ),
        pytest.param([], None, id="no case"),
    ],
)
def test_the_volume_is_what_helps_cases_that_did_not_choose_it(cases, expected):
    assert choose_min_volume(cases) == expected


def test_of_very_many_volumes_some_are_tried():
    volumes = np.random.default_rng(3).uniform(1, 9, (8, 3 * MOST_VOLUMES))
    cases = [case(100, (100, 100), *((volume, 0) for volume in of_case)) for of_case in volumes]
    assert choose_min_volume(cases) == pytest.approx(9, rel=0.01)


def test_dice_before_and_after():
    assert dice_of([FOUND, EMPTY, case(0)], 9) == pytest.approx(((160 / 205 + 0) / 2, (160 / 200 + 1) / 2))
    assert dice_of([EMPTY], 8) == (0, 0)


def write(folder, name, labels_ZYX, spacing=(1.0, 1.0, 1.0)):
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(labels_ZYX)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    return folder / f"{name}.nii.gz"


def random_pair(rng, folder, name, spacing):
    prediction = rng.choice(4, (6, 12, 14), p=(0.9, 0.04, 0.03, 0.03)).astype(np.uint8)
    truth = rng.choice(4, (6, 12, 14), p=(0.9, 0.04, 0.03, 0.03)).astype(np.uint8)
    return prediction, truth, write(folder / "p", name, prediction, spacing), write(folder / "t", name, truth, spacing)


@pytest.mark.parametrize("ignored", [None, 3])
def test_objects_are_measured_in_mm3_as_what_is_left_has_its_dice(tmp_path, ignored):
    rng = np.random.default_rng(4)
    spacings = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9)]
    made = [random_pair(rng, tmp_path, str(number), spacing) for number, spacing in enumerate(spacings)]
    made[1][1][made[1][1] == 2] = 0
    write(tmp_path / "t", "1", made[1][1], spacings[1])
    classes = {"organ": (1,), "lesion": (2,), "left out": (3,)}
    found = measure_objects([pair[2:] for pair in made], classes, [(3,)], READER, ignored)
    assert [one.labels for one in found] == [(1,), (2,)]
    for one in found:
        for (prediction, truth, *_), spacing, of_case in zip(made, spacings, one.cases, strict=True):
            voxel = np.prod(spacing)
            for volume in (0, 1.5, 2, 4 * voxel, 100):
                goes = Postprocessing(min_volumes=(MinVolume(labels=one.labels, up_to_mm3=volume),))
                left = goes.applied_to(prediction, spacing)
                annotated = truth != (-1 if ignored is None else ignored)
                dice = dice_coefficient((left == one.labels[0]) & annotated, (truth == one.labels[0]) & annotated)
                assert of_case.dice_up_to(np.array([volume], float)) == pytest.approx([dice])
                assert (left[prediction != one.labels[0]] == prediction[prediction != one.labels[0]]).all()
            objects, count = ndimage.label(prediction == one.labels[0], np.ones((3, 3, 3)))
            sizes = np.bincount(objects.ravel())[1:]
            assert of_case.volume_mm3 == pytest.approx(sorted(sizes * voxel, reverse=True))
            touching = {*objects[(truth == one.labels[0]) & (objects > 0)]}
            real, false = (float(part[0]) for part in of_case.gone(np.array([1e9])))
            unknown = sum((truth[objects == number] == ignored).all() for number in range(1, count + 1))
            assert real == len(touching) and real + false == count - unknown
    assert found[1].cases[1].truth_mm3 == 0 and found[1].cases[0].truth_mm3 > 0


def test_the_smallest_of_very_many_objects_count_as_one(tmp_path):
    prediction = np.zeros((3, 2 * MOST_OBJECTS + 20, 6), np.uint8)
    prediction[1, ::2, 1] = 1
    prediction[1, :40:2, 2] = 1  # larger ones
    truth = np.zeros_like(prediction)
    truth[1, -2, 1] = 1
    pair = write(tmp_path / "p", "a", prediction), write(tmp_path / "t", "a", truth)
    ((of_case,),) = (one.cases for one in measure_objects([pair], {"organ": (1,)}, [], READER))
    count = MOST_OBJECTS + 10
    assert len(of_case.volume_mm3) == MOST_OBJECTS + 1 and of_case.volume_mm3[-1] == 1
    assert of_case.real[-1] == 1 and of_case.false[-1] == 9 and sum(of_case.real) + sum(of_case.false) == count
    assert sum(of_case.counted_mm3) == count + 20 and sum(of_case.right_mm3) == 1
    expected = dice_coefficient(prediction == 1, truth == 1)
    assert of_case.dice_up_to(np.array([0.5, 1, 2])) == pytest.approx([expected, 0, 0])


def test_classes_that_share_labels_have_no_holes_made_into_them(tmp_path):
    prediction = np.ones((2, 3, 3), np.uint8)
    pair = write(tmp_path / "p", "a", prediction), write(tmp_path / "t", "a", prediction)
    regions = {"whole": (1, 2), "core": (2,), "other": (3,)}
    assert [one.labels for one in measure_objects([pair], regions, [], READER)] == [(3,)]
    assert measure_objects([pair], {"whole": (1, 2), "core": (2,)}, [], READER) == []


def test_the_largest_is_kept_first_and_what_is_too_small_goes_in_mm3():
    labels_ZYX = np.zeros((4, 6, 9), np.uint8)
    labels_ZYX[0, 0, :3], labels_ZYX[3, 4:, 0], labels_ZYX[0, 4:, 6:] = 1, 1, 2
    labels_ZYX[3, 0, 8] = 2
    done = Postprocessing(((1,),), (MinVolume(labels=(1,), up_to_mm3=3), MinVolume(labels=(2,), up_to_mm3=1)))
    before = labels_ZYX.copy()
    values, counts = np.unique(done.applied_to(labels_ZYX, (1, 1, 1)), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {0: labels_ZYX.size - 6, 2: 6}
    assert np.count_nonzero(done.applied_to(labels_ZYX, (1, 1, 1.1))) == 10  # voxels are larger, and nothing too small
    assert np.count_nonzero(done.applied_to(labels_ZYX, (0.5, 0.5, 0.5))) == 0
    np.testing.assert_array_equal(labels_ZYX, before)


def of_class(*cases, labels=(2,)):
    return ObjectsOfClass(labels=labels, cases=cases)


def test_the_cases_of_all_folds_choose_together(tmp_path):
    described = {"labels": LABELS, "file_ending": ".nii.gz"}
    folders = [tmp_path / f"fold_{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    few = write_postprocessing_of_fold(folders[0], [], described, [of_class(FOUND, EMPTY)])
    assert not few and few.in_words(described) == ""
    write_postprocessing_of_fold(folders[1], [], described, [of_class(EMPTY, FOUND), of_class(EMPTY, labels=(1,))])
    chosen = read_postprocessing(tmp_path, described, folders)
    assert chosen == Postprocessing(min_volumes=(MinVolume(labels=(2,), up_to_mm3=9),))
    assert chosen.in_words(described) == "takes out objects of lesion up to 9 mm3"
    write_postprocessing_of_fold(folders[2], [], described)  # as an earlier version, which measured no objects
    content = json.loads((folders[2] / FILE).read_text())
    del content["objects"]
    (folders[2] / FILE).write_text(json.dumps(content))
    assert not read_postprocessing(tmp_path, described, folders)
    write_postprocessing(tmp_path, chosen, described, {})
    assert read_postprocessing(tmp_path, described, folders) == chosen
    both = Postprocessing(((1,),), chosen.min_volumes)
    assert (
        both.in_words(described) == "keeps the largest component of organ, then takes out objects of lesion up to 9 mm3"
    )


@pytest.mark.parametrize(
    "objects",
    [
        [{"labels": [], "cases": []}],
        [{"labels": [1], "cases": [{"truth_mm3": -1}]}],
        [{"labels": [1], "cases": [{"truth_mm3": "many"}]}],
        {"labels": [1]},
    ],
)
def test_damaged_objects_of_a_fold_say_what_helps(tmp_path, objects):
    described = {"labels": LABELS}
    write_postprocessing_of_fold(tmp_path, [], described)
    content = json.loads((tmp_path / FILE).read_text()) | {"objects": objects}
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(PlanError, match="validate the fold again, sam3d_train --validate-only, or predict with"):
        read_postprocessing(tmp_path / "model", described, [tmp_path])


def test_predictions_follow_and_are_made_anew(predict, tmp_path):
    model = make_model(tmp_path / "nnUNet_results", labels=LABELS)
    raw = {name: labels_of(tmp_path / "out" / f"{name}.nii.gz") for name in predict(model=model).written}
    described = json.loads((model / "dataset.json").read_text())
    largest = max(_largest_mm3(tmp_path / "out" / f"{name}.nii.gz", 2) for name in raw)
    false = [case(0, (largest * 0.9, 0))] * 4
    write_postprocessing_of_fold(model / "fold_0", [], described, [of_class(*false)])
    assert predict(model=model).written == list(raw)
    assert predict(model=model).written == []
    changed = False
    for name, labels_ZYX in raw.items():
        file = tmp_path / "out" / f"{name}.nii.gz"
        spacing = sitk.ReadImage(str(file)).GetSpacing()
        goes = MinVolume(labels=(2,), up_to_mm3=largest * 0.9)
        left = Postprocessing(min_volumes=(goes,)).applied_to(labels_ZYX, spacing)
        np.testing.assert_array_equal(labels_of(file), left)
        changed |= bool((left != labels_ZYX).any())
    assert changed and any((labels_of(tmp_path / "out" / f"{name}.nii.gz") == 2).any() for name in raw)
    (line,) = (line for line in info(root=tmp_path) if model.name in line)
    assert "folds 0; takes out objects of lesion up to" in line


def _largest_mm3(file, label):
    image = sitk.ReadImage(str(file))
    objects, _ = ndimage.label(sitk.GetArrayFromImage(image) == label, np.ones((3, 3, 3)))
    return float(np.bincount(objects.ravel())[1:].max(initial=0) * np.prod(image.GetSpacing()))


def test_classes_of_which_none_go_are_left_out():
    assert choose_min_volumes([of_class(FOUND, labels=(1,)), of_class(FOUND, EMPTY, EMPTY)]) == (
        MinVolume(labels=(2,), up_to_mm3=9),
    )
