"""A dataset that is planned again: what a user changed stays, folds follow the cases, stale cases are refused."""

import json
import shutil
from pathlib import Path

import pytest
from commands import train_fold
from phantoms import make_raw_dataset
from tiny_models import make_model

from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import Folders, activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset

DATASET = "Dataset908_Again"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return activate_folders(tmp_path)


def plan(folders: Folders, preprocess: bool = True) -> Path:
    file = plan_dataset(DATASET, folders, cost=training_cost, seconds=training_seconds, encoder="tiny", progress=False)
    if preprocess:
        preprocess_dataset(DATASET, folders, num_processes=0, progress=False)
    return file


def edit(file: Path, spacing: list[float], mirror_axes: list[int]) -> None:
    content = json.loads(file.read_text())
    content["configurations"]["3d_fullres"]["spacing"] = spacing
    content["sam3d"]["mirror_axes"] = mirror_axes
    file.write_text(json.dumps(content))


def test_changes_by_hand_stay_and_cases_follow_them(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    make_raw_dataset(folders.raw / DATASET, num_cases=2)
    file = plan(folders)
    edit(file, [6.0, 2.0, 2.0], [0, 1])
    with pytest.raises(DatasetError, match=f"2 cases were preprocessed by another plan.* -d {DATASET}"):
        train_fold(DATASET, 0, folders, device="cpu", epochs=1, iterations_per_epoch=1)
    plan(folders)
    content = json.loads(file.read_text())
    assert content["configurations"]["3d_fullres"]["spacing"] == [6.0, 2.0, 2.0]
    assert content["sam3d"]["mirror_axes"] == [0, 1]
    assert "sam3d.mirror_axes of SAM3DPlans.json is kept as changed by hand: [0, 1]" in caplog.text
    train_fold(DATASET, 0, folders, device="cpu", epochs=1, iterations_per_epoch=1)


def test_a_crop_that_does_not_fit_the_tokens_is_a_sentence(folders: Folders) -> None:
    make_raw_dataset(folders.raw / DATASET, num_cases=2)
    file = plan(folders)
    content = json.loads(file.read_text())
    content["configurations"]["3d_fullres"]["patch_size"] = [11, 17, 23]
    file.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="patch_size that is a multiple of the token stride"):
        train_fold(DATASET, 0, folders, device="cpu")


def test_folds_follow_the_cases(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    raw = make_raw_dataset(folders.raw / DATASET, num_cases=3)
    plan(folders)
    splits = folders.preprocessed / DATASET / "splits_final.json"
    assert [fold["val"] for fold in json.loads(splits.read_text())] == [["case_0"], ["case_1"], ["case_2"]]
    make_raw_dataset(raw, num_cases=4)
    plan(folders)
    assert all("case_3" in fold["train"] for fold in json.loads(splits.read_text()))
    assert "1 new cases join the training part of each fold: case_3" in caplog.text
    for file in (*raw.glob("imagesTr/case_0_*"), *raw.glob("labelsTr/case_0.*")):
        file.unlink()
    plan(folders)
    assert not any("case_0" in fold["train"] for fold in json.loads(splits.read_text()))
    assert sorted(path.name for path in (splits.parent / "gt_segmentations").iterdir()) == [
        f"case_{n}.nii.gz" for n in (1, 2, 3)
    ]
    with pytest.raises(DatasetError, match=r"folds\[0\].val is empty; expected .* delete the file"):
        train_fold(DATASET, 0, folders, device="cpu")


def test_one_case_trains_as_all(folders: Folders) -> None:
    make_raw_dataset(folders.raw / DATASET, num_cases=1)
    plan(folders)
    with pytest.raises(PlanError, match=r'fold 0: the dataset has one case, and so no folds; .*"all"'):
        train_fold(DATASET, 0, folders, device="cpu")
    train_fold(DATASET, "all", folders, device="cpu", epochs=1, iterations_per_epoch=1)


def test_a_dataset_of_stock_nnunet_without_splits_gets_some(folders: Folders) -> None:
    make_raw_dataset(folders.raw / DATASET, num_cases=2)
    plan(folders)
    (folders.preprocessed / DATASET / "splits_final.json").unlink()
    shutil.rmtree(next((folders.preprocessed / DATASET).rglob("sam3d_records")))  # nor records
    train_fold(DATASET, 1, folders, device="cpu", epochs=1, iterations_per_epoch=1)


def test_labels_that_stock_nnunet_leaves_of_a_removed_case_count_no_more(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    raw = make_raw_dataset(folders.raw / DATASET, num_cases=3)
    file = plan(folders)
    for lost in (*raw.glob("imagesTr/case_0_*"), *raw.glob("labelsTr/case_0.*")):
        lost.unlink()
    stored = file.with_name("SAM3DPlans_3d_fullres")
    for lost in (*stored.glob("case_0*"), *stored.glob("*/case_0*"), file.with_name("splits_final.json")):
        lost.unlink()
    assert (file.parent / "gt_segmentations" / "case_0.nii.gz").is_file()
    options = {"device": "cpu", "epochs": 1, "iterations_per_epoch": 1, "validate": False}
    train_fold(DATASET, 1, folders, **options)
    splits = json.loads(file.with_name("splits_final.json").read_text())
    assert splits == [{"train": ["case_2"], "val": ["case_1"]}, {"train": ["case_1"], "val": ["case_2"]}]
    train_fold(DATASET, "all", folders, **options)
    assert "not preprocessed" not in caplog.text
    shutil.rmtree(raw)  # then they are all that is known
    train_fold(DATASET, "all", folders, **options)
    assert (
        "1 cases of the dataset are not preprocessed for 3d_fullres of SAM3DPlans, and not used: case_0" in caplog.text
    )


def test_cases_that_only_another_plan_has_are_told_with_what_preprocesses_them(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    raw = make_raw_dataset(folders.raw / DATASET, num_cases=3)
    file = plan(folders)
    other = json.loads(file.read_text()) | {"plans_name": "Other"}
    other["configurations"]["3d_fullres"]["data_identifier"] = "Other_3d_fullres"
    file.with_name("Other.json").write_text(json.dumps(other))
    make_raw_dataset(raw, num_cases=4)
    preprocess_dataset(DATASET, folders, plans_name="Other", num_processes=0, progress=False)
    splits = file.with_name("splits_final.json")
    line = f"sam3d_plan_and_preprocess -d {DATASET} --encoder tiny"
    told = f"1 cases of fold {{}} are in the dataset, but not .* for 3d_fullres of SAM3DPlans: case_3; run {line}$"
    with pytest.raises(DatasetError, match=told.format(0)):
        train_fold(DATASET, 0, folders, device="cpu")
    splits.unlink()
    for _ in range(2):  # new folds are of all cases
        with pytest.raises(DatasetError, match=told.format(3)):
            train_fold(DATASET, 3, folders, device="cpu")
    assert [fold["val"] for fold in json.loads(splits.read_text())] == [[f"case_{number}"] for number in range(4)]
    train_fold(DATASET, "all", folders, device="cpu", epochs=1, iterations_per_epoch=1, validate=False)
    lacking = "1 cases of the dataset are not preprocessed for 3d_fullres of SAM3DPlans, and not used: case_3"
    assert f"{lacking}; {line} preprocesses them" in caplog.text
    splits.write_text(splits.read_text().replace("case_3", "case_03"))
    with pytest.raises(DatasetError, match=r"names case_03, which the dataset does not have \(is case_0 meant\?\)"):
        train_fold(DATASET, 0, folders, device="cpu")


class Found(Exception):
    pass


@pytest.mark.parametrize(("plans_name", "expected"), [("SAM3DPlans", "unetr"), ("Other", "Other")])
def test_a_training_starts_from_a_model_of_its_own_plans_or_from_the_only_one(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, plans_name: str, expected: str
) -> None:
    from sam3dnet.training import starting

    make_raw_dataset(folders.raw / DATASET, num_cases=2)
    file = plan(folders)
    file.with_name("Other.json").write_text(json.dumps(json.loads(file.read_text()) | {"plans_name": "Other"}))
    there = folders.results / "Dataset902_Other"
    for name in {"unetr", expected}:
        made = make_model(folders.results / "made", dataset=there.name)
        there.mkdir(exist_ok=True)
        made.rename(there / f"nnUNetTrainerSAM3D__{name}__3d_fullres")
    asked: list[tuple] = []

    def read(*given: object) -> None:
        asked.append(given)
        raise Found

    monkeypatch.setattr(starting, "read_starting_point", read)
    with pytest.raises(Found):
        train_fold(DATASET, 1, folders, device="cpu", plans=plans_name, from_model="902")
    own = folders.results / DATASET / f"nnUNetTrainerSAM3D__{plans_name}__3d_fullres" / "fold_1"
    assert asked == [(there / f"nnUNetTrainerSAM3D__{expected}__3d_fullres", 1, DATASET, {"case_1"}, own)]
