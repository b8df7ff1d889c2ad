"""The benchmark of annotation: what is kept of it, what is refused before any work, and what the table says."""

import json
import sys
from pathlib import Path

import pytest
from phantoms import LABELS, make_raw_dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import annotation_study
from annotation_study import Study, name_of_model, parse, table

DATASET = "Dataset982_Annotated"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make_raw_dataset(tmp_path_factory.mktemp("raw") / DATASET, num_cases=4)


def make_model(folder, labels=LABELS, weights="trained"):
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text("{}")
    described = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "fold_0" / "checkpoint_final.pth").write_text(weights)
    return folder


def way(name, target=0.85, **more):
    case = {"case": "a", "before": {"organ": 0.5}, "clicks": {"organ": 2}, "after": {"organ": 0.75}}
    return {"way": name, "cases": [case], "rounds": [{"after": 0, "dice": None}], "target": target, **more}


@pytest.fixture
def study(tmp_path, raw, monkeypatch):
    """Run the study with some options; a way takes no time. Gives the names of those that were done."""
    done = []
    for method in ("without_learning", "with_learning"):
        monkeypatch.setattr(Study, method, lambda self, name: done.append(name) or way(name))
    monkeypatch.setattr(annotation_study, "begin", lambda a: None)
    base = make_model(tmp_path / "Dataset983_Base" / "model")

    def run(*options, model=base):
        line = ["--raw", raw, "--work", tmp_path / "work", "--base", model, "--known", 1, *options]
        monkeypatch.setattr(sys, "argv", ["annotation_study.py", *map(str, line)])
        done.clear()
        annotation_study.main()
        return list(done)

    return run


def test_ways_are_kept_and_those_of_other_settings_refused(study, tmp_path, capsys):
    assert study("--ways", "once", "loop", "--every", 2) == ["once", "loop"]
    assert study("--ways", "once", "loop", "--every", 2) == []
    kept = json.loads((tmp_path / "work" / "loop.json").read_text())["settings"]
    assert {name: kept[name] for name in ("raw", "cases", "target", "every")} == {
        **{"raw": DATASET, "cases": 60},
        **{"target": 0.85, "every": 2},
    }
    assert str(tmp_path) not in json.dumps(kept)
    for options, message in (
        (["--every", 3], r"loop.json was made with every 2, not 3; give what it was made with, take another --work"),
        (["--every", 2, "--minutes", 4], r"loop.json was made with minutes 3.0, not 4.0"),
        (["--every", 2, "--target", 0.9], r"once.json was made with target 0.85, not 0.9"),
        (["--every", 2, "--cases", 2], r"once.json was made with cases 60, not 2"),
        (["--every", 2, "--known", 2], r"once.json was made with labelled \['case_\d'\], not \['case_\d', 'case_\d'\]"),
    ):
        with pytest.raises(SystemExit, match=message):
            study("--ways", "unsure", *options)
    again = make_model(tmp_path / "again" / "Dataset983_Base" / "model", weights="trained again")
    with pytest.raises(SystemExit, match=r"once.json was made with base 'Dataset983_Base/model \(\w{12}\)', not"):
        study("--ways", "once", "--every", 2, model=again)
    other = make_model(tmp_path / "Dataset984_Other" / "model")
    assert study("--ways", "other", "--other", other, "--every", 2) == ["other"]
    assert study("--ways", "once", "--every", 2) == []  # which names no other model, and is not asked for its way
    assert "Warning" not in capsys.readouterr().err


def test_a_way_that_does_not_say_how_it_was_made_is_taken_with_a_warning(study, tmp_path, capsys):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "loop.json").write_text(json.dumps(way("loop")))
    assert study("--ways", "loop", "--every", 7) == []
    output = capsys.readouterr()
    assert "loop.json does not say how it was made; taken to be as asked for now" in output.err
    assert "| loop | 1 | 2 |" in output.out
    with pytest.raises(SystemExit, match=r"loop.json was made with target 0.85, not 0.9"):
        study("--ways", "loop", "--target", 0.9)


def test_models_that_do_not_do_are_refused_before_any_work(study, tmp_path):
    few = make_model(tmp_path / "Dataset984_Other" / "model", {"background": 0, "tumour": 1})
    for options, message in (
        (["--other", few], rf"--other .*model has the classes tumour, {DATASET} has organ, lesion; .*leave other out"),
        ([], r"--ways other needs --other MODEL; give it, or other --ways"),
        (["--other", tmp_path / "nothing"], r"--other: .*expected a model folder|--other: .*nothing"),
    ):
        with pytest.raises(SystemExit, match=message):
            study("--ways", "loop", "other", *options)
    assert not (tmp_path / "work").exists()


def test_a_model_is_named_without_where_it_is(tmp_path):
    one, same, retrained = (
        name_of_model(make_model(tmp_path / place / "Dataset983_Base" / "model", weights=weights))
        for place, weights in (("a", "trained"), ("b", "trained"), ("c", "again"))
    )
    assert one == same and one.startswith("Dataset983_Base/model (")
    assert retrained != one


def test_a_case_without_any_class_is_neither_given_up_nor_accepted_badly():
    nothing = {"case": "b", "before": {}, "clicks": {}, "after": {}}
    row = way("once")
    row["cases"] = [nothing, *row["cases"]]
    cells = [cell.strip() for cell in table([row]).splitlines()[2].strip("|").split("|")]
    assert cells[:7] == ["once", "2", "2", "2", "1", "1", "0.750"]
    assert table([row | {"cases": [nothing]}]).splitlines()[2].split("|")[6:8] == [" 0 ", " - "]


def test_what_is_accepted_is_the_truth_where_it_was_finished_by_other_means():
    corrected = way("loop")["cases"][0]
    left = corrected | {"clicks": {"organ": 0}}
    found = {name: [annotation_study.is_true(name, row) for row in (corrected, left)] for name in annotation_study.WAYS}
    assert found.pop("careful") == [True, False] and found.pop("true") == [True, True]
    assert not any(map(any, found.values()))


def test_every_way_is_studied_unless_some_are_named():
    line = ["--raw", "r", "--work", "w"]
    assert parse(line).ways == annotation_study.WAYS
    assert parse([*line, "--ways", "once"]).ways == ["once"]
