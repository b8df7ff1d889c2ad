"""Command lines made from functions: options, help, and what users get wrong is one line."""

import argparse
import errno
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import sam3dnet
from sam3dnet.cli import (
    annotate,
    check,
    compare,
    convert,
    demo,
    dicom,
    evaluate,
    export,
    find_best,
    info,
    plan_and_preprocess,
    predict,
    report,
    serve,
    train,
    verify,
)
from sam3dnet.cli.command import SHARED_OPTIONS, make_parser, run_command
from sam3dnet.errors import FailedCasesError, PlanError, Sam3dError
from sam3dnet.preprocessing.folders import parse_fold

WORKERS = {
    "sam3d_convert": convert.convert,
    "sam3d_plan_and_preprocess": plan_and_preprocess.plan_and_preprocess,
    "sam3d_train": train.train,
    "sam3d_predict": predict.predict,
    "sam3d_dicom list": dicom.list_series,
    "sam3d_dicom import": dicom.import_dataset,
    "sam3d_export": export.export,
    "sam3d_evaluate": evaluate.evaluate,
    "sam3d_report": report.report,
    "sam3d_annotate": annotate.annotate,
    "sam3d_serve": serve.serve,
    "sam3d_find_best": find_best.find_best,
    "sam3d_compare": compare.compare,
    "sam3d_verify": verify.verify,
    "sam3d_info": info.info,
    "sam3d_demo": demo.demo,
    "sam3d_check": check.check,
}


def example(
    case: str,
    *,
    paths: Annotated[list[Path], "-p"],
    share: float = 0.5,
    count: int | None = None,
    kind: Literal["fine", "coarse"] = "fine",
    twice: Annotated[bool, "-again"] = False,
) -> dict[str, Any]:
    """Do something.

    Args:
        case: Name of a case,
            on two lines.
        paths: Files.
        share: A share, 50 % of it.
        count: How many.
        kind: Which.
        twice: Once more.

    Returns:
        The arguments.
    """
    return locals()


def test_options_have_the_types_of_the_signature() -> None:
    parser = make_parser(example, "example")
    given = parser.parse_args(["a", "-p", "x", "y", "--share", "0.25", "--count", "3", "--kind", "coarse", "-again"])
    assert {name: value for name, value in vars(given).items() if name not in SHARED_OPTIONS} == {
        "case": "a",
        "paths": [Path("x"), Path("y")],
        "share": 0.25,
        "count": 3,
        "kind": "coarse",
        "twice": True,
    }
    defaults = parser.parse_args(["a", "--paths", "x"])
    assert (defaults.share, defaults.count, defaults.kind, defaults.twice) == (0.5, None, "fine", False)


def test_help_is_the_docstring() -> None:
    text = " ".join(make_parser(example, "example").format_help().split())
    assert "Do something. positional arguments: case Name of a case, on two lines" in text
    assert "--share X A share, 50 % of it (default: 0.5)" in text
    assert "The arguments" not in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a", "required: -p/--paths"),
        ("a -p x --sharp 1", "unrecognized arguments: --sharp 1 (did you mean --share?)"),
        ("a -p x --shar=1", "unrecognized arguments: --shar=1 (did you mean --share?)"),
        ("a -p x --zzz", "unrecognized arguments: --zzz; example --help"),
        ("a -p x --count 1.5", "argument --count: invalid int value: '1.5'"),
        ("a -p x --kind thick", "invalid choice: 'thick'"),
    ],
)
def test_wrong_options_fail_in_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser(example, "example").parse_args(line.split())
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a", "-p", ""], "argument -p/--paths: expected a path or a name, came nothing"),
        (["", "-p", "x"], "argument case: expected a text, came nothing; is a variable not set?"),
    ],
)
def test_what_is_empty_is_neither_the_current_folder_nor_as_if_not_there(
    line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser(example, "example").parse_args(line)
    assert message in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        make_parser(example, "example").parse_args(["--version"])
    assert capsys.readouterr().out == f"example of sam3dnet {sam3dnet.__version__}\n"


@pytest.mark.parametrize("prog", WORKERS)
def test_every_parameter_is_an_option_with_help(prog: str) -> None:
    actions = [action for action in make_parser(WORKERS[prog], prog)._actions if action.dest not in ("help", "version")]
    assert [action.dest for action in actions] == [*inspect.signature(WORKERS[prog]).parameters, *SHARED_OPTIONS]
    assert all(action.help and action.help != argparse.SUPPRESS for action in actions)


@pytest.mark.parametrize(
    ("text", "fold"), [("fold0", 0), ("fold_3", 3), ("4", 4), ("12", 12), ("all", "all"), ("fold_all", "all")]
)
def test_fold_is_read(text: str, fold: int | str) -> None:
    assert parse_fold(text) == fold


@pytest.mark.parametrize("text", ["-1", "fold", "1.0", "folds0", "All", ""])
def test_other_folds_are_refused(text: str) -> None:
    with pytest.raises(Sam3dError, match="expected fold0 to fold4, 0 to 4, or all"):
        parse_fold(text)


def raising(error: BaseException) -> int:
    def work() -> None:
        """Fail."""
        raise error

    return run_command(work, "work", [])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PlanError("no plan; make one"), 2, "work: no plan; make one\n"),
        (FailedCasesError("1 of 2 cases failed, b"), 1, "work: 1 of 2 cases failed, b\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "work: /x: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "work: /x: No space left on device\n"),
        (KeyboardInterrupt(), 130, "work: interrupted\n"),
    ],
)
def test_what_users_cause_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("bug", [ValueError("a bug of ours"), FileNotFoundError(errno.ENOENT, "a bug of ours")])
def test_our_own_bugs_keep_their_traceback(bug: Exception) -> None:
    with pytest.raises(type(bug), match="a bug of ours"):
        raising(bug)
