"""sam3d_evaluate: options reach their functions, tables are printed, and a case that fails is named."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_folder import LABELS, LESION, ORGAN, write_description, write_labels

from sam3dnet.cli import evaluate as command
from sam3dnet.cli import report as report_command
from sam3dnet.cli.command import make_parser
from sam3dnet.errors import DatasetError
from sam3dnet.settings.evaluation import EvaluationSettings


@pytest.mark.parametrize(
    ("function", "prog"), [(command.evaluate, "sam3d_evaluate"), (report_command.report, "sam3d_report")]
)
def test_every_parameter_is_an_option_with_help(function: Any, prog: str) -> None:
    actions = {action.dest: action for action in make_parser(function, prog)._actions}
    assert inspect.signature(function).parameters.keys() <= actions.keys()
    assert all(action.help for action in actions.values())


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A line for two cases, of which b has no prediction."""
    write_description(tmp_path / "data", LABELS)
    labels = write_labels(tmp_path / "data" / "labelsTs", a={ORGAN: 1, LESION: 2}, b={ORGAN: 1})
    predictions = write_labels(tmp_path / "preds", a={ORGAN: 1})
    return ["-p", str(predictions), "-g", str(labels), "--num-processes", "0"]


def test_table_files_and_the_missing_case(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*line, "-o", str(tmp_path / "results")]) == 1
    output = capsys.readouterr()
    assert "lesion  Dice" in output.out
    assert f"Written: {tmp_path / 'results' / 'results.json'}, {tmp_path / 'results' / 'results.csv'}" in output.out
    assert "case b: no prediction in" in output.err
    assert (tmp_path / "results" / "results.json").is_file()


def test_missing_as_empty_succeeds_and_writes_beside_the_predictions(line: list[str], tmp_path: Path) -> None:
    assert command.main([*line, "--missing-as-empty"]) == 0
    assert (tmp_path / "preds" / "results.csv").is_file()


def test_two_folders_are_compared(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labels(tmp_path / "B", a={ORGAN: 1, LESION: 2}, b={ORGAN: 1})
    assert command.main([line[0], line[1], str(tmp_path / "B"), *line[2:], "-o", str(tmp_path / "out")]) == 1
    output = capsys.readouterr()
    assert "B - A" in output.out
    assert "case b:" in output.err
    assert (tmp_path / "out" / "comparison.json").is_file()


def recorder(seen: list[Any]) -> Any:
    """Stand for a function; keep what it is called with, and end the command."""

    def record(*given: Any, **options: Any) -> None:
        seen.append((given, options))
        raise DatasetError("enough")

    return record


def test_options_of_evaluation_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.evaluation import folder

    seen: list[Any] = []
    monkeypatch.setattr(folder, "evaluate_folder", recorder(seen))
    words = "-p P -g G --dataset-json d.json --tolerance 1.5 --lesion-iou 0.3 --missing-as-empty --num-processes 3"
    assert command.main(words.split()) == 2
    expected = EvaluationSettings(
        predictions=[Path("P")],
        labels=Path("G"),
        dataset_json=Path("d.json"),
        tolerance=1.5,
        lesion_iou=0.3,
        missing_as_empty=True,
        num_processes=3,
    )
    assert seen == [((Path("P"), Path("G"), expected), {"cluster": None})]


def test_options_of_clicks_reach_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.evaluation import click_study

    seen: list[Any] = []
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(click_study, "study_clicks", recorder(seen))
    words = (
        "--clicks 3,0,10 -d 907 -f fold2 -i I -g G --first-click margin --cases 4 --tolerance 1 "
        "--configuration 3d_lowres --plans OtherPlans --device cpu --placing corrective random "
        "--given one-by-one at-once"
    )
    assert command.main(words.split()) == 2
    (((settings, folders), _),) = seen
    assert folders.results == tmp_path / "nnUNet_results"
    assert settings.numbers_of_clicks == (0, 3, 10)
    assert settings == EvaluationSettings(
        clicks="3,0,10",
        dataset="907",
        fold="fold2",
        images=Path("I"),
        labels=Path("G"),
        placing=["corrective", "random"],
        given=["one-by-one", "at-once"],
        first_click="margin",
        cases=4,
        tolerance=1.0,
        configuration="3d_lowres",
        plans="OtherPlans",
        device="cpu",
    )


def test_options_of_a_challenge_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3dnet.evaluation import challenges

    seen: list[Any] = []
    monkeypatch.setattr(challenges, "study_challenge", recorder(seen))
    words = "--protocol cvpr25 -d 907 -f 2 --cases 4 --without-box vessel duct --device cpu"
    assert command.main([*words.split(), "--root", str(tmp_path)]) == 2
    (((settings, folders), _),) = seen
    assert folders.results == tmp_path / "nnUNet_results"
    options: Any = {"dataset": "907", "fold": "2", "cases": 4, "device": "cpu", "root": tmp_path}
    assert settings == EvaluationSettings(protocol="cvpr25", without_box=["vessel", "duct"], **options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected -p PREDICTIONS -g LABELS"),
        ("-p A", "came 1 folders of predictions and no folder of labels"),
        ("-p A B C -g G", "came 3 folders of predictions and a folder of labels"),
        ("-p A -g G -d 501 --first-click margin", "-d, --first-click margin: only with --clicks or --protocol"),
        ("-p A -g G --placing random --given at-once", "--placing, --given: only with --clicks"),
        ("-p A -i I -g G --clicks 1", "-p: not with --clicks"),
        ("-d 501 --clicks 1 --scheduler tcp://h:1", "--scheduler: not with --clicks"),
        ("-d 501 --protocol cvpr25 --clicks 1", "--clicks: not with --protocol cvpr25"),
        ("-d 501 --protocol autopet4 --placing random --tolerance 1", "--placing, --tolerance: not with --protocol"),
        ("-d 501 --protocol autopet4 -p A", "-p: not with --protocol"),
        ("-d 501 --protocol autopet4 --without-box organ", "--without-box: only with --protocol cvpr25"),
        ("-d 501 --clicks 1 --without-box organ", "--without-box: only with --protocol cvpr25"),
        ("-p A -g G --without-box organ", "--without-box: only with --clicks or --protocol"),
        ("--clicks 1,two", "clicks '1,two': expected whole numbers"),
        ("-d 501 --clicks 1 -i I", "give both -i and -g"),
        ("--clicks -1", "clicks '-1': expected whole numbers"),
    ],
)
def test_options_that_do_not_belong_together(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert command.main(words.split() if "-1" not in words else ["--clicks=-1"]) == 2
    assert message in capsys.readouterr().err
