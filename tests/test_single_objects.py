"""Classes that are one object in the labels: named by the plan, kept by what validation measures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_models import LABELS, REGIONS, labels_of, make_model

from sam3dnet.cli.info import info
from sam3dnet.errors import PlanError
from sam3dnet.evaluation.metrics import dice_coefficient
from sam3dnet.inference.calibration import FILE as CALIBRATION_FILE
from sam3dnet.inference.calibration import read_validated
from sam3dnet.inference.postprocessing import (
    FILE,
    Measured,
    Postprocessing,
    forget_postprocessing,
    read_postprocessing,
    write_postprocessing,
    write_postprocessing_of_fold,
)
from sam3dnet.planning.objects import mask_of
from sam3dnet.planning.single_objects import find_single_objects, single_objects_decision
from sam3dnet.preprocessing.folders import LABELS_FOLDER
from sam3dnet.preprocessing.reading import reader_named
from sam3dnet.training.single_objects import measure_single_objects, single_objects_of, whole_foreground
from sam3dnet.training.validation import _calibrate

OF_ORGAN, OF_LESION = (1,), (2,)
SPACING = (1.0, 1.0, 1.0)  # mm


def measured(labels, before, after, cases=1):
    return Measured(keep_largest=labels, cases=cases, dice_before=before, dice_after=after)


def measures(largest, voxels):
    return {"largest_voxels": largest, "voxels": voxels}


def test_the_plan_names_classes_whose_largest_object_is_nearly_all_of_them_nearly_everywhere():
    classes = {
        "organ": measures([100, 95, 20], [100, 100, 20]),
        "metastases": measures([100, 50, 20], [100, 100, 20]),
        "one bad label map of twenty": measures([10] * 19 + [1], [10] * 20),
        "one bad label map of nineteen": measures([10] * 18 + [1], [10] * 19),
        "never there": measures([], []),
    }
    named = find_single_objects(classes)
    assert named == ["organ", "one bad label map of twenty"]
    assert single_objects_decision(named).value == named


def test_it_is_read_from_plans_old_and_new():
    described = {"labels": REGIONS, "regions_class_order": [1, 700]}
    assert single_objects_of({}, described) == single_objects_of({"sam3d": {}}, described) == {}
    plans = {"sam3d": {"single_objects": ["whole", "renamed since"]}}
    assert single_objects_of(plans, described) == {"whole": (1, 700)}


def write(folder, name, labels_ZYX):
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(labels_ZYX), str(folder / f"{name}.nii.gz"))
    return folder / f"{name}.nii.gz"


def test_dice_is_measured_before_and_after_over_all_cases_that_have_the_class_or_were_given_it(tmp_path):
    rng = np.random.default_rng(5)
    classes = {"whole": (1, 2), "organ": OF_ORGAN, "lesion": OF_LESION, "nowhere": (3,)}
    truths = [rng.choice(3, (5, 9, 7), p=(0.8, 0.1, 0.1)).astype(np.uint8) for _ in range(3)]
    predictions = [rng.choice(3, (5, 9, 7), p=(0.9, 0.05, 0.05)).astype(np.uint8) for _ in range(3)]
    predictions[1][predictions[1] == 2] = 0  # missed
    truths[2][truths[2] == 1] = 0  # made up
    predictions[0][predictions[0] == 2] = truths[2][truths[2] == 2] = predictions[2][predictions[2] == 2] = 0
    pairs = [
        (write(tmp_path / "p", str(number), prediction), write(tmp_path / "t", str(number), truth))
        for number, (prediction, truth) in enumerate(zip(predictions, truths, strict=True))
    ]
    reader = reader_named("SimpleITKIO", {"file_ending": ".nii.gz"})
    found = {one.keep_largest: one for one in measure_single_objects(pairs, classes, classes, reader)}
    assert found.keys() == {(1, 2), (1,), (2,)}
    assert found[2,].cases == 2
    for labels, one in found.items():
        masks = [
            (
                mask_of(prediction, labels),
                mask_of(Postprocessing((labels,)).applied_to(prediction, SPACING), labels),
                true,
            )
            for prediction, truth in zip(predictions, truths, strict=True)
            if (true := mask_of(truth, labels)).any() or mask_of(prediction, labels).any()
        ]
        before = [dice_coefficient(raw, true) for raw, _, true in masks]
        after = [dice_coefficient(kept, true) for _, kept, true in masks]
        assert one.cases == len(masks)
        assert one.dice_before == pytest.approx(np.mean(before))
        assert one.dice_after == pytest.approx(np.mean(after))


def test_all_classes_together_are_asked_for_where_they_are_one_object(tmp_path):
    heart, apart = np.zeros((2, 4, 5, 20), np.uint8)
    heart[:, 1:3, 2:4], heart[:, 1:3, 4:6], heart[0, 3, 19] = 1, 2, 2  # but for a stray voxel
    apart[:, 1:3, 2:4], apart[:, 1:3, 8:10] = 1, 2
    reader = reader_named("SimpleITKIO", {"file_ending": ".nii.gz"})
    described = {"labels": {"background": 0, "myocardium": 1, "LV": 2}}

    def asked(truths, labels=described):
        files = [write(tmp_path, str(number), truth) for number, truth in enumerate(truths)]
        return whole_foreground(files, labels, reader)

    assert asked([heart, heart, np.zeros_like(heart)]) == {"": (1, 2)}
    assert asked([heart] * 60 + [apart]) == {"": (1, 2)}
    assert asked([heart, apart]) == asked([np.zeros_like(heart)]) == asked([]) == {}
    assert asked([heart], {"labels": {"background": 0, "whole": [1, 2], "LV": 2}, "regions_class_order": [1, 2]}) == {}
    assert asked([heart], {"labels": {"background": 0, "LV": 1}}) == {}


def test_an_aorta_larger_than_the_ventricle_that_it_is_taken_for_goes_with_all_that_is_not_the_heart(tmp_path):
    truth = np.zeros((6, 8, 20), np.uint8)
    truth[1:5, 1:5, 1:3], truth[1:5, 1:5, 3:5] = 1, 2
    prediction = np.where(truth == 2, 0, truth)
    prediction[2:4, 1:5, 3:5] = prediction[2:4, 5:, 15:] = 2  # too small, and the aorta
    prediction[1:3, 1:4, 2:4], prediction[2:4, 2:4, 3:5] = 1, 2
    classes = {"": (1, 2), "myocardium": (1,), "LV": (2,)}
    pairs = [(write(tmp_path / "p", "a", prediction), write(tmp_path / "t", "a", truth))]
    found = measure_single_objects(pairs, classes, {}, reader_named("SimpleITKIO", {"file_ending": ".nii.gz"}))
    chosen = write_postprocessing_of_fold(tmp_path, found, {"labels": {"background": 0, "myocardium": 1, "LV": 2}})
    assert chosen.keep_largest == ((1, 2), (1,))
    left = chosen.applied_to(prediction, SPACING)
    assert (
        not left[:, 5:, 15:].any() and (left == 2).sum() > 0 and (prediction[:, 5:, 15:] == 2).sum() > (left == 2).sum()
    )


def test_a_small_class_that_lies_apart_is_not_given_for_the_dice_of_all_together(tmp_path):
    truth, classes = np.zeros((20, 30, 40), np.uint8), {"organ": (1,), "gland": (2,)}
    truth[2:14, 2:22, 2:30], truth[16:18, 25:28, 35:38] = 1, 2
    island = truth.copy()
    island[0:2, 26:30, 0:30] = 1
    pairs = [
        (write(tmp_path / "p", str(number), prediction), write(tmp_path / "t", str(number), truth))
        for number, prediction in enumerate((truth, island))
    ]
    reader, steps = reader_named("SimpleITKIO", {"file_ending": ".nii.gz"}), {"": (1, 2), "organ": (1,)}
    found = measure_single_objects(pairs, steps, classes, reader)
    assert (found[0].of_classes["gland"].dice_before, found[0].of_classes["gland"].dice_after) == (1, 0)
    assert found[0].dice_after > found[0].dice_before
    described = {"labels": {"background": 0, "organ": 1, "gland": 2}}
    assert write_postprocessing_of_fold(tmp_path, found, described).keep_largest == ((1,),)
    assert read_postprocessing(tmp_path / "none", described, [tmp_path]).keep_largest == ((1,),)


def test_a_part_whose_objects_go_leaves_no_holes_in_the_whole(tmp_path):
    truth = np.zeros((6, 12, 20), np.uint8)
    truth[1:5, 1:11, 1:19], truth[2:4, 3:6, 3:6], truth[2:4, 3:5, 14:16] = 1, 2, 2
    classes = {"whole": (1, 2), "core": (2,)}
    pairs = [(write(tmp_path / "p", "a", truth), write(tmp_path / "t", "a", truth * (truth != 2) + (truth == 2)))]
    (found,) = measure_single_objects(
        pairs, {"core": (2,)}, classes, reader_named("SimpleITKIO", {"file_ending": ".nii.gz"})
    )
    whole = found.of_classes["whole"]
    assert whole.dice_before == 1 and whole.dice_after == pytest.approx(2 * (720 - 8) / (720 + 720 - 8))
    assert found.dice_after >= found.dice_before
    described = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    assert not write_postprocessing_of_fold(tmp_path, [found], described).keep_largest


def test_confidences_are_calibrated_on_what_postprocessing_leaves(tmp_path):
    truth, reader = np.zeros((6, 8, 20), np.uint8), reader_named("SimpleITKIO", {"file_ending": ".nii.gz"})
    truth[1:5, 1:5, 1:5] = 1
    prediction = truth.copy()
    prediction[0:2, 6:8, 10:14] = 1
    output, base = tmp_path / "fold_0" / "validation", tmp_path / "base"
    output.mkdir(parents=True), base.mkdir()
    write(output, "a", prediction), write(base / LABELS_FOLDER, "a", truth)
    objects = [
        {"certainty": 0.9, "volume_ml": 0.064, "at": [1, 1, 1], "real": True},
        {"certainty": 0.5, "volume_ml": 0.016, "at": [10, 6, 0], "real": False},
    ]
    organ = {"expected_dice": 0.9, "volume_ml": 0.08, "expected_ml": 0.07, "objects": objects, "true_dice": 128 / 144}
    (output / "a_confidence.json").write_text(json.dumps({"classes": {"organ": organ}}))
    dataset_json = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    told = []
    trainer = SimpleNamespace(
        fold=0, dataset_json=dataset_json, preprocessed_dataset_folder_base=str(base), print_to_log_file=told.append
    )
    model = SimpleNamespace(reader=reader, labels=SimpleNamespace(ignore_label=None))
    _calibrate(trainer, model, output, Postprocessing(((1,),)))
    found = read_validated([output.parent])
    assert found.dice.found == [1] and found.objects.found == [1] and "1 objects" in told[0]
    assert found.dice.said == [pytest.approx(2 * 57.6 / (64 + 57.6 + 70 - 65.6))]
    for postprocessed, objects in ((["organ"], [1]), ([], [1, 0])):  # users may have label maps without it, too
        assert read_validated([output.parent], postprocessed).objects.found == objects
    _calibrate(trainer, model, output, Postprocessing())
    found = read_validated([output.parent])
    assert (found.dice.said, found.objects.found) == ([0.9], [1, 0])
    (output.parent / CALIBRATION_FILE).unlink()
    trainer.fold = "all"
    _calibrate(trainer, model, output, Postprocessing())
    assert not (output.parent / CALIBRATION_FILE).exists() and len(told) == 2


def test_what_nobody_has_annotated_counts_nowhere_but_may_be_the_largest(tmp_path):
    truth, prediction = np.zeros((3, 4, 12), np.uint8), np.zeros((3, 4, 12), np.uint8)
    truth[:, :, 8:] = 9  # to be ignored
    truth[:, :2, 4:6] = prediction[:, :2, 4:6] = prediction[0, 3, 0] = 1
    pairs = [(write(tmp_path / "p", "a", prediction), write(tmp_path / "t", "a", truth))]
    reader = reader_named("SimpleITKIO", {"file_ending": ".nii.gz"})
    (found,) = measure_single_objects(pairs, {"organ": (1,)}, {"organ": (1,)}, reader, 9)
    assert (found.dice_before, found.dice_after) == (pytest.approx(24 / 25), 1)
    prediction[:, :, 8:] = 1
    pairs = [(write(tmp_path / "p", "a", prediction), write(tmp_path / "t", "a", truth))]
    (found,) = measure_single_objects(pairs, {"organ": (1,)}, {"organ": (1,)}, reader, 9)
    assert (found.dice_before, found.dice_after) == (pytest.approx(24 / 25), 0)  # the largest lies elsewhere
    assert not measure_single_objects(
        [(write(tmp_path / "p", "b", prediction * (truth == 9)), write(tmp_path / "t", "b", truth * (truth == 9)))],
        {"organ": (1,)},
        {},
        reader,
        9,
    )


@pytest.mark.parametrize("labels_ZYX", [np.zeros((3, 4, 5), np.uint8), np.full((3, 4, 5), 2, np.uint8)])
def test_nothing_is_taken_from_a_map_without_the_class_or_with_it_everywhere(labels_ZYX):
    before = labels_ZYX.copy()
    np.testing.assert_array_equal(Postprocessing(((1,), (1, 2), (2, 700))).applied_to(labels_ZYX, SPACING), before)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_is_what_nnunets_function_leaves(seed):
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    labels_ZYX = np.random.default_rng(seed).choice(4, (6, 7, 8), p=(0.85, 0.05, 0.05, 0.05))
    expected, given = labels_ZYX, labels_ZYX.copy()
    steps = ((1, 2, 3), (2, 3), (3,), (1,))
    for labels in steps:
        expected = remove_all_but_largest_component_from_segmentation(expected, labels)
    np.testing.assert_array_equal(Postprocessing(steps).applied_to(labels_ZYX, SPACING), expected)
    np.testing.assert_array_equal(labels_ZYX, given)
    assert (expected != given).any()


@pytest.fixture
def folds(tmp_path):
    """Folders of a model and its folds, and how its post-processing is read."""
    described = {"labels": LABELS}
    of_folds = [tmp_path / f"fold_{fold}" for fold in range(3)]
    for folder in of_folds:
        folder.mkdir()

    def read(*chosen):
        return read_postprocessing(tmp_path, described, [of_folds[fold] for fold in chosen]).keep_largest

    return SimpleNamespace(model=tmp_path, described=described, folders=of_folds, read=read)


def test_of_several_folds_the_sum_over_their_cases_counts_and_what_only_some_measured_does_not(folds):
    write_postprocessing_of_fold(
        folds.folders[0], [measured(OF_ORGAN, 0.5, 0.5), measured(OF_LESION, 0.5, 0.6, 2)], folds.described
    )
    write_postprocessing_of_fold(
        folds.folders[1], [measured(OF_ORGAN, 0.5, 0.9), measured(OF_LESION, 0.5, 0.41, 3)], folds.described
    )
    assert folds.read(0) == (OF_ORGAN, OF_LESION)
    assert folds.read(1) == folds.read(0, 1) == folds.read(0, 1, 2) == (OF_ORGAN,)
    assert folds.read(2) == folds.read() == ()
    write_postprocessing_of_fold(folds.folders[2], [measured(OF_LESION, 0.1, 0.9, 9)], folds.described)
    assert folds.read(0, 1, 2) == (OF_LESION,)


def test_the_widest_goes_first_and_what_find_best_decided_goes_before_all(folds):
    said = [measured(OF_LESION, 0.5, 0.6), measured((1, 2), 0.5, 0.6), measured(OF_ORGAN, 0.5, 0.4)]
    chosen = write_postprocessing_of_fold(folds.folders[0], said, folds.described)
    assert chosen.keep_largest == folds.read(0) == ((1, 2), OF_LESION)
    write_postprocessing(folds.model, Postprocessing(), folds.described, {})
    assert folds.read(0) == ()
    forget_postprocessing(folds.model, folds.folders[0])
    assert folds.read(0) == ()


def test_labels_that_the_model_lacks_are_refused(folds):
    write_postprocessing(folds.model, Postprocessing(((1, 7),)), folds.described, {})
    with pytest.raises(PlanError, match=r"speaks of the labels \[7\], expected some of \[1, 2\]; run sam3d_find_best"):
        folds.read(0)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        {"measured": [{"keep_largest": [1]}]},
        {"labels": {"background": 0}},
        {"measured": [{"keep_largest": [1], "cases": 2, "dice_before": 0.5, "dice_after": float("nan")}]},
        {"measured": [{"keep_largest": [7], "cases": 2, "dice_before": 0.5, "dice_after": 0.6}]},
        {"objects": [{"labels": [7], "cases": []}]},
    ],
)
def test_a_damaged_file_of_a_fold_says_what_helps(folds, content):
    file = folds.folders[1] / FILE
    write_postprocessing_of_fold(folds.folders[1], [], folds.described)
    file.write_text(content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content))
    with pytest.raises(PlanError, match=rf"fold_1.{FILE}.*validate the fold again, sam3d_train --validate-only, or"):
        folds.read(0, 1)


def test_predictions_and_info_follow_the_folds(predict, tmp_path):
    model = make_model(tmp_path / "nnUNet_results", labels=LABELS)
    raw = {name: labels_of(tmp_path / "out" / f"{name}.nii.gz") for name in predict(model=model).written}
    steps = (tuple(LABELS.values())[1:], (2,))
    described = json.loads((model / "dataset.json").read_text())
    write_postprocessing_of_fold(model / "fold_0", [measured(labels, 0.5, 0.5) for labels in steps], described)
    assert predict(model=model).written == list(raw)
    for name, labels_ZYX in raw.items():
        expected = Postprocessing(steps).applied_to(labels_ZYX, SPACING)
        np.testing.assert_array_equal(labels_of(tmp_path / "out" / f"{name}.nii.gz"), expected)
    (line,) = (line for line in info(root=tmp_path) if model.name in line)
    assert "folds 0; keeps the largest component of all that is organ or" in line
