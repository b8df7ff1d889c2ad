"""The benchmark of learning curves: which cases train, and what the table says."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import learning_curves
from learning_curves import (
    AGAIN,
    ALL,
    FROM,
    UNLABELLED,
    WITHOUT_LABELS,
    Cell,
    arguments_of,
    link_unlabelled,
    make_subset,
)

from sam3dnet.preprocessing.splits import make_splits

DATASET = "Dataset980_Made"
CASES = [f"p{patient:02}_{scan}" for patient in range(8) for scan in "ab"]


def make_raw(folder):
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".mha"}
    for name in ("imagesTr", "labelsTr"):
        (folder / DATASET / name).mkdir(parents=True)
    (folder / DATASET / "dataset.json").write_text(json.dumps(described | {"numTraining": len(CASES)}))
    for case in CASES:
        (folder / DATASET / "labelsTr" / f"{case}.mha").write_text(case)
        for channel in ("0000", "0001"):
            (folder / DATASET / "imagesTr" / f"{case}_{channel}.mha").write_text(case)


def split_of(place):
    (fold,) = json.loads(next(place.glob("work/*/prepared/nnUNet_preprocessed/*/splits_final.json")).read_text())
    return fold


def test_fewer_cases_are_among_more_and_all_validate_on_the_same(tmp_path):
    make_raw(tmp_path)
    fold = make_splits(CASES)[0]
    trained = []
    for labels in ("2", "5", ALL):
        place = tmp_path / "work" / labels
        assert make_subset(tmp_path, DATASET, labels, 0, place)
        made = split_of(place)
        assert made["val"] == list(fold.val) and not {one[:3] for one in made["train"]} & {one[:3] for one in fold.val}
        there = {file.name for file in (place / "raw" / DATASET / "imagesTr").iterdir()}
        assert there == {
            f"{case}_{channel}.mha" for case in made["train"] + made["val"] for channel in ("0000", "0001")
        }
        described = json.loads((place / "raw" / DATASET / "dataset.json").read_text())
        assert described["numTraining"] == len(made["train"] + made["val"])
        trained.append(set(made["train"]))
    assert [len(cases) for cases in trained] == [2, 5, len(fold.train)]
    assert trained[0] < trained[1] < trained[2]
    assert not make_subset(tmp_path, DATASET, str(len(fold.train)), 0, tmp_path / "work" / "too_many")
    assert make_subset(tmp_path, DATASET, "2", 1, tmp_path / "work" / "another")
    assert set(split_of(tmp_path / "work" / "another")["train"]) != trained[0]


def test_what_is_left_out_is_unlabelled_and_never_what_validates(tmp_path):
    make_raw(tmp_path)
    fold = make_splits(CASES)[0]
    place = tmp_path / "work" / "5"
    assert make_subset(tmp_path, DATASET, "5", 0, place) and link_unlabelled(tmp_path, DATASET, place)
    left_out = {*fold.train} - {*split_of(place)["train"]}
    there = {file.name for file in (place / WITHOUT_LABELS).iterdir()}
    assert there == {f"{case}_{channel}.mha" for case in left_out for channel in ("0000", "0001")}
    make_subset(tmp_path, DATASET, ALL, 0, tmp_path / "work" / "all")
    assert not link_unlabelled(tmp_path, DATASET, tmp_path / "work" / "all")


def test_numbers_are_in_their_order_and_what_is_missing_is_a_dash():
    def row(labels, method, dice):
        cases = [{"case": "a", "class": "organ", "dice": dice, "nsd": 1.0, "hd95_mm": 1.0}]
        return Cell(DATASET, labels, method, 5.0, 0)._asdict() | {"cases": cases, "iterations": 10}

    rows = [row("all", "sam3d", 0.9), row("10", "sam3d", 0.8), row("2", "sam3d", 0.5), row("2", "nnunet-batch2", 0.25)]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in learning_curves.table(rows).splitlines()[2:]
    ]
    assert [line[2] for line in lines] == ["2", "10", "all"]
    assert lines[0][3:] == ["0.250", "0.500", "10, 10", "1", "1"]
    assert lines[1][3:] == ["-", "0.800", "-, 10", "1", "1"]


@pytest.mark.parametrize(
    ("methods", "prepared"),
    [
        ([FROM], ["sam3d"]),
        (["nnunet-batch2", FROM], ["nnunet-batch2", "sam3d"]),
        ([FROM, "sam3d", "nnunet-batch2"], ["sam3d", "nnunet-batch2"]),
        (["nnunet-batch2"], ["nnunet-batch2"]),
        ([AGAIN, UNLABELLED], ["sam3d"]),
    ],
)
def test_all_that_is_trained_is_prepared(tmp_path, methods, prepared):
    asked = Namespace(work=tmp_path, start=tmp_path / "model", device="cpu", methods=methods)
    given = arguments_of(asked, Cell(DATASET, "2", methods[0], 5.0, 0))
    assert given.methods == prepared
    assert bool(given.train_options) == (methods[0] in (FROM, AGAIN))


def test_what_goes_on_begins_with_the_models_of_the_same_cases(tmp_path):
    asked = Namespace(work=tmp_path, start=None, device="cpu", methods=[AGAIN, UNLABELLED])
    place = tmp_path / DATASET / "2_run0"
    own = place / "work" / DATASET / "5min_run0" / "nnUNet_results" / DATASET
    for method, more in ((AGAIN, []), (UNLABELLED, ["--unlabelled", str(place / WITHOUT_LABELS)])):
        given = arguments_of(asked, Cell(DATASET, "2", method, 5.0, 0))
        option, model, *rest = given.train_options.split()
        assert (option, Path(model).parent, rest) == ("--from", own, more)
        assert given.work == place / method.removeprefix("sam3d-")
