"""How sure a model is of what it segmented: by hand, through the commands, and learned from a validation."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fake_prompts import make_promptable_model, write_prompts
from scipy import ndimage
from test_label_slabs import TARGETS, make_logits, make_properties
from tiny_models import LABELS, REGIONS, labels_of, make_model, write_image

from sam3dnet.errors import CheckpointError
from sam3dnet.evaluation.folder import evaluate_folder
from sam3dnet.inference import label_slabs, windows
from sam3dnet.inference.calibration import FILE, UNCALIBRATED, Pairs, Validated, fit, read_validated
from sam3dnet.inference.confidence import ConfidenceVolume, as_json, left_of
from sam3dnet.inference.label_slabs import start_label_map
from sam3dnet.inference.models import load_model
from sam3dnet.inference.postprocessing import Postprocessing, write_postprocessing
from sam3dnet.inference.predictor import predict_folder
from sam3dnet.inference.probabilities import ProbabilityVolume
from sam3dnet.inference.writing import unfinished_folder
from sam3dnet.settings.evaluation import ScoringSettings
from sam3dnet.settings.prediction import PredictionSettings


def volume_of(loaded, properties, **options):
    return ConfidenceVolume(properties, loaded.plans, loaded.labels, loaded.dataset_json, **options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("linear", [True, False], ids=["slabs", "channel by channel"])
def test_they_follow_from_the_probabilities(tmp_path, monkeypatch, target, labels, linear):
    loaded = load_model(make_model(tmp_path / "results", labels=labels))
    logits, properties = make_logits(loaded.labels.num_segmentation_heads).float(), make_properties(*TARGETS[target])
    if not linear:
        monkeypatch.setattr(label_slabs, "axis_modes", lambda *_: None)
    monkeypatch.setattr(windows, "BYTES_AT_A_TIME", 2000)
    truth_ZYX = None
    probabilities = ProbabilityVolume(unfinished_folder(tmp_path), properties, loaded.plans, loaded.labels)
    confidence = volume_of(loaded, properties, read_truth=lambda: truth_ZYX)
    for companion in (probabilities, confidence, confidence):  # as after memory was exhausted: all comes once more
        of_model = (loaded.plans, loaded.configuration, loaded.labels)
        growing = start_label_map(logits.shape[1:], properties, *of_model, companion)
        for slab in logits.split(4, dim=1):
            growing.add(slab)
        labels_ZYX = growing.finish()
    truth_ZYX = np.roll(labels_ZYX, 1, 2)
    probabilities.write(tmp_path / "a", labels_ZYX)
    probabilities.close()
    confidence.write(tmp_path / "a", labels_ZYX)
    p_KZYX = np.load(tmp_path / "a.npz")["probabilities"].astype(float)
    found = json.loads((tmp_path / "a_confidence.json").read_text())
    voxel_ml = np.prod(properties["spacing"]) / 1000
    assert list(found["classes"]) == [name for name in labels if name != "background"]
    assert found["calibrated_on_cases"] == 0
    for number, (name, one) in enumerate(found["classes"].items()):
        channel = number if labels is REGIONS else number + 1
        mask, true = (np.isin(volume, labels[name]) for volume in (labels_ZYX, truth_ZYX))
        expected = 2 * p_KZYX[channel][mask].sum() / (mask.sum() + p_KZYX[channel].sum())
        assert one["expected_dice"] == pytest.approx(expected, abs=2e-3)
        assert one["dice"] == one["expected_dice"]
        assert one["true_dice"] == pytest.approx(2 * (mask & true).sum() / (mask.sum() + true.sum()), abs=1e-5)
        assert one["volume_ml"] == pytest.approx(mask.sum() * voxel_ml, rel=1e-5)
        assert one["expected_ml"] == pytest.approx(p_KZYX[channel].sum() * voxel_ml, rel=2e-3)
        objects = one["objects"]
        volumes = [each["volume_ml"] for each in objects]
        assert volumes == sorted(volumes, reverse=True) and sum(volumes) == pytest.approx(one["volume_ml"], rel=1e-4)
        mean = sum(each["certainty"] * each["volume_ml"] for each in objects) / sum(volumes)
        assert mean == pytest.approx(p_KZYX[channel][mask].mean(), abs=2e-3)
        for each in objects:
            i, j, k = each["at"]
            assert mask[k, j, i] and each["certainty"] <= p_KZYX[channel][k, j, i] + 2e-3


def test_what_is_taken_out_of_a_part_is_taken_out_of_the_whole(tmp_path):
    """Regions: without its core, which post-processing takes out, the whole is two objects."""
    loaded = load_model(make_model(tmp_path, labels=REGIONS))
    properties = make_properties((8, 6, 7), (2.0, 1.0, 0.5))
    shape = tuple(properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward)
    volume = volume_of(loaded, properties)
    logits = torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 8, 6, 7)
    volume.put(slice(None), (slice(0, 8), slice(None), slice(None)), logits)
    before_ZYX = np.ones(shape, np.uint16)
    before_ZYX[2] = 700
    left_ZYX = np.where(before_ZYX == 700, 0, before_ZYX)
    truth_ZYX, ml, p = np.where(np.indices(shape)[0] < 2, 1, 0), 0.001, 1 / (1 + np.exp(-1))
    whole, core = volume.measure(left_ZYX, before_ZYX).values()
    slice_ml = shape[1] * shape[2] * ml
    assert [one.volume_ml for one in whole.objects] == pytest.approx([(shape[0] - 3) * slice_ml, 2 * slice_ml])
    assert whole.volume_ml == pytest.approx((shape[0] - 1) * slice_ml)
    voxels = np.zeros(shape, bool)  # that the logits speak of
    crop = [slice(*ends) for ends in properties["bbox_used_for_cropping"]]
    voxels[tuple(crop[axis] for axis in loaded.plans.transpose_backward)] = True
    spoken = voxels[left_ZYX > 0].sum() * ml * p
    assert whole.expected_ml == pytest.approx(spoken, rel=1e-3)
    assert whole.expected_dice == pytest.approx(2 * spoken / (whole.volume_ml + spoken), rel=1e-3)
    assert (core.objects, core.expected_dice, core.volume_ml) == ((), None, 0)
    measured = volume.measure(before_ZYX)
    classes = {"whole": (1, 700), "core": (700,)}
    again = left_of(measured, before_ZYX, left_ZYX, classes, properties, truth_ZYX=truth_ZYX)
    assert [one.volume_ml for one in again["whole"].objects] == [one.volume_ml for one in whole.objects]
    assert [one.real for one in again["whole"].objects] == [False, True]
    assert again["whole"].dice == pytest.approx(4 / (2 + shape[0] - 1))
    (object_before,) = measured["whole"].objects
    assert [one.certainty for one in again["whole"].objects] == pytest.approx([object_before.certainty] * 2)


def test_two_objects_one_of_which_is_none(tmp_path):
    """By hand: eight sure voxels that are in the truth, one unsure voxel that is not."""
    loaded = load_model(make_model(tmp_path))
    properties = make_properties((8, 6, 7), (2.0, 1.0, 0.5))
    shape = tuple(properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward)
    labels_ZYX, logits = np.zeros(shape, np.uint8), torch.zeros(3, *shape)
    logits[0] = 9
    labels_ZYX[2:4, 2:4, 2:4], labels_ZYX[5, 5, 5] = 1, 1
    truth_ZYX = np.where(np.indices(shape)[0] == 2, labels_ZYX, 0)
    logits[1][torch.from_numpy(labels_ZYX > 0)] = 18
    logits[1, 5, 5, 5] = 9 + np.log(1.5)
    volume = volume_of(loaded, properties, read_truth=lambda: truth_ZYX)
    crop = tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])
    in_plan = logits.permute(0, *(1 + axis for axis in loaded.plans.transpose_forward))[(slice(None), *crop)]
    volume.put(slice(None), (slice(0, in_plan.shape[1]), slice(None), slice(None)), in_plan)
    organ = volume.measure(labels_ZYX)["organ"]
    assert organ.dice == pytest.approx(2 * 4 / (9 + 4))
    assert [(one.real, one.at) for one in organ.objects][1] == (False, (5, 5, 5))
    assert [one.real for one in organ.objects] == [True, False]
    assert [one.certainty for one in organ.objects] == pytest.approx([1, 0.6], abs=1e-3)
    assert organ.expected_dice == pytest.approx(2 * 8.6 / (9 + 8.6), abs=4e-3)
    lesion = volume.measure(labels_ZYX)["lesion"]
    assert (lesion.expected_dice, lesion.dice, lesion.objects, lesion.volume_ml) == (None, None, (), 0)


def test_what_postprocessing_takes_out_is_neither_listed_nor_expected(tmp_path):
    """As if the logits had never said it, in a file's own axes."""
    loaded = load_model(make_model(tmp_path))
    properties = make_properties((8, 6, 7), (2.0, 1.0, 0.5))
    shape = tuple(properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward)
    labels_ZYX, logits = np.zeros(shape, np.uint8), torch.zeros(3, *shape)
    logits[0] = 9
    labels_ZYX[2:4, 2:4, 2:4], labels_ZYX[5, 5, 5], labels_ZYX[0, 0, 0] = 1, 1, 2
    left_ZYX = np.where((np.indices(shape) < 4).all(0) & (labels_ZYX == 1), 1, 0)

    def written(of_labels_ZYX, before_ZYX):
        said = logits.clone()
        for value in (1, 2):
            said[value][torch.from_numpy(of_labels_ZYX == value)] = 18
        volume = volume_of(loaded, properties)
        crop = tuple(slice(start, stop) for start, stop in properties["bbox_used_for_cropping"])
        in_plan = said.permute(0, *(1 + axis for axis in loaded.plans.transpose_forward))[(slice(None), *crop)]
        volume.put(slice(None), (slice(0, in_plan.shape[1]), slice(None), slice(None)), in_plan)
        volume.write(tmp_path / "a", left_ZYX, before_ZYX)
        volume.close()
        return json.loads((tmp_path / "a_confidence.json").read_text())["classes"]

    found, never_said = written(labels_ZYX, labels_ZYX), written(left_ZYX, None)
    assert found["organ"]["objects"] == never_said["organ"]["objects"] and len(found["organ"]["objects"]) == 1
    for key in ("dice", "expected_dice", "volume_ml", "expected_ml"):
        assert found["organ"][key] == pytest.approx(never_said["organ"][key], rel=1e-3)
    lesion = found["lesion"]
    assert (lesion["dice"], lesion["objects"], lesion["volume_ml"]) == (None, [], 0)
    assert lesion["expected_ml"] == pytest.approx(never_said["lesion"]["expected_ml"], abs=1e-3)


def test_voxels_that_nobody_annotated_are_left_out(tmp_path):
    loaded = load_model(make_model(tmp_path))
    properties = make_properties((8, 6, 7), (2.0, 1.0, 0.5))
    shape = tuple(properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward)
    labels_ZYX, truth_ZYX = np.ones(shape, np.uint8), np.full(shape, 3, np.uint8)
    truth_ZYX[0] = 1
    dataset_json = loaded.dataset_json | {"labels": LABELS | {"ignore": 3}}
    volume = ConfidenceVolume(properties, loaded.plans, loaded.labels, dataset_json, read_truth=lambda: truth_ZYX)
    organ = volume.measure(labels_ZYX)["organ"]
    assert organ.dice == 1
    assert [one.real for one in organ.objects] == [True]  # as far as is known it agrees with the true one
    truth_ZYX[0] = 0
    organ = volume.measure(labels_ZYX)["organ"]
    assert organ.dice == 0
    assert [one.real for one in organ.objects] == [None]  # nobody knows: most of it is not annotated
    assert sum(one.volume_ml for one in organ.objects) == pytest.approx(organ.volume_ml)
    contents = {"a": as_json({"organ": organ}, UNCALIBRATED)}
    assert (Validated.of_cases(contents).objects.said, Validated.of_cases(contents).dice.found) == ([], [0.0])


def test_an_object_is_compared_with_the_whole_of_the_true_one(tmp_path):
    """Also with what lies beyond the box of what was segmented."""
    loaded = load_model(make_model(tmp_path))
    properties = make_properties((8, 6, 7), (2.0, 1.0, 0.5))
    shape = tuple(properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward)
    labels_ZYX, truth_ZYX = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    labels_ZYX[2, 2, 2] = 1
    (found,) = volume_of(loaded, properties, read_truth=lambda: truth_ZYX).measure(labels_ZYX)["organ"].objects
    assert found.real is False


@pytest.fixture
def images(tmp_path):
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "images"


def predict(model, images, tmp_path, **options):
    settings = {"input_folder": images, "output_folder": tmp_path / "out", "model_folder": model, "device": "cpu"}
    return predict_folder(PredictionSettings(**(settings | options)))


def test_the_command_writes_them_where_they_are_wanted(tmp_path, images, caplog):
    model, out = make_model(tmp_path / "results"), tmp_path / "out"
    assert predict(model, images, tmp_path).written == ["a", "b"]
    assert not list(out.glob("*_confidence.json"))
    assert predict(model, images, tmp_path, confidence=True).written == ["a", "b"]
    assert "confidences are the network's own" in caplog.text
    assert predict(model, images, tmp_path, confidence=True).written == []
    (out / "a_confidence.json").unlink()
    assert predict(model, images, tmp_path, confidence=True, save_probabilities=True).written == ["a", "b"]
    found, labels_ZYX = json.loads((out / "a_confidence.json").read_text()), labels_of(out / "a.nii.gz")
    image = sitk.ReadImage(str(out / "a.nii.gz"))
    for value, name in enumerate(["organ", "lesion"], start=1):
        one = found["classes"][name]
        assert "true_dice" not in one
        voxel_ml = np.prod(image.GetSpacing()) / 1000
        assert one["volume_ml"] == pytest.approx((labels_ZYX == value).sum() * voxel_ml, rel=1e-5)
        for each in one["objects"]:
            assert image[each["at"]] == value and "real" not in each
    assert predict(model, images, tmp_path, step_size=0.9).written == ["a", "b"]
    assert not list(out.glob("*_confidence.json"))  # they would be another label map's


def predict_under_a_click(model, images, tmp_path, **options):
    """Click the organ of case a; give the report, what is said of the classes and the label map."""
    from sam3dnet.interactive.run_prompts import prompt_reader

    organ = {"points": [{"at": [3, 4, 2], "positive": True}]}
    prompts = write_prompts(tmp_path / "prompts.json", {"a": {"organ": organ}})
    out = tmp_path / "out"
    settings = PredictionSettings(
        input_folder=images,
        output_folder=out,
        model_folder=model,
        device="cpu",
        confidence=True,
        prompts=prompts,
        **options,
    )
    report = predict_folder(settings, prompt_reader(prompts, settings.instance))
    return report, json.loads((out / "a_confidence.json").read_text())["classes"], labels_of(out / "a.nii.gz")


def test_prompts_change_them_with_the_label_map(tmp_path, images):
    model = make_promptable_model(tmp_path / "results")
    report, said, labels_ZYX = predict_under_a_click(model, images, tmp_path)
    assert report.written == ["a", "b"]
    spacing = sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz")).GetSpacing()
    assert said["organ"]["volume_ml"] == pytest.approx((labels_ZYX == 1).sum() * np.prod(spacing) / 1000, rel=1e-5)


def test_what_prompts_do_not_name_is_not_expected(tmp_path, images):
    """With --instance all else becomes background, and the numbers are those of what is left."""
    model = make_promptable_model(tmp_path / "results")
    said, maps = {}, {}
    for instance in (False, True):
        _, said[instance], maps[instance] = predict_under_a_click(model, images, tmp_path, instance=instance)
    gone = (maps[False] == 2).sum()
    assert gone and not (maps[True] == 2).any() and (maps[True] == 1).any()
    lesion, whole = said[True]["lesion"], said[False]["lesion"]
    assert (lesion["dice"], lesion["objects"], lesion["volume_ml"]) == (None, [], 0)
    certain = sum(one["certainty"] * one["volume_ml"] for one in whole["objects"])
    assert lesion["expected_ml"] == pytest.approx(whole["expected_ml"] - certain, rel=1e-3)
    organ, mask = said[True]["organ"], maps[True] == 1
    assert len(organ["objects"]) == ndimage.label(mask, np.ones((3, 3, 3)))[1]
    assert organ["expected_ml"] <= said[False]["organ"]["expected_ml"]


def pairs_of(said, found, classes=("organ",), share=None):
    names = [f"c{number % 10}" for number in range(len(said))]
    of_class = [classes[number % len(classes)] for number in range(len(said))]
    return Pairs(names, of_class, list(said), list(found), [1.0] * len(said) if share is None else list(share))


def test_without_pairs_all_stays_what_it_was():
    assert fit(Pairs()).at("organ", 0.7) == pytest.approx(0.7)
    assert UNCALIBRATED.dice("organ", 0.3) == pytest.approx(0.3)
    assert Validated().errors() == {"dice": None, "objects": None}


def test_few_pairs_change_little_and_many_are_believed():
    few = fit(pairs_of([0.9], [0.0])).at("organ", 0.9)
    many = fit(pairs_of([0.9] * 500, [0.0, 1.0] * 250)).at("organ", 0.9)
    assert 0.6 < few < 0.9
    assert many == pytest.approx(0.5, abs=0.03)


def test_where_small_objects_are_seldom_real_size_counts_and_else_it_does_not():
    share = [1.0, 0.01] * 200
    of_size = fit(pairs_of([0.8] * 400, [1.0, 0.0] * 200, share=share))
    assert of_size.at("organ", 0.8, 1.0) > 0.95 and of_size.at("organ", 0.8, 0.01) < 0.05
    assert of_size.at("organ", 0.8, 0.01) < of_size.at("organ", 0.8, 0.1) < of_size.at("organ", 0.8, 1.0)
    equal = fit(pairs_of([0.8] * 400, [1.0, 1.0, 0.0, 0.0] * 100, share=share))
    assert equal.at("organ", 0.8, 0.01) == pytest.approx(equal.at("organ", 0.8, 1.0), abs=0.03)


def test_classes_differ_and_an_unknown_one_is_as_all():
    said = [0.9] * 400
    curve = fit(pairs_of(said, [0.9, 0.5] * 200, ("liver", "tumour")), 20.0)
    assert curve.at("liver", 0.9) == pytest.approx(0.9, abs=0.01)
    assert curve.at("tumour", 0.9) == pytest.approx(0.5, abs=0.01)
    assert 0.5 < curve.at("spleen", 0.9) < 0.9


def test_errors_are_those_of_cases_that_were_left_out():
    """What cannot be learned from other cases is no better afterwards: here each case has a shift of its own."""
    rng = np.random.default_rng(0)
    said = rng.uniform(0.5, 1, 600)
    found = (rng.uniform(size=600) < said**4).astype(float)
    learned = Validated(objects=pairs_of(said, found)).errors()["objects"]
    assert learned["uncalibrated"]["calibration_error"] > 0.3
    assert learned["calibrated"]["calibration_error"] < 0.08
    assert learned["calibrated"]["brier"] < learned["uncalibrated"]["brier"] - 0.1
    two = Pairs(["a", "b"], ["organ"] * 2, [0.8, 0.8], [0.9, 0.3], [1.0, 1.0])
    errors = Validated(dice=two).errors()["dice"]
    assert errors["calibrated"]["mean_error"] > errors["uncalibrated"]["mean_error"]
    assert Validated(dice=two).calibration().dice("organ", 0.8) == pytest.approx(0.8)  # so it is left alone


def test_what_a_validation_found_is_read_again(tmp_path):
    contents = {
        case: {
            "classes": {
                "organ": {
                    "expected_dice": 0.95,
                    "true_dice": dice,
                    "objects": [
                        {"certainty": 0.9, "volume_ml": 2.0, "real": True},
                        {"certainty": 0.6, "volume_ml": 1.0, "real": False},
                    ],
                },
                "lesion": {"expected_dice": None, "objects": []},
            }
        }
        for case, dice in (("a", 0.8), ("b", 0.7), ("c", 0.75))
    }
    validated = Validated.of_cases(contents)
    validated.write(tmp_path)
    words = validated.in_words()
    assert words.startswith("Confidence: the Dice of a class is foretold to 0.0")
    assert words.count("before calibration") == 2 and "too few" not in words
    found = read_validated([tmp_path, tmp_path / "not validated"])
    assert found.dice.found == [0.8, 0.7, 0.75] and len(found.objects.said) == 6
    learned = found.calibration()
    assert learned.num_cases == 3 and 0.7 < learned.dice("organ", 0.95) < 0.85
    assert found.objects.share == [1.0, 0.5] * 3
    assert learned.object_is_real("organ", 0.6, 0.5) < 0.5 < learned.object_is_real("organ", 0.9, 1.0)
    (tmp_path / FILE).write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="--validate-only"):
        read_validated([tmp_path])


def test_a_single_case_calibrates_nothing(tmp_path):
    validated = Validated(
        dice=Pairs(["a"], ["organ"], [0.9], [0.3], [1.0]),
        objects=Pairs(["a"] * 9, ["organ"] * 9, [0.7] * 9, [0.0] * 9, [1.0] * 9),
    )
    learned = validated.calibration()
    assert learned.dice("organ", 0.9) == pytest.approx(0.9) and learned.object_is_real(
        "organ", 0.7, 1
    ) == pytest.approx(0.7)
    assert validated.in_words().count("not calibrated: a single case") == 2


def test_what_is_not_calibrated_is_told(tmp_path, images, caplog):
    """Of a single case, by which nothing is calibrated, and where only objects are."""
    model = make_model(tmp_path / "results")
    one = Pairs(["a"], ["organ"], [0.9], [0.3], [1.0])
    Validated(one, one).write(model / "fold_0")
    predict(model, images, tmp_path, confidence=True)
    assert "confidences of the Dice of classes and whether objects are real are the network's own" in caplog.text
    assert json.loads((tmp_path / "out" / "a_confidence.json").read_text())["calibrated_on_cases"] == 0
    caplog.clear()
    Validated(one, pairs_of([0.9] * 50, [0.0] * 50)).write(model / "fold_0")
    assert predict(model, images, tmp_path, confidence=True).written == ["a", "b"]
    assert "confidences of the Dice of classes are the network's own" in caplog.text
    assert json.loads((tmp_path / "out" / "a_confidence.json").read_text())["calibrated_on_cases"] == 11
    caplog.clear()
    Validated(pairs_of([0.9] * 50, [0.6] * 50), pairs_of([0.9] * 50, [0.1] * 50)).write(model / "fold_0")
    assert predict(model, images, tmp_path, confidence=True).written == ["a", "b"]  # of as many cases, but others
    assert "network's own" not in caplog.text


def test_label_maps_without_postprocessing_are_as_sure_as_validation_found_those(tmp_path, images):
    model, out = make_model(tmp_path / "results"), tmp_path / "out"
    write_postprocessing(model, Postprocessing(((1,),)), {"labels": LABELS}, {})
    after, before = (Validated(objects=pairs_of([0.6] * 50, [real] * 50)) for real in (1.0, 0.0))
    after.write(model / "fold_0", before)
    sure = {}
    for without in (False, True):
        predict(model, images, tmp_path, confidence=True, no_postprocessing=without)
        (first, *_) = json.loads((out / "a_confidence.json").read_text())["classes"]["organ"]["objects"]
        sure[without] = first["confidence"], first["certainty"]
    assert sure[False][0] > sure[False][1] and sure[True][0] < sure[True][1]


def test_calibrated_values_stand_beside_the_networks_own(tmp_path):
    learned = Validated(dice=pairs_of([0.9] * 50, [0.6] * 50)).calibration()
    loaded = load_model(make_model(tmp_path))
    properties = make_properties((8, 6, 7), (2.0, 1.0, 0.5))
    shape = tuple(properties["shape_before_cropping"][axis] for axis in loaded.plans.transpose_backward)
    volume = volume_of(loaded, properties)
    logits = torch.tensor([0.0, 2.0, 0.0])[:, None, None, None].expand(3, 8, 6, 7)
    volume.put(slice(None), (slice(0, 8), slice(None), slice(None)), logits)
    one = as_json(volume.measure(np.ones(shape, np.uint8)), learned)["classes"]["organ"]
    assert one["dice"] == pytest.approx(learned.dice("organ", one["expected_dice"]), rel=1e-4)
    assert one["dice"] < one["expected_dice"] - 0.1


@pytest.mark.parametrize("direction", [(-1, 0, 0, 0, 0, 1, 0, 1, 0), (0, 1, 0, -1, 0, 0, 0, 0, -1)])
def test_objects_are_where_the_file_has_them_whatever_the_reader_turns(tmp_path, direction, caplog):
    """The evaluation finds each object again by its voxel."""
    model = make_model(tmp_path / "results")
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "NibabelIOWithReorient"}))
    images, out = tmp_path / "images", tmp_path / "out"
    write_image(images / "a_0000.nii.gz", direction=direction)
    assert predict(model, images, tmp_path, confidence=True).written == ["a"]
    image = sitk.ReadImage(str(out / "a.nii.gz"))
    classes = json.loads((out / "a_confidence.json").read_text())["classes"]
    values = {"organ": 1, "lesion": 2}
    found = [(image[each["at"]], values[name]) for name in values for each in classes[name]["objects"]]
    assert len(found) > 2 and all(came == value for came, value in found)
    evaluation = evaluate_folder(out, out, ScoringSettings(dataset_json=model / "dataset.json", num_processes=0))
    assert evaluation.detection()["organ"]["lesions"] == len(classes["organ"]["objects"])
    assert "another label map" not in caplog.text
