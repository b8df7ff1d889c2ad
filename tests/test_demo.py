"""The demo: its phantom, its score and picture, and that its three commands are ones that exist."""

import hashlib
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from sam3dnet.cli import demo as demo_command
from sam3dnet.cli.command import make_parser
from sam3dnet.demo.phantom import LABELS, SPACING_MM, make_case, write_phantom_dataset
from sam3dnet.demo.picture import save_truth_beside_prediction
from sam3dnet.demo.score import dice_per_class
from sam3dnet.errors import Sam3dError


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("raw") / "Dataset900_Phantom", num_training=2, num_test=1)


def hash_of_voxels(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.nii.gz"))
    arrays = [np.ascontiguousarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))) for file in files]
    return {file.name: hashlib.sha256(array.tobytes()).hexdigest() for file, array in zip(files, arrays, strict=True)}


def test_phantom_is_a_raw_dataset_with_every_class_in_every_case(phantom: Path) -> None:
    for image_file in [*phantom.glob("imagesT?/*.nii.gz")]:
        part = image_file.parent.name.removeprefix("images")
        label_file = phantom / f"labels{part}" / image_file.name.replace("_0000", "")
        image, labels = sitk.ReadImage(str(image_file)), sitk.ReadImage(str(label_file))
        assert image.GetSpacing() == labels.GetSpacing() == SPACING_MM[::-1]
        assert image.GetSize() == labels.GetSize()
        assert np.unique(sitk.GetArrayFromImage(labels)).tolist() == list(LABELS.values())
    assert len([*phantom.glob("imagesTr/*")]) == 2
    assert len([*phantom.glob("labelsTs/*")]) == 1


def test_phantom_is_the_same_for_the_same_seed(phantom: Path, tmp_path: Path) -> None:
    again = write_phantom_dataset(tmp_path / "again", num_training=2, num_test=1)
    other = write_phantom_dataset(tmp_path / "other", num_training=2, num_test=1, seed=1)
    assert hash_of_voxels(again) == hash_of_voxels(phantom)
    assert hash_of_voxels(other) != hash_of_voxels(phantom)


def test_grey_values_alone_do_not_separate_the_tumour() -> None:
    """Most of the tumour's grey values are also found outside it, so the demo is not solved by a threshold."""
    image, labels = make_case(np.random.default_rng(3))
    tumour = image[labels == LABELS["tumour"]]
    low, high = np.percentile(tumour, (10, 90))
    outside = image[labels != LABELS["tumour"]]
    assert np.count_nonzero((outside > low) & (outside < high)) > 5 * tumour.size


def test_dice_is_one_for_the_truth_and_falls_with_a_shift(phantom: Path, tmp_path: Path) -> None:
    truth = phantom / "labelsTs" / "phantom_02.nii.gz"
    shifted = tmp_path / truth.name
    labels = sitk.ReadImage(str(truth))
    array = np.roll(sitk.GetArrayFromImage(labels), 3, axis=2)
    moved = sitk.GetImageFromArray(array)
    moved.CopyInformation(labels)
    sitk.WriteImage(moved, str(shifted))
    assert dice_per_class([(truth, truth)], LABELS) == {"liver": 1.0, "kidney": 1.0, "tumour": 1.0}
    dice = dice_per_class([(truth, shifted)], LABELS)
    reference = sitk.GetArrayFromImage(labels) == LABELS["tumour"]
    overlap = 2 * np.count_nonzero(reference & (array == LABELS["tumour"])) / (2 * np.count_nonzero(reference))
    assert dice["tumour"] == pytest.approx(overlap)
    assert 0 < dice["tumour"] < dice["liver"] < 1


def test_picture_shows_the_prediction(phantom: Path, tmp_path: Path) -> None:
    image, truth = phantom / "imagesTs" / "phantom_02_0000.nii.gz", phantom / "labelsTs" / "phantom_02.nii.gz"
    empty = tmp_path / "empty.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(truth)) * 0, str(empty))
    for name, prediction in (("right.png", truth), ("wrong.png", empty)):
        save_truth_beside_prediction([(image, truth, prediction)], tmp_path / name)
    right, wrong = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))) for name in ("right.png", "wrong.png"))
    third = right.shape[1] // 3
    np.testing.assert_array_equal(right[40:, : 2 * third], wrong[40:, : 2 * third])
    assert (right[40:, 2 * third :] != wrong[40:, 2 * third :]).any()


def test_demo_runs_the_three_commands_and_scores_their_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the commands replaced by one that predicts the truth, the demo's own part gives a perfect score."""
    ran = []

    def pretend(command: list[str], folder: Path) -> None:
        ran.append(command[0])
        module = importlib.import_module(f"sam3dnet.cli.{command[0].removeprefix('sam3d_')}")
        function = getattr(module, command[0].removeprefix("sam3d_"))
        options = make_parser(function, command[0]).parse_args(command[1:])
        assert options.root == folder
        assert options.device == "cpu"
        if command[0] == "sam3d_predict":
            shutil.copytree(options.input_folder.parent / "labelsTs", options.output_folder)

    monkeypatch.setattr(demo_command, "_run", pretend)
    output = tmp_path / "demo"
    for _ in range(2):
        assert demo_command.main(["--output", str(output), "--device", "cpu"]) == 0
        assert "mean     1.000" in capsys.readouterr().out
        assert (output / "truth_beside_prediction.png").stat().st_size > 10_000
    assert ran == ["sam3d_plan_and_preprocess", "sam3d_train", "sam3d_predict"] * 2


def test_demo_names_the_command_that_failed(tmp_path: Path) -> None:
    with pytest.raises(Sam3dError, match="sam3d_train ended with exit status 2"):
        demo_command._run(["sam3d_train", "--no-such-option"], tmp_path)


@pytest.mark.slow
def test_demo_reaches_its_goal(tmp_path: Path) -> None:
    assert demo_command.demo(output=tmp_path / "demo", device="cpu").mean_dice >= 0.80
