"""The list of training cases, and dataset.json."""

from pathlib import Path

import pytest
from phantoms import make_raw_dataset

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import (
    TrainingCase,
    channel_names,
    foreground_classes,
    list_training_cases,
    read_dataset_json,
)


def test_cases_are_those_that_nnunet_lists(tmp_path: Path) -> None:
    folder = make_raw_dataset(tmp_path / "Dataset903_List", num_cases=2, channel_names=("CT", "T2"), shape=(5, 6, 7))
    dataset_json = read_dataset_json(folder)
    assert list_training_cases(folder, dataset_json) == [
        TrainingCase(
            f"case_{i}",
            tuple(folder / "imagesTr" / f"case_{i}_000{channel}.nii.gz" for channel in range(2)),
            folder / "labelsTr" / f"case_{i}.nii.gz",
        )
        for i in range(2)
    ]


def test_cases_are_listed_with_nnunet_s_own_result(tmp_path: Path) -> None:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = make_raw_dataset(tmp_path / "Dataset903_List", num_cases=2, shape=(5, 6, 7))
    (folder / "imagesTr" / "notes.txt").write_text("")
    dataset_json = read_dataset_json(folder)
    stock = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    ours = list_training_cases(folder, dataset_json)
    assert {case.name: ([str(file) for file in case.images], str(case.label)) for case in ours} == {
        str(name): (files["images"], files["label"]) for name, files in stock.items()
    }
    listed = {name: {"images": list(files["images"]), "label": files["label"]} for name, files in stock.items()}
    assert list_training_cases(folder, {**dataset_json, "dataset": listed}) == ours


def test_cases_listed_in_dataset_json_lie_in_the_dataset(tmp_path: Path) -> None:
    listed = {"b": {"images": ["x/1.nii"], "label": "y/1.nii"}, "a": {"images": ["x/2.nii"], "label": "y/2.nii"}}
    cases = list_training_cases(tmp_path, {"dataset": listed, "file_ending": ".nii"})
    assert cases == [
        TrainingCase(n, (tmp_path / f"x/{i}.nii",), tmp_path / f"y/{i}.nii") for n, i in (("a", 2), ("b", 1))
    ]
    for outside in ("/2.nii", "../2.nii"):
        listed["a"]["images"] = [outside]
        with pytest.raises(
            DatasetError, match=r"a: .*2\.nii lies outside of the dataset; expected a file in its folder"
        ):
            list_training_cases(tmp_path, {"dataset": listed, "file_ending": ".nii"})


def test_dataset_json_problems_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset.json: not found"):
        read_dataset_json(tmp_path)
    (tmp_path / "dataset.json").write_text("{'a': 1}")
    with pytest.raises(DatasetError, match=r"dataset.json: cannot be read as JSON: line 1, column 2.*correct it in"):
        read_dataset_json(tmp_path)
    (tmp_path / "dataset.json").write_text("[1]")
    with pytest.raises(DatasetError, match=r"dataset.json: holds a list, expected an object"):
        read_dataset_json(tmp_path)


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_channels_are_found_under_both_keys(key: str) -> None:
    assert channel_names({key: {"0": "CT"}}) == {"0": "CT"}


def test_regions_are_classes_and_background_and_ignore_are_not() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert foreground_classes({"labels": labels}) == {"whole": (1, 2), "core": (2,)}
