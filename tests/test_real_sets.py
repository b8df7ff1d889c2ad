"""The benchmark on real sets: what is trained, on which core, and what the tables say."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from sam3dnet.evaluation.detection import Detections, summarise
from sam3dnet.inference.calibration import Validated

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import make_results
import real_set_tables
import real_sets

DATASET = "Dataset905_Made"


def row(method, dice, minutes=20.0, run=0, hd95=5.0):
    """Two classes, of which the second is 0.2 worse in each case."""
    cases = [
        {"case": case, "class": name, "dice": value - less, "nsd": value - less, "hd95_mm": hd95}
        for case, value in dice.items()
        for name, less in (("organ", 0.0), ("lesion", 0.2))
    ]
    shape = {"patch_size": [8, 16, 24], "batch_size": 2, "peak_mib": 1234.5, "iterations": 100 + run}
    return {"dataset": DATASET, "method": method, "minutes": minutes, "run": run, "cases": cases, **shape}


OURS = row("sam3d", {"b": 0.9, "a": 0.8}, hd95=3.0)
THEIRS = [row("nnunet", {"a": 0.5, "b": 0.5}), row("nnunet-batch2", {"a": 0.7, "b": 0.92}, hd95=4.0)]


def test_cases_are_averaged_over_classes_and_runs_in_the_order_of_their_names():
    assert real_set_tables.case_means([OURS], "dice") == pytest.approx([0.7, 0.8])
    again = row("sam3d", {"a": 0.6, "b": 0.7}, run=1)
    assert real_set_tables.case_means([OURS, again], "dice") == pytest.approx([0.6, 0.7])


def test_the_difference_is_to_the_better_of_nnu_net_s_and_less_distance_is_better():
    lines = [line.split(" | ") for line in real_set_tables.differences_table([OURS, *THEIRS]).splitlines()[2:]]
    by_metric = {line[3]: line for line in lines}
    assert {line[2] for line in lines} == {"nnunet-batch2"}
    assert by_metric["dice"][4] == "+0.040" and by_metric["dice"][6] == "1 / 1"
    assert by_metric["hd95_mm"][4] == "-1.0" and by_metric["hd95_mm"][6] == "2 / 0"


def test_every_method_and_class_has_its_line():
    results = real_set_tables.table([OURS, row("sam3d", {"a": 0.6, "b": 0.7}, run=1), *THEIRS])
    assert (
        f"| {DATASET} | 20 | sam3d | 0.650 (0.750, 0.550) | 0.650 | 4.0 | 100-101 | 8x16x24, 2 | 1,234 | 2 |" in results
    )
    assert f"| {DATASET} | 20 | nnunet | organ 0.500, lesion 0.300 |" in results
    assert "against" in results and "against" not in real_set_tables.table([OURS])
    assert "against" not in real_set_tables.table(THEIRS)


def test_equal_steps_are_told_as_steps_and_are_of_ours_alone(arguments, tmp_path, monkeypatch, capsys):
    of_steps = [{**one, "steps": 600} for one in (OURS, row("sam3d-no-blocks", {"a": 0.9, "b": 0.9}))]
    for one in of_steps:
        del one["minutes"]
    results = real_set_tables.table(of_steps)
    assert results.startswith("| set | steps | method |") and "minutes" not in results
    assert f"| {DATASET} | 600 | sam3d-no-blocks | 0.800 |" in results
    (axes,) = real_set_tables.draw(of_steps).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Made, 600 steps"]
    real_sets.write_rows(arguments.json, [OURS])
    arguments.steps = [600]
    with pytest.raises(SystemExit, match="length 'minutes', not 'steps'"):
        real_sets.run_all(arguments)
    asked = []
    arguments.plan_options = "--encoder small"
    prepared = real_sets.settings_of(arguments, DATASET, "prepared")
    prepared.preprocessed.mkdir(parents=True)
    monkeypatch.setattr(real_sets.against_nnunet.Stages, "run", lambda *a, **k: asked.append(a[3]) or 1 / 0)
    for call in (
        lambda: real_sets.against_nnunet.prepare_sam3d(prepared),
        lambda: real_sets.train_and_score(prepared, arguments, (DATASET, "sam3d", 600, 2)),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
    assert asked[0][-2:] == ["--encoder", "small"]
    assert asked[1][3:9] == [DATASET, "fold0", "--epochs", "6", "--iterations-per-epoch", "100"]
    assert str(tmp_path / "work" / DATASET / "600steps_run2") in asked[1]
    with pytest.raises(SystemExit):
        real_sets.parse(["--steps", "600", "--methods", "sam3d", "nnunet"])
    assert "leave out nnunet" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "epochs", "each"), [(1, 1, 1), (60, 1, 60), (100, 1, 100), (600, 6, 100)])
def test_a_number_of_steps_is_kept_to_exactly(steps, epochs, each):
    words = real_sets.against_nnunet.in_epochs(steps)
    assert words == ["--epochs", str(epochs), "--iterations-per-epoch", str(each)]


@pytest.mark.parametrize("steps", ["0", "150", "-100"])
def test_a_number_of_steps_that_cannot_be_kept_to_is_refused(steps, capsys):
    with pytest.raises(SystemExit):
        real_sets.parse(["--methods", "sam3d", f"--steps={steps}"])
    assert f"{steps} steps: expected up to 100" in capsys.readouterr().err


def test_results_are_a_section_of_the_page_with_a_plot(tmp_path):
    file = tmp_path / "real_sets_made_up.json"
    real_sets.write_rows(file, [OURS, row("sam3d", {"a": 0.6, "b": 0.7}, run=1), *THEIRS])
    results = json.loads(file.read_text())
    name = make_results.section_name(results, file)
    plots = make_results.draw(results, name, tmp_path / "plots")
    text = make_results.section(results, plots, name)
    assert name == "real_sets_made_up" and plots == ["plots/real_sets_made_up.png"]
    assert f"| {DATASET} | 20 | nnunet-batch2 | dice | -0.060 |" in text
    (axes,) = real_set_tables.draw(results["rows"]).axes
    points = {points.get_label(): points.get_offsets() for points in axes.collections}
    assert points["sam3d"][:, 0].tolist() == pytest.approx([0.75, 0.55])
    assert len(points["nnunet"]) == 1


def test_a_variant_is_no_method_of_others_and_trains_by_the_plan_of_ours(arguments, tmp_path, monkeypatch):
    rows = [OURS, *THEIRS, row("sam3d-no-blocks", {"a": 0.99, "b": 0.99})]
    assert real_set_tables.differences_table(rows) == real_set_tables.differences_table([OURS, *THEIRS])
    prepared, asked = [], []
    monkeypatch.setitem(real_sets.against_nnunet.PREPARE, "sam3d", lambda settings: prepared.append(settings.work))
    (tmp_path / DATASET / "labelsTr").mkdir(parents=True)
    (tmp_path / DATASET / "dataset.json").write_text('{"file_ending": ".mha"}')
    for case in ("1a", "1b", "2a", "3a"):
        (tmp_path / DATASET / "labelsTr" / f"{case}.mha").touch()
    arguments.methods = ["sam3d-no-blocks", "sam3d", "sam3d-zero-start"]
    settings = real_sets.prepare(arguments, DATASET)
    assert len(prepared) == 1
    folds = json.loads((settings.preprocessed / "splits_final.json").read_text())
    assert [fold["val"] for fold in folds] == [["1a", "1b"], ["2a"], ["3a"]]  # of patients
    monkeypatch.setattr(real_sets.against_nnunet.Stages, "run", lambda *a, **k: asked.append(a[3]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        real_sets.train_and_score(settings, arguments, (DATASET, "sam3d-no-blocks", 5.0, 0))
    script, variant, separator, dataset = asked[0][1:5]
    assert Path(script).name == "variants.py" and (variant, separator, dataset) == ("no-blocks", "--", DATASET)
    assert asked[0][asked[0].index("--root") + 1] == str(tmp_path / "work" / DATASET / "5min_run0_no-blocks")


def test_confidences_have_a_table_of_ours_alone(tmp_path):
    assert real_sets.read_confidence(tmp_path) is None
    contents = {
        f"case{n}": {
            "classes": {
                "organ": {
                    "expected_dice": 0.9 + n / 100,
                    "true_dice": 0.7 + n / 100,
                    "objects": [
                        {"certainty": 0.9, "volume_ml": 2.0, "real": True},
                        {"certainty": 0.6, "volume_ml": 1.0, "real": False},
                    ],
                }
            }
        }
        for n in range(8)
    }
    Validated.of_cases(contents).write(tmp_path)
    found = real_sets.read_confidence(tmp_path)
    assert (found["rank_correlation"], found["area_under_curve"], found["false_objects"]) == (pytest.approx(1), 1, 8)
    lines = real_set_tables.confidence_table(
        [OURS | {"confidence": found}, *(r | {"confidence": None} for r in THEIRS)]
    )
    line = lines.splitlines()[2].strip("| ").split(" | ")
    assert len(lines.splitlines()) == 3
    assert line[:4] == [DATASET, "20", "8", "0.200"] and float(line[4]) < 0.1
    assert line[5:8] == ["1.00", "16, 8", "1.000"]


def test_lesions_found_have_a_table():
    cases = [Detections((1.0, 2.0, 3.0), (0.0, 0.9, 0.8), (0.5,)), Detections((0.5,), (0.4,), ())]
    lines = real_set_tables.table([OURS | {"detection": {"lesion": summarise(cases)}}, *THEIRS]).splitlines()
    assert f"| {DATASET} | 20 | sam3d | lesion | 4 | 0.500 | 0.750 | 0.750 | 0.500 | 1.000 | 1.000 |" in lines
    assert not [line for line in lines if "nnunet | lesion |" in line]


def test_methods_of_one_folder_may_begin_at_the_same_moment(arguments, tmp_path, monkeypatch):
    """Both link what was prepared, and neither minds that the other was quicker."""
    prepared = real_sets.settings_of(arguments, DATASET, "prepared")
    settings = real_sets.settings_of(arguments, DATASET, "20min_run0", 20.0)
    settings.work.mkdir(parents=True)
    (settings.work / "nnUNet_preprocessed").symlink_to(prepared.work / "nnUNet_preprocessed")
    prepared.preprocessed.mkdir(parents=True)
    monkeypatch.setattr(Path, "exists", lambda _path: False)  # it appears a moment later
    monkeypatch.setattr(real_sets, "train_and_validate", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            real_sets.train_and_score(prepared, arguments, (DATASET, "sam3d", 20.0, 0))


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / DATASET).mkdir()
    line = ["--raw", str(tmp_path), "--work", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")]
    return real_sets.parse([*line, "--sets", "905", "--methods", "sam3d", "nnunet", "--minutes", "20", "--runs", "2"])


def test_only_what_is_missing_is_trained_and_each_on_its_core(arguments, monkeypatch):
    real_sets.write_rows(arguments.json, [OURS])
    came, both = [], threading.Barrier(2, timeout=30)

    def train(prepared, _arguments, cell):
        assert prepared == DATASET
        if len(came) < 2:
            came.append((cell, real_sets.cores_of_job()))
            both.wait()
        if cell[1] == "nnunet" and cell[3] == 1:
            raise real_sets.StageError("a stage failed")
        return row(cell[1], {"a": 0.5}, run=cell[3])

    cores = sorted(os.sched_getaffinity(0))
    arguments.cores = [cores[0], cores[-1]]
    monkeypatch.setattr(real_sets, "prepare", lambda _arguments, dataset: dataset)
    monkeypatch.setattr(real_sets, "train_and_score", train)
    real_sets.run_all(arguments)
    assert {cell[1:] for cell, _ in came} == {("nnunet", 20.0, 0), ("sam3d", 20.0, 1)}
    assert {count for _, count in came} == {1}
    assert os.sched_getaffinity(0) == set(cores)
    kept = [(r["method"], r["run"]) for r in json.loads(arguments.json.read_text())["rows"]]
    assert kept == [("nnunet", 0), ("sam3d", 0), ("sam3d", 1)]  # the one that failed is tried again next time


def test_all_methods_share_what_was_prepared_and_are_scored_by_name(arguments, tmp_path, monkeypatch):
    asked = {}
    prepared = real_sets.settings_of(arguments, DATASET, "prepared")
    plans = {"configurations": {"3d_fullres": {"patch_size": [8, 8, 8], "batch_size": 2}}}
    prepared.preprocessed.mkdir(parents=True)
    (prepared.preprocessed / "SAM3DPlans.json").write_text(json.dumps(plans))

    def run(_stages, name, _keys, command, *_rest):
        asked[name] = command
        if "--score" in command:
            Path(command[6]).parent.mkdir(parents=True, exist_ok=True)
            Path(command[6]).write_text(json.dumps({"cases": OURS["cases"], "detection": {}}))
        load = {"until_mark": None, "peak_mib": 1.0, "cpu_seconds": 2.0}
        return {"keys": {}, "load": load, "machine": {"date": "today"}}

    monkeypatch.setattr(real_sets.against_nnunet.Stages, "run", run)
    result = real_sets.train_and_score(prepared, arguments, (DATASET, "sam3d", 20.0, 1))
    assert asked["sam3d-train"][3:7] == [DATASET, "fold0", "--minutes", "20.0"]
    root = Path(asked["sam3d-train"][asked["sam3d-train"].index("--root") + 1])
    assert root == tmp_path / "work" / DATASET / "20min_run1"
    assert (root / "nnUNet_preprocessed").resolve() == prepared.work / "nnUNet_preprocessed"
    assert real_sets.key(result) == (DATASET, "sam3d", 20.0, 1)
    assert result["cases"] == OURS["cases"] and result["patch_size"] == [8, 8, 8]
