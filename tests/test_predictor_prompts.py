"""Prediction of a folder with prompts for some of its cases."""

import json
import logging
import os

import numpy as np
import pytest
import SimpleITK as sitk
from fake_prompts import make_model_of_bright_objects, make_promptable_model, write_bright_objects, write_prompts
from scipy import ndimage
from tiny_models import labels_of, write_image

from sam3dnet.errors import PromptError

BOX = {"boxes": [{"min": [2, 3, 1], "max": [4, 5, 2]}]}
CLICK = {"points": [{"at": [3, 4, 2]}]}  # (i, j, k): voxel (2, 4, 3) of the array


@pytest.fixture
def model(tmp_path):
    return make_promptable_model(tmp_path / "results")


@pytest.fixture
def predicted(predict, tmp_path):
    """Predict without and then with these prompts; give the report and the label maps of before and after."""

    def run(cases, **options):
        predict(no_mirroring=True)
        before = {name: labels_of(tmp_path / "out" / f"{name}.nii.gz") for name in "abc"}
        report = predict(no_mirroring=True, prompts=write_prompts(tmp_path / "prompts.json", cases, **options))
        return report, before, {name: labels_of(tmp_path / "out" / f"{name}.nii.gz") for name in report.written}

    return run


def test_only_cases_with_prompts_are_made_anew_and_obey(predicted):
    report, before, after = predicted(
        {"b": {"lesion": CLICK | BOX, "organ": {"points": [{"at": [0, 8, 3], "positive": False}]}}}
    )
    assert (report.written, report.skipped, report.failed) == (["b"], ["a", "c"], {})
    assert after["b"][2, 4, 3] == 2
    assert after["b"][3, 8, 0] != 1
    assert (after["b"] != before["b"]).mean() > 0.02


def test_cases_without_prompts_are_the_same_to_the_bit(predict, tmp_path):
    predict()
    before = {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"}
    for name in "abc":
        (tmp_path / "out" / f"{name}.nii.gz").unlink()
    prompts = write_prompts(tmp_path / "p.json", {"b": {"lesion": BOX}, "c": {"lesion": {}}})
    assert predict(prompts=prompts).written == ["a", "b", "c"]
    after = {name: (tmp_path / "out" / f"{name}.nii.gz").read_bytes() for name in "abc"}
    assert (after["a"], after["c"]) == (before["a"], before["c"])
    assert after["b"] != before["b"]


def test_clicks_that_agree_are_the_automatic_mask_and_their_order_does_not_matter(predicted):
    _, before, _ = predicted({"a": {"lesion": CLICK}})
    inside, outside = np.argwhere(before["b"] == 2)[:3].tolist(), np.argwhere(before["b"] == 0)[:2].tolist()
    points = [{"at": [x, y, z]} for z, y, x in inside]
    points += [{"at": [x, y, z], "positive": False} for z, y, x in outside]
    _, before, after = predicted({"b": {"lesion": {"points": points}}})
    np.testing.assert_array_equal(after["b"], before["b"])
    points[-1]["positive"] = True
    _, _, after = predicted({"b": {"lesion": {"points": points}}})
    assert (after["b"] != before["b"]).any()
    _, _, again = predicted({"b": {"lesion": {"points": points[::-1]}}})
    np.testing.assert_array_equal(again["b"], after["b"])


def test_places_in_millimetres_boxes_and_masks_count(predicted, tmp_path, images):
    image = sitk.ReadImage(str(images / "a_0000.nii.gz"))
    mask = np.zeros((5, 9, 7), np.uint8)
    mask[1:3, 1:4, 1:3] = 1
    written = sitk.GetImageFromArray(mask)
    written.CopyInformation(image)
    sitk.WriteImage(written, str(tmp_path / "mask.nii.gz"))
    at = list(image.TransformIndexToPhysicalPoint((5, 7, 3)))
    low, high = (list(image.TransformIndexToPhysicalPoint(index)) for index in ((4, 6, 2), (6, 8, 4)))
    prompts = {"points": [{"at": at}], "boxes": [{"min": low, "max": high}], "mask": "mask.nii.gz"}
    report, before, after = predicted({"a": {"lesion": prompts}}, space="LPS")
    assert report.written == ["a"]
    assert after["a"][3, 7, 5] == 2
    assert (after["a"][1:3, 1:4, 1:3] == 2).mean() > 0.9
    assert (before["a"][1:3, 1:4, 1:3] == 2).mean() < 0.9


def test_a_rerun_with_other_prompts_makes_only_their_cases_anew(predict, tmp_path):
    file = tmp_path / "prompts.json"
    both = {"a": {"lesion": CLICK}, "b": {"lesion": CLICK}}
    assert predict(prompts=write_prompts(file, both)).written == ["a", "b", "c"]
    assert predict(prompts=write_prompts(file, both)).written == []
    other = {"points": [{"at": [3, 4, 2], "positive": False}]}
    assert predict(prompts=write_prompts(file, both | {"b": {"lesion": other}})).written == ["b"]
    assert predict().written == ["a", "b"]
    settings = json.loads((tmp_path / "out" / "sam3d_prediction.json").read_text())
    assert settings["prompts"] == {}


def test_a_mask_that_was_drawn_anew_counts_as_another_prompt(predict, tmp_path, images):
    prompts = write_prompts(tmp_path / "prompts.json", {"a": {"lesion": {"mask": "mask.nii.gz"}}})
    mask = sitk.ReadImage(str(images / "a_0000.nii.gz")) > 0.5
    sitk.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
    assert predict(prompts=prompts).written == ["a", "b", "c"]
    os.utime(tmp_path / "mask.nii.gz", (0, 0))
    assert predict(prompts=prompts).written == ["a"]


def test_prompts_of_other_images_in_the_folder_are_remembered(predict, images, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.json", {"a": {"lesion": CLICK}})
    predict(prompts=prompts)
    (images / "a_0000.nii.gz").rename(tmp_path / "a_0000.nii.gz")
    assert predict().written == []
    (tmp_path / "a_0000.nii.gz").rename(images / "a_0000.nii.gz")
    assert predict(prompts=prompts).written == []


def test_other_settings_still_make_all_anew(predict, tmp_path, caplog):
    prompts = write_prompts(tmp_path / "prompts.json", {"a": {"lesion": CLICK}})
    predict(prompts=prompts)
    with caplog.at_level(logging.WARNING):
        assert predict(prompts=prompts, step_size=0.9).written == ["a", "b", "c"]
    assert "with other settings" in caplog.text


def test_a_case_whose_prompts_do_not_fit_fails_alone(predict, tmp_path):
    far = {"points": [{"at": [3, 4, 2]}, {"at": [3, 400, 2]}]}
    report = predict(prompts=write_prompts(tmp_path / "p.json", {"b": {"organ": far}, "c": {"organ": CLICK}}))
    assert report.written == ["a", "c"]
    assert list(report.failed) == ["b"]
    assert 'case "b", class "organ": point (3, 400, 2) in voxel lies outside of the image' in report.failed["b"]


def test_unknown_cases_and_classes_stop_the_run_before_any_work(predict, tmp_path):
    predict()
    before = (tmp_path / "out" / "a.nii.gz").read_bytes()
    for cases, message in (
        ({"a": {"lesion": CLICK}, "nobody": {"lesion": CLICK}}, 'there is no case "nobody"'),
        ({"a": {"lesion": CLICK}, "b": {"background": CLICK}}, 'there is no class "background"'),
    ):
        with pytest.raises(PromptError, match=message):
            predict(prompts=write_prompts(tmp_path / "p.json", cases))
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == before
    assert predict().written == []


def test_prompts_of_an_image_that_cannot_be_predicted_are_no_unknown_case(predict, images, tmp_path):
    write_image(images / "b_0001.nii.gz")
    report = predict(prompts=write_prompts(tmp_path / "p.json", {"b": {"lesion": CLICK}}))
    assert list(report.failed) == ["b"]


def test_prompts_may_speak_of_images_of_other_parts(predict, tmp_path):
    prompts = write_prompts(tmp_path / "p.json", {"a": {"lesion": CLICK}, "b": {"lesion": CLICK}})
    assert [predict(prompts=prompts, num_parts=2, part_id=part).written for part in (0, 1)] == [["a", "c"], ["b"]]
    assert predict(prompts=prompts).written == []


def test_a_model_without_prompts_says_what_to_do(predict, tmp_path):
    from tiny_models import make_model

    predict()
    prompts = write_prompts(tmp_path / "p.json", {"a": {"lesion": CLICK}})
    with pytest.raises(PromptError, match=r"does not answer prompts; plan and train again .* without --no-prompts"):
        predict(model=make_model(tmp_path / "other"), prompts=prompts)
    assert predict().skipped == ["a", "b", "c"]


def objects_at(mask, *voxels):
    """The objects of a mask that hold these voxels."""
    objects, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return mask & np.isin(objects, [objects[voxel] for voxel in voxels])


@pytest.fixture
def both_ways(predict, tmp_path, images):
    """Predict bright objects with these prompts as ever, then with options; give the label maps and the last report."""
    model = make_model_of_bright_objects(tmp_path / "bright")
    for name in "abc":
        write_bright_objects(images / f"{name}_0000.nii.gz")

    def run(plain, cases=None, **options):
        maps = []
        for given, more in ((plain, {}), (cases or plain, options)):
            report = predict(model=model, prompts=write_prompts(tmp_path / "prompts.json", given), **more)
            maps.append({name: labels_of(tmp_path / "out" / f"{name}.nii.gz") for name in "abc"})
        return *maps, report

    return run


def test_only_the_object_that_was_named_is_left(both_ways):
    click, negative = ({"points": [{"at": [4, 6, 2], "positive": positive}]} for positive in (True, False))
    plain, instance, report = both_ways({"b": {"lesion": click}, "c": {"organ": negative}}, instance=True)
    assert report.written == ["b", "c"]
    named = objects_at(plain["b"] == 2, (2, 6, 4))
    assert 0 < named.sum() < (plain["b"] == 2).sum()
    np.testing.assert_array_equal(instance["b"], np.where(named, 2, 0))
    for name in "ac":  # nothing is named there
        np.testing.assert_array_equal(instance[name], plain[name])


@pytest.mark.parametrize("kind", ["boxes", "mask"])
def test_boxes_and_masks_name_objects_on_the_grid_of_the_image(both_ways, tmp_path, images, kind):
    """The grid of the network has its axes swapped, other voxels, and no first slice."""
    mask = np.zeros((5, 9, 7), np.uint8)
    mask[3, 7, 5] = 1
    written = sitk.GetImageFromArray(mask)
    written.CopyInformation(sitk.ReadImage(str(images / "b_0000.nii.gz")))
    sitk.WriteImage(written, str(tmp_path / "mask.nii.gz"))
    prompts = {"boxes": [{"min": [2, 5, 2], "max": [6, 8, 4]}], "mask": "mask.nii.gz"}
    plain, instance, _ = both_ways({"b": {"lesion": {kind: prompts[kind]}}}, instance=True)
    named = objects_at(plain["b"] == 2, (3, 7, 5))
    assert 0 < named.sum() < (plain["b"] == 2).sum()
    np.testing.assert_array_equal(instance["b"], np.where(named, 2, 0))


def test_a_class_may_say_so_for_itself_alone(both_ways):
    cases = {"b": {"lesion": {"points": [{"at": [4, 6, 2]}]}, "organ": {"points": [{"at": [6, 0, 3]}]}}}
    wanted = {"b": cases["b"] | {"lesion": cases["b"]["lesion"] | {"instance": True}}}
    plain, instance, report = both_ways(cases, wanted)
    assert report.written == ["b"]
    gone = objects_at(plain["b"] == 2, (2, 2, 1))
    assert 0 < gone.sum() < (plain["b"] == 2).sum()
    np.testing.assert_array_equal(instance["b"], np.where(gone, 0, plain["b"]))
    assert (instance["b"] == 1).any()


def test_named_objects_without_prompts_are_refused(predict):
    with pytest.raises(PromptError, match=r"--instance keeps only what prompts name, .* add --prompts FILE"):
        predict(instance=True)
