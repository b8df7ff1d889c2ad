"""Folds for what is there; hand-made ones are checked, and brought up to date with the cases."""

import json
import logging
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import make_raw_dataset

from sam3dnet import plan_and_preprocess
from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.preprocessing.patients import of_several, others_of_patients, patients_of
from sam3dnet.preprocessing.splits import (
    REMEDY,
    Split,
    fold_of,
    make_splits,
    read_splits,
    take_given_splits,
    update_splits,
)
from sam3dnet.training.asked import _tell_changes

CASES = [f"case_{index}" for index in range(7)]
SCANS = [f"sub-{index:02}_ses-{session}" for index in range(6) for session in range(1 + index % 3)]


def test_five_cases_and_more_get_the_folds_of_nnunet():
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    stock = generate_crossval_split(list(np.sort(CASES)), seed=12345, n_splits=5)
    assert [(list(fold.train), list(fold.val)) for fold in make_splits(CASES[::-1])] == [
        (list(fold["train"]), list(fold["val"])) for fold in stock
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_cases_are_left_out_one_by_one(count, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    update_splits(tmp_path / "splits_final.json", CASES[:count], CASES[:count])
    splits = read_splits(tmp_path / "splits_final.json", DatasetError, REMEDY)
    assert [fold.val for fold in splits] == [(name,) for name in CASES[:count]]
    assert all(sorted((*fold.train, *fold.val)) == CASES[:count] for fold in splits)
    assert f"{count} cases: {count} folds" in caplog.text


def test_one_case_has_no_folds(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file = tmp_path / "splits_final.json"
    update_splits(file, ["only"], ["only"])
    assert not file.exists()
    assert 'train on it with "all"' in caplog.text
    with pytest.raises(PlanError, match=r'fold 0: the dataset has one case, and so no folds; .*"all"'):
        fold_of((), 0, ["only"], file)


def test_new_cases_join_the_training_and_lost_ones_leave(tmp_path, caplog):
    file = tmp_path / "splits_final.json"
    update_splits(file, CASES[:6], CASES[:6])
    before = read_splits(file, DatasetError, REMEDY)
    lost = before[0].train[0]
    now = [name for name in CASES if name != lost]
    update_splits(file, now, CASES[:6])
    after = read_splits(file, DatasetError, REMEDY)
    for old, new in zip(before, after, strict=True):
        assert set(new.train) == set(old.train) - {lost} | {"case_6"}
        assert set(new.val) == set(old.val) - {lost}
    assert "1 new cases join the training part of each fold: case_6" in caplog.text
    assert f"1 cases are gone, and leave their folds: {lost}" in caplog.text


def test_a_fold_that_loses_its_last_validation_case_is_told(tmp_path, caplog):
    file = tmp_path / "splits_final.json"
    update_splits(file, CASES[:6], CASES[:6])
    (number, lost), *_ = [(n, fold.val[0]) for n, fold in enumerate(make_splits(CASES[:6])) if len(fold.val) == 1]
    update_splits(file, [name for name in CASES[:6] if name != lost], CASES[:6])
    text = f"fold {number} has no validation case any more; delete {file} for new folds, and train all of these again"
    assert text in caplog.text


def test_a_split_that_leaves_out_cases_on_purpose_stays_and_that_is_said(tmp_path, caplog):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": CASES[:3], "val": CASES[3:4]}]))
    content = file.read_bytes()
    update_splits(file, CASES, CASES)
    assert file.read_bytes() == content
    assert f"3 cases are in no part of any fold, and left so, in case that is meant: {', '.join(CASES[4:])}; add" in (
        caplog.text
    )


def test_a_patients_cases_stay_together(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file = tmp_path / "splits_final.json"
    update_splits(file, SCANS, SCANS)
    splits = read_splits(file, DatasetError, REMEDY)
    assert len(splits) == 5 and sorted(name for fold in splits for name in fold.val) == SCANS
    for fold in splits:
        assert sorted((*fold.train, *fold.val)) == SCANS
        assert not {name[:6] for name in fold.train} & {name[:6] for name in fold.val}
        fold_of(splits, splits.index(fold), SCANS, file)
    assert "4 patients have several cases" in caplog.text and "sub-01_ses-0, sub-01_ses-1 are of sub-01" in caplog.text
    assert "both parts" not in caplog.text and "Warning" not in caplog.text


def test_a_patients_new_case_validates_where_the_patient_does(tmp_path):
    file = tmp_path / "splits_final.json"
    update_splits(file, SCANS, SCANS)
    before, new = read_splits(file, DatasetError, REMEDY), ["sub-00_ses-1", "sub-09_ses-0"]
    update_splits(file, [*SCANS, *new], SCANS)
    for old, now in zip(before, read_splits(file, DatasetError, REMEDY), strict=True):
        validates = "sub-00_ses-0" in old.val
        assert set(now.val) - set(old.val) == ({new[0]} if validates else set())
        assert set(now.train) - set(old.train) == ({new[1]} if validates else set(new))


def test_three_patients_are_left_out_one_by_one(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    scans = [f"{patient}{scan}" for patient in (1, 2, 3) for scan in "ab"]
    update_splits(tmp_path / "splits_final.json", scans, scans)
    splits = read_splits(tmp_path / "splits_final.json", DatasetError, REMEDY)
    assert [fold.val for fold in splits] == [("1a", "1b"), ("2a", "2b"), ("3a", "3b")]
    assert "3 patients: 3 folds, each of which leaves one patient out" in caplog.text


def test_a_patient_in_both_parts_of_a_fold_is_told(tmp_path, caplog):
    split = Split(train=tuple(SCANS[:1] + SCANS[2:]), val=(SCANS[1],))
    fold_of((split,), 0, SCANS, tmp_path / "s.json")
    assert "fold 0 trains on some cases of 1 patients, by the cases' names, and validates on others" in caplog.text
    assert "sub-01; delete" in caplog.text


@pytest.mark.parametrize(
    ("cases", "several"),
    [
        (["acdc001_a", "acdc001_b", "acdc002_a", "acdc010_a"], {"acdc001": ["acdc001_a", "acdc001_b"]}),
        (["1-T1", "1-T2", "10-T1", "2"], {"1": ["1-T1", "1-T2"]}),
        (["x1a", "x1b", "x2a", "x3"], {"x1": ["x1a", "x1b"]}),
        (
            [f"BraTS-GLI-0000{n}-00{scan}" for n in range(3) for scan in range(1 + n // 2)],
            {"BraTS-GLI-00002": ["BraTS-GLI-00002-000", "BraTS-GLI-00002-001"]},
        ),
        (
            ["s1_v1_r1", "s1_v1_r2", "s1_v2_r1", "s2_v1_r1", "s3_v1_r1"],  # the shortest beginning, not s1_v1
            {"s1": ["s1_v1_r1", "s1_v1_r2", "s1_v2_r1"]},
        ),
        ([f"hippocampus_{number:03}" for number in range(20)], {}),
        ([f"LIDC-IDRI-{number:04}" for number in range(20)], {}),
        ([f"embryo08_{number:02}" for number in range(8)], {}),  # one beginning
        (["CT_1", "CT_2", "MR_1", "MR_2", "US_1", "US_2"], {}),  # without a number
        ([f"site{site}_{number:03}" for site in range(5) for number in range(9)], {}),  # few for the cases
        (["1", "2", "3", "3a"], {"3": ["3", "3a"]}),
        (["p1", "p1_later", "p2", "p3-2", "p3_1"], {"p1": ["p1", "p1_later"], "p3": ["p3-2", "p3_1"]}),
        (["case_0", "case_1", "p1_a", "p1_b", "p2_a", "p3_a"], {"p1": ["p1_a", "p1_b"]}),  # of two origins
        ([f"{kind}{number}" for kind in ("CT_", "MR_") for number in range(5)], {}),
        (["-", "_", "."], {}),
        ([], {}),
    ],
)
def test_patients_by_names(cases, several):
    assert of_several(patients_of(cases)) == several


def test_a_case_in_both_parts_of_a_fold_is_told(tmp_path, caplog):
    split = Split(train=(*SCANS[2:], SCANS[0]), val=(SCANS[0],))
    fold_of((split,), 0, SCANS, tmp_path / "s.json")
    assert "fold 0 trains on 1 of its 1 validation cases, so that its validation will be better" in caplog.text
    assert f"{SCANS[0]}; take them out of one part in" in caplog.text and "patients" not in caplog.text


def test_cases_in_no_part_of_a_fold_are_told(tmp_path, caplog):
    fold_of((Split(train=("case_0",), val=("case_1",)),), 0, CASES[:3], tmp_path / "s.json")
    assert "1 cases are in neither part of fold 0, and not used: case_2" in caplog.text


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["case_0"], [], r"folds\[0\].val is empty"),
        ([], ["case_0"], r"folds\[0\].train is empty"),
        (["case_0", "case_0"], ["case_1"], r"\[0\].train names case_0 twice"),
        (["case_0_0000"], ["case_1"], r"names case_0_0000, which the dataset does not have \(is case_0 meant\?\)"),
        (["case_0"], ["case_1.nii.gz"], r"\[0\].val names case_1.nii.gz, .* without channel and ending"),
        (["case_0"], ["nothing alike"], r"\[0\].val names nothing alike, which the dataset does not have; expected"),
    ],
)
def test_hand_made_folds_are_checked(train, val, message, tmp_path):
    splits = (Split(train=tuple(train), val=tuple(val)),)
    with pytest.raises(DatasetError, match=message + ".*(correct it, or delete the file|and ending)"):
        fold_of(splits, 0, CASES, tmp_path / "splits_final.json")


def test_a_fold_that_there_is_not(tmp_path):
    with pytest.raises(PlanError, match='fold 5: the dataset has the folds 0 to 4; choose one, or "all"'):
        fold_of(make_splits(CASES), 5, CASES, tmp_path / "s.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "ends in the middle"),
        ('{"train": []}', "expected an array"),
        ('[{"train": ["a"]}]', r"val is missing"),
        ('[{"train": ["a"], "val": "b"}]', r"val must be a list"),
        ('\ufeff[{"train": ["a"], "val": ["b"]}]', "byte order mark"),
    ],
)
def test_damaged_files_are_sentences(content, message, tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=rf"splits_final.json.*{message}.*delete the file"):
        read_splits(file, DatasetError, REMEDY)
    with pytest.raises(DatasetError, match=r'\[{"train": \["case_1", "case_2"\], "val": \["case_3"\]}, ...\]$'):
        read_splits(file, DatasetError, REMEDY)


def test_further_images_are_of_the_patients_that_the_folds_were_made_of():
    known = [f"p{patient:02}_{scan}" for patient in range(10) for scan in "ab"]
    more = [f"p{patient:02}_{scan}" for patient in range(10) for scan in "cdefghijkl"]  # too many to tell by themselves
    assert patients_of([*known, *more])["p01_c"] == "p01_c"
    assert others_of_patients(["p01_a"], known, more) == {name for name in more if name.startswith("p01")}
    assert others_of_patients([], known, more) == set()
    assert others_of_patients(["case_12"], ["case_12", "case_3"], ["case_121", "case_12_late", "case_12b"]) == {
        "case_12_late",
        "case_12b",
    }


@pytest.mark.parametrize(
    ("cases", "told"),
    [
        (["p012_a", "p012_b", "p013_a", "p013_b"], "p012 (p012_a, p012_b) and p013 (p013_a, p013_b), which is too few"),
        (["case_1", "case_2", "case_3", "case_4"], None),
        ([f"p{patient}_{scan}" for patient in range(3) for scan in "ab"], None),  # which are patients
        (["p012_a", "p012_b", "p013"], None),
    ],
)
def test_what_may_be_two_patients_is_told(cases, told, tmp_path, caplog):
    update_splits(tmp_path / "splits_final.json", cases, cases)
    assert told in caplog.text if told else "two patients" not in caplog.text


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_lies_in_the_place_of_the_folds_is_told_and_stays(kind, tmp_path):
    file = tmp_path / "splits_final.json"
    file.mkdir() if kind == "folder" else file.symlink_to(tmp_path / "disk" / "splits_final.json")
    for act in (
        lambda: update_splits(file, CASES, CASES),
        lambda: read_splits(file, DatasetError, REMEDY),
        lambda: take_given_splits(tmp_path, tmp_path / "other.json"),
    ):
        with pytest.raises(DatasetError, match=r"splits_final.json: is a (folder|link to .*); expected the file"):
            act()
    assert file.is_dir() or file.is_symlink()


GIVEN = [{"train": CASES[:3], "val": CASES[3:5]}]


def test_folds_beside_the_raw_data_are_taken_and_go_on_with_new_cases(tmp_path, caplog):
    given, file = tmp_path / "splits_final.json", tmp_path / "preprocessed.json"
    given.write_text(json.dumps(GIVEN))
    take_given_splits(tmp_path, file)
    assert json.loads(file.read_text()) == GIVEN
    update_splits(file, CASES[:6], CASES[:5])
    caplog.clear()
    take_given_splits(tmp_path, file)
    assert not caplog.text and read_splits(file, DatasetError, REMEDY)[0].train == (*CASES[:3], CASES[5])
    given.write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:5]}]))
    take_given_splits(tmp_path, file)
    assert f"{given} has other folds than {file}, and the latter count; delete these" in caplog.text
    given.write_text("[{")
    with pytest.raises(DatasetError, match=rf"{given}: cannot be read as JSON: it ends in the middle"):
        take_given_splits(tmp_path, file)


def test_planning_again_goes_on_where_folds_lie_beside_the_raw_data(tmp_path, caplog):
    raw = make_raw_dataset(tmp_path / "nnUNet_raw" / "Dataset988_Given", num_cases=5)
    given = raw / "splits_final.json"
    given.write_text(json.dumps([{"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]}]))
    plan = partial(plan_and_preprocess, datasets=[988], root=tmp_path, num_processes=0, device="cpu")
    plan()
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        image = sitk.ReadImage(str(raw / part / f"case_0{ending}"))
        sitk.WriteImage(sitk.Flip(image, [True, False, False]), str(raw / part / f"case_5{ending}"))
    described = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(described | {"numTraining": 6}))
    for _ in range(2):
        plan()
    folds = json.loads((tmp_path / "nnUNet_preprocessed" / raw.name / "splits_final.json").read_text())
    assert folds == [{"train": ["case_0", "case_1", "case_2", "case_5"], "val": ["case_3", "case_4"]}]
    given.write_text("[{")
    with pytest.raises(DatasetError, match=rf"{given}: cannot be read as JSON"):
        plan()


def test_cases_that_came_or_went_since_planning_are_told_when_a_fold_is_trained(caplog):
    splits = [Split(train=("a", "b"), val=("c",))]
    _tell_changes(splits, {"a", "b", "c"}, {"a", "b", "d"}, "Dataset988_Given", "plan")
    assert "1 cases of Dataset988_Given are in no fold and not preprocessed, and not used: d; plan" in caplog.text
    assert "1 cases of Dataset988_Given are no longer there, and used as they were: c; plan" in caplog.text
    caplog.clear()
    _tell_changes(splits, {"a", "b", "c"}, {"a", "b", "c"}, "Dataset988_Given", "plan")
    assert not caplog.text
