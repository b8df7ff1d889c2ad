"""Post-processing as nnU-Net's, stored as JSON, never against what a prompt names."""

import json
import pickle
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fake_prompts import make_model_of_bright_objects, write_bright_objects, write_prompts
from tiny_models import LABELS, REGIONS, labels_of, make_model

import sam3dnet
from sam3dnet.cli.info import info
from sam3dnet.errors import PlanError
from sam3dnet.inference.models import load_model
from sam3dnet.inference.postprocessing import (
    FILE,
    NO_POSTPROCESSING,
    Postprocessing,
    forget_postprocessing,
    read_postprocessing,
    write_postprocessing,
)

STEPS = {"labels": ((1, 2), (2,)), "regions": ((1, 700), (700,))}  # all of the foreground, then the last class
BOTH = pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])


def decide(folder, *steps):
    """Store post-processing for a model."""
    dataset_json = json.loads((folder / "dataset.json").read_text())
    write_postprocessing(folder, Postprocessing(steps), dataset_json, {"folds": [0]})


def counted(labels_ZYX, label):
    return int((labels_ZYX == label).sum())


@BOTH
def test_label_maps_are_those_of_stock_apply_postprocessing(predict, tmp_path, monkeypatch, labels):
    from nnunetv2.postprocessing.remove_connected_components import (
        apply_postprocessing_to_folder,
        remove_all_but_largest_component_from_segmentation,
    )

    monkeypatch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
    model = make_model(tmp_path / "other", labels=labels)
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    checkpoint["network_weights"]["last.bias"][-1] -= 20  # few voxels, which do not hang together
    checkpoint["network_weights"]["last.bias"][-2] -= 20 if labels is LABELS else 10
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    steps = STEPS["regions" if labels is REGIONS else "labels"]
    decide(model, *steps)
    predict(model=model, no_postprocessing=True)
    manager = load_model(model).labels
    of_nnunet = [{"labels_or_regions": manager.foreground_labels}, {"labels_or_regions": list(labels.values())[-1]}]
    functions = [remove_all_but_largest_component_from_segmentation] * 2
    apply_postprocessing_to_folder(str(tmp_path / "out"), str(tmp_path / "stock"), functions, of_nnunet)
    raw = {name: labels_of(tmp_path / "out" / f"{name}.nii.gz") for name in "abc"}
    assert predict(model=model).written == ["a", "b", "c"]
    for name in "abc":
        ours = labels_of(tmp_path / "out" / f"{name}.nii.gz")
        np.testing.assert_array_equal(ours, labels_of(tmp_path / "stock" / f"{name}.nii.gz"))
    assert any(counted(labels_of(tmp_path / "out" / f"{name}.nii.gz"), 0) > counted(raw[name], 0) for name in "abc")
    array, spacing = sitk.ReadImage(str(tmp_path / "images" / "a_0000.nii.gz")), (3.0, 1.1, 0.7)
    for postprocessing in (True, False):
        loaded = sam3dnet.load_model(model, device="cpu", postprocessing=postprocessing)
        expected = labels_of(tmp_path / "out" / "a.nii.gz") if postprocessing else raw["a"]
        np.testing.assert_array_equal(loaded.segment(sitk.GetArrayFromImage(array), spacing), expected)


def test_what_was_written_is_made_anew_when_the_post_processing_changes(predict, model, caplog):
    predict()
    decide(model)
    assert predict().written == []
    decide(model, (1,))
    with caplog.at_level("INFO"):
        assert predict().written == ["a", "b", "c"]
    assert "post-processing: keeps the largest component of organ; --no-postprocessing leaves it out" in caplog.text
    assert predict().written == []
    assert predict(no_postprocessing=True).written == ["a", "b", "c"]
    decide(model, (1,), (2,))
    assert predict().written == ["a", "b", "c"]


def test_probabilities_are_of_label_maps_without_it(predict, model, tmp_path, caplog):
    predict()
    raw = labels_of(tmp_path / "out" / "a.nii.gz")
    decide(model, (1, 2))
    with caplog.at_level("INFO"):
        predict(save_probabilities=True)
    assert "post-processing is left out: with probabilities it belongs after the ensemble" in caplog.text
    np.testing.assert_array_equal(labels_of(tmp_path / "out" / "a.nii.gz"), raw)


@BOTH
def test_it_is_told_by_the_names_of_the_classes(tmp_path, labels):
    dataset_json = {"labels": labels}
    steps = STEPS["regions" if labels is REGIONS else "labels"]
    words = {"labels": "all that is organ or lesion, then of lesion", "regions": "whole, then of core"}
    told = Postprocessing(steps).in_words(dataset_json)
    assert told == f"keeps the largest component of {words['regions' if labels is REGIONS else 'labels']}"
    assert Postprocessing(((1, 3),)).in_words({"labels": {"a": [1, 2], "b": [2, 3]}}).endswith("the whole foreground")
    assert Postprocessing().in_words(dataset_json) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ({"keep_largest": [[0]]}, r"keep_largest\[0\]\[0\] must be greater than or equal to 1"),
        ({"keep_largest": [[]]}, r"keep_largest\[0\] must be something that is not empty"),
        ({"format": "another"}, "format must be"),
        ({"labels": {"background": 0}}, "decided for the classes"),
    ],
)
def test_a_damaged_file_is_told_and_can_be_passed_by(predict, model, content, message):
    whole = {"format": "sam3dnet-postprocessing/1", "keep_largest": [[1]], "labels": LABELS}
    (model / FILE).write_text(content if isinstance(content, str) else json.dumps(whole | content))
    with pytest.raises(PlanError, match=rf"{FILE}.*{message}.*run sam3d_find_best again, or predict with --no-postp"):
        predict()
    assert predict(no_postprocessing=True).written == ["a", "b", "c"]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle of a model folder was loaded",))


def test_a_model_that_is_trained_on_has_none_any_more(model, caplog):
    description = json.loads((model / "dataset.json").read_text())
    write_postprocessing(model, Postprocessing(((1,),)), description, {})
    forget_postprocessing(model, model / "fold_0")
    assert read_postprocessing(model, description, [model / "fold_0"]) == NO_POSTPROCESSING
    assert "is removed: it was chosen for what the model was before; run sam3d_find_best again" in caplog.text
    caplog.clear()
    forget_postprocessing(model, model / "fold_0")
    assert caplog.text == ""


def test_info_says_what_label_maps_go_through(tmp_path):
    model = make_model(tmp_path / "nnUNet_results", labels=LABELS)
    decide(model, tuple(LABELS.values())[1:], tuple(LABELS.values())[-1:])
    name = list(LABELS)[-1]

    def line_of_model():
        (line,) = (line for line in info(root=tmp_path) if model.name in line)
        return line

    assert line_of_model().endswith(
        f"folds 0; keeps the largest component of all that is organ or {name}, then of {name}"
    )
    (model / FILE).write_text("{")
    assert line_of_model().endswith(f"folds 0; {FILE} or dataset.json cannot be used, sam3d_predict says why")
    (model / FILE).unlink()
    assert line_of_model().endswith("folds 0")


def test_nnunets_pickle_beside_a_model_is_not_opened(predict, model):
    for name in ("postprocessing.pkl", "sam3d_postprocessing.pkl", "fold_0/a.pkl"):
        (model / name).write_bytes(pickle.dumps(Bomb()))
    assert predict().written == ["a", "b", "c"]
    assert read_postprocessing(model, {"labels": LABELS}, [model / "fold_0"]).keep_largest == ()


@pytest.fixture(params=[LABELS, REGIONS], ids=["labels", "regions"])
def bright(request, tmp_path, images):
    """A model that finds two bright objects, and post-processing that leaves the larger one of them."""
    model = make_model_of_bright_objects(tmp_path / "bright", labels=request.param)
    write_bright_objects(images / "b_0000.nii.gz")
    label = 700 if request.param is REGIONS else 2
    decide(model, (label,))
    return SimpleNamespace(model=model, label=label, name=list(request.param)[-1], image=images / "b_0000.nii.gz")


LARGE, SMALL = (2, 2, 1), (2, 6, 4)  # voxels (z, y, x) inside of the two objects


def has(labels_ZYX, label):
    return [labels_ZYX[voxel] == label for voxel in (LARGE, SMALL)]


SAID = {
    "a click on the small one": ({"points": [{"at": [4, 6, 2]}]}, [True, True], [False, True]),
    "a box around the small one": ({"boxes": [{"min": [3, 6, 2], "max": [5, 7, 3]}]}, [True, True], [False, True]),
    "a click on the large one": ({"points": [{"at": [1, 2, 2]}]}, [True, False], [True, False]),
    "not the large one": ({"points": [{"at": [1, 2, 2], "positive": False}]}, [False, False], [False, False]),
}


@pytest.mark.parametrize("said", SAID)
def test_objects_that_a_prompt_names_stay(predict, bright, tmp_path, said):
    options = {"model": bright.model}
    predict(**options)
    assert has(labels_of(tmp_path / "out" / "b.nii.gz"), bright.label) == [True, False]
    prompts, expected, named = SAID[said]
    options["prompts"] = write_prompts(tmp_path / "p.json", {"b": {bright.name: prompts}})
    predict(**options)
    assert has(labels_of(tmp_path / "out" / "b.nii.gz"), bright.label) == expected
    predict(**options, instance=True)
    assert has(labels_of(tmp_path / "out" / "b.nii.gz"), bright.label) == named


def test_a_session_begins_with_what_prediction_writes_and_clicks_bring_objects_back(predict, bright, tmp_path):
    predict(model=bright.model)
    session = sam3dnet.load_model(bright.model, device="cpu").session()
    first = session.set_image(bright.image)
    np.testing.assert_array_equal(first, labels_of(tmp_path / "out" / "b.nii.gz"))
    assert not session.mask(bright.name)[SMALL]
    with_large = session.click(LARGE[::-1], class_name=bright.name)
    np.testing.assert_array_equal(session.label_map(), first)
    with_both = session.click(SMALL[::-1], class_name=bright.name)
    assert with_both[SMALL] and (with_both >= with_large).all()
    np.testing.assert_array_equal(session.undo(), with_large)
    np.testing.assert_array_equal(session.click(SMALL[::-1], positive=False, class_name=bright.name), with_large)
    unprocessed = sam3dnet.load_model(bright.model, device="cpu", postprocessing=False).session()
    assert has(unprocessed.set_image(bright.image), bright.label) == [True, True]


@pytest.mark.parametrize("bright", [LABELS], ids=["labels"], indirect=True)
def test_clicks_on_another_class_bring_nothing_back(bright):
    session = sam3dnet.load_model(bright.model, device="cpu").session()
    session.set_image(bright.image)
    session.click((5, 1, 1), class_name="organ")
    assert has(session.label_map(), bright.label) == [True, False]
