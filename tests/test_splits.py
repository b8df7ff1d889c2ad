"""Folds for what is there; hand-made ones are checked, and brought up to date with the cases."""

import json
import logging

import numpy as np
import pytest

from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.preprocessing.splits import REMEDY, Split, fold_of, make_splits, read_splits, update_splits

CASES = [f"case_{index}" for index in range(7)]


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
    assert f"fold {number} has no validation case any more; delete {file} for new folds" in caplog.text


def test_a_split_that_leaves_out_cases_on_purpose_stays(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": CASES[:3], "val": CASES[3:4]}]))
    content = file.read_bytes()
    update_splits(file, CASES, CASES)
    assert file.read_bytes() == content


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
