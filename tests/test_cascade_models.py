"""The first stage of a cascade is found beside the second, told where it is missing, and known from run to run."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from cascades import CASCADE, LOWRES, make_cascade_model
from commands import predict_folder
from tiny_models import LABELS, REGIONS, labels_of, make_checkpoint, make_model, make_weights

import sam3dnet
from sam3dnet.errors import CheckpointError, DatasetError
from sam3dnet.inference.cascade import load_stages, make_input
from sam3dnet.inference.images import with_labels
from sam3dnet.inference.predictor import SETTINGS_FILE
from sam3dnet.inference.windows import predict_mirrored
from sam3dnet.planning.sides import MirroredSides


@pytest.fixture
def second(tmp_path):
    return make_cascade_model(tmp_path / "results")


def first_of(second):
    return second.with_name(f"nnUNetTrainerSAM3D__SAM3DPlans__{LOWRES}")


@pytest.mark.parametrize(
    ("second_folds", "first_folds", "asked", "expected"),
    [
        ((0, 1), (0, 1, 2), None, ["fold_0", "fold_1"]),
        ((0, 1), (1, 2), [1], ["fold_1"]),
        ((0, 1), (1, 2), None, ["fold_1"]),
        ((0,), (2, 3), None, ["fold_2", "fold_3"]),
        ((0,), ("all",), None, ["fold_all"]),
        (("all",), (0, "all"), None, ["fold_all"]),
    ],
)
def test_the_folds_of_the_second_stage_are_taken_of_the_first(tmp_path, second_folds, first_folds, asked, expected):
    model = load_stages(make_cascade_model(tmp_path, second_folds, first_folds), asked)
    assert [file.parent.name for file in model.previous.checkpoint_files] == expected
    assert model.previous.previous is None


def test_a_missing_first_stage_is_a_sentence(tmp_path, images):
    second = make_cascade_model(tmp_path, first_folds=())
    told = r"__3d_lowres: the second stage .* needs a trained first stage there.*sam3d_train Dataset901_Tiny fold0 -c"
    for use in (
        lambda: predict_folder(images, tmp_path / "out", second, device="cpu"),
        lambda: sam3dnet.load_model(second, device="cpu"),
    ):
        with pytest.raises(CheckpointError, match=told):
            use()


def test_label_maps_in_a_folder_take_its_place(second, images, tmp_path):
    first = first_of(second)
    predict_folder(images, tmp_path / "first", first, device="cpu")
    predict_folder(images, tmp_path / "out", second, device="cpu")
    for file in first.glob("fold_0/*"):
        file.unlink()
    stored = {"prev_stage_predictions": tmp_path / "first", "device": "cpu"}
    report = predict_folder(images, tmp_path / "stored", second, **stored)
    assert report.written == ["a", "b", "c"]
    for name in report.written:
        assert np.array_equal(*(labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in ("out", "stored")))
    assert predict_folder(images, tmp_path / "stored", second, **stored).skipped == ["a", "b", "c"]
    shutil.copy(tmp_path / "first" / "a.nii.gz", tmp_path / "first" / "b.nii.gz")
    (tmp_path / "first" / "c.nii.gz").unlink()
    report = predict_folder(images, tmp_path / "stored", second, **stored)
    assert (report.written, report.skipped) == (["b"], ["a", "c"])
    (tmp_path / "stored" / "c.nii.gz").unlink()
    report = predict_folder(images, tmp_path / "stored", second, **stored)
    assert report.failed.keys() == {"c"}
    assert "c.nii.gz: not found; expected the first stage's label map of this image" in report.failed["c"]


def test_a_label_map_of_another_grid_costs_its_case(second, images, tmp_path):
    predict_folder(images, tmp_path / "first", first_of(second), device="cpu")
    from tiny_models import write_image

    write_image(tmp_path / "first" / "b.nii.gz", shape=(5, 9, 8))
    stored = {"prev_stage_predictions": tmp_path / "first", "device": "cpu"}
    report = predict_folder(images, tmp_path / "out", second, **stored)
    assert report.written == ["a", "c"]
    assert "shape" in report.failed["b"]


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_the_input_is_nnunets_to_the_last_bit(tmp_path, images, labels):
    """nnU-Net's prediction of a second stage, with the first stage's label maps in files; a plan with swapped axes."""
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    second = make_cascade_model(tmp_path, labels=labels)
    predict_folder(images, tmp_path / "first", first_of(second), device="cpu")
    model = load_stages(second)
    image = images / "b_0000.nii.gz"
    stored = tmp_path / "first" / "b.nii.gz"
    assert np.unique(labels_of(stored)).size > 1
    data, seg, expected = model.configuration.preprocessor_class(verbose=False).run_case(
        [str(image)], str(stored), model.plans, model.configuration, model.dataset_json
    )
    expected_CZYX = np.vstack((data, convert_labelmap_to_one_hot(seg[0], model.labels.foreground_labels, data.dtype)))
    given, properties = make_input(model).take(image)
    np.testing.assert_array_equal(given.numpy(), expected_CZYX)
    assert len(given) == 3 and given[1:].any()
    assert properties["bbox_used_for_cropping"] == expected["bbox_used_for_cropping"]
    assert "class_locations" not in properties


def test_only_a_second_stage_takes_them(tmp_path, images):
    with pytest.raises(DatasetError, match=r"__3d_fullres is no second stage of a cascade; leave out --prev-stage"):
        predict_folder(images, tmp_path / "out", make_model(tmp_path), device="cpu", prev_stage_predictions=tmp_path)


def test_predictions_are_made_anew_when_the_first_stage_was_trained_again(second, images, tmp_path):
    predict_folder(images, tmp_path / "out", second, device="cpu")
    assert predict_folder(images, tmp_path / "out", second, device="cpu").skipped == ["a", "b", "c"]
    record = json.loads((tmp_path / "out" / SETTINGS_FILE).read_text())
    assert [fold for fold, *_ in record["previous_stage"]] == ["fold_0"]
    before = labels_of(tmp_path / "out" / "a.nii.gz")
    checkpoint = make_checkpoint(make_weights(7), init_args={"configuration": LOWRES})
    torch.save(checkpoint, first_of(second) / "fold_0" / "checkpoint_final.pth")
    assert predict_folder(images, tmp_path / "out", second, device="cpu").written == ["a", "b", "c"]
    assert not np.array_equal(labels_of(tmp_path / "out" / "a.nii.gz"), before)


def test_images_that_are_read_ahead_give_the_same(second, images, tmp_path):
    for workers in (0, 3):
        predict_folder(images, tmp_path / str(workers), second, device="cpu", num_processes=workers)
    for name in "abc":
        assert np.array_equal(*(labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in "03"))


def test_step_and_mirroring_are_those_of_both_stages(second, images, tmp_path):
    predict_folder(images, tmp_path / "first", first_of(second), device="cpu", fast=True)
    stored = {"prev_stage_predictions": tmp_path / "first", "device": "cpu", "fast": True}
    predict_folder(images, tmp_path / "stored", second, **stored)
    predict_folder(images, tmp_path / "out", second, device="cpu", fast=True)
    for name in "abc":
        assert np.array_equal(*(labels_of(tmp_path / folder / f"{name}.nii.gz") for folder in ("out", "stored")))


def test_a_zip_file_brings_both_stages(second, images, tmp_path):
    packed = tmp_path / "model.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(path for path in second.parent.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(second.parents[1]))
    image = images / "a_0000.nii.gz"
    unpacked = sam3dnet.load_model(packed, device="cpu", configuration=CASCADE)
    assert np.array_equal(unpacked.segment(image), sam3dnet.load_model(second, device="cpu").segment(image))


def test_labels_become_channels_in_their_order():
    image, labels = np.full((1, 2, 1, 1), 5.0, np.float32), np.array([[[3]], [[-1]]])
    assert with_labels(image, labels, (2, 3))[:, :, 0, 0].tolist() == [[5, 5], [0, 0], [1, 0]]


def test_mirrored_sides_are_swapped_in_the_input_too():
    """A network that says what the first stage said is right in the mirror only if left and right are swapped."""
    sides = MirroredSides(2, {1: 2, 2: 1}, (0, 2, 1)).with_input(1, (1, 2, 3))
    assert sides.input_channels == (0, 2, 1, 3)
    windows = torch.randn(1, 4, 2, 3, 4)
    logits = predict_mirrored(lambda x: x[:, [0, 1, 2]], windows, (1, 2), sides)
    torch.testing.assert_close(logits, windows[:, :3])
