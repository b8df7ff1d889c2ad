"""sam3d_check: the command as it is typed, and that whatever happens in one check stays there and is told."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sam3dnet.check import run
from sam3dnet.check.registry import CHECKS, find_check
from sam3dnet.check.report import FORMAT, as_stored
from sam3dnet.check.result import CheckResult, Skipped, at_most, between, told
from sam3dnet.check.setting import Setting
from sam3dnet.cli import check as command
from sam3dnet.errors import Sam3dError
from sam3dnet.settings.choices import CheckName

Check = Callable[[Setting], Iterator[CheckResult]]
SKIPPED_ON_A_CPU = {"float32", "prediction: as on the CPU", "compiled"}


def test_the_command_finds_nothing_wrong_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "check.json"
    assert command.main(["--device", "cpu", "--quick", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert (report["format"], report["device"], report["quick"], report["running"]) == (FORMAT, "cpu", True, None)
    assert report["machine"]["versions"]["torch"]
    assert list(dict.fromkeys(line["check"] for line in report["results"])) == list(CHECKS)
    lines = [CheckResult(**line | {"warnings": tuple(line["warnings"])}) for line in report["results"]]
    assert {line.label for line in lines if line.status == "skipped"} == SKIPPED_ON_A_CPU
    assert {line.status for line in lines} == {"ok", "skipped"}
    assert [as_stored(line) for line in lines] == report["results"]
    shown = capsys.readouterr()
    assert shown.err == ""
    assert all(any(line.label in row and line.message in row for row in shown.out.splitlines()) for line in lines)
    assert shown.out.splitlines()[-1] == f"{len(lines) - 3} ok, 3 skipped, 0 failed"


def test_the_command_line_knows_every_check() -> None:
    assert get_args(CheckName) == tuple(CHECKS)
    assert all(callable(find_check(name)) for name in CHECKS)


@pytest.fixture
def replace_checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put other checks in the place of those of these names."""

    def replace(**checks: Check) -> None:
        monkeypatch.setattr(run, "find_check", lambda name: checks[name])

    return replace


def main(tmp_path: Path, *names: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the command; give its status and the lines of its file."""
    file = tmp_path / "check.json"
    status = command.main(["--device", "cpu", "--json", str(file), "--only", *names])
    return status, json.loads(file.read_text())["results"]


def raising(error: Exception) -> Check:
    def check(_: Setting) -> Iterator[CheckResult]:
        print("printed before")
        yield told("memory", "first")
        print("printed after")
        raise error

    return check


def fine(_: Setting) -> Iterator[CheckResult]:
    yield at_most("iteration", "second", 0.5, 1.0, unit="s")


def test_an_exception_is_a_failed_line_and_the_other_checks_run(
    tmp_path: Path, replace_checks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    replace_checks(memory=raising(ValueError("\n\n  no such kernel\nat line 3")), iteration=fine)
    status, lines = main(tmp_path, "memory", "iteration")
    assert status == 1
    assert [(line["status"], line["name"]) for line in lines] == [("ok", "first"), ("failed", ""), ("ok", "second")]
    assert lines[1]["message"] == "ValueError: no such kernel"
    assert "in check\n    raise error" in lines[1]["traceback"]
    assert lines[1]["output"] == "printed after\n"
    shown = capsys.readouterr()
    assert shown.err == "sam3d_check: memory failed: ValueError: no such kernel\n"
    assert "printed" not in shown.out
    assert shown.out.splitlines()[-1] == "2 ok, 0 skipped, 1 failed"


def test_a_value_beyond_its_limit_is_named_with_both(
    tmp_path: Path, replace_checks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    replace_checks(iteration=lambda _: iter([at_most("iteration", "a step", 2.5, 1.0, "slow", "s")]))
    status, lines = main(tmp_path, "iteration")
    assert (status, lines[0]["value"], lines[0]["limit"]) == (1, 2.5, "at most 1")
    assert capsys.readouterr().err == "sam3d_check: iteration: a step failed (2.5 s, expected at most 1): slow\n"


def test_what_cannot_run_here_is_skipped_with_its_reason(
    tmp_path: Path, replace_checks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    replace_checks(memory=raising(Skipped("no card")), iteration=fine)
    status, lines = main(tmp_path, "memory", "iteration")
    assert status == 0
    assert (lines[1]["status"], lines[1]["message"], lines[1]["traceback"]) == ("skipped", "no card", None)
    assert capsys.readouterr().out.splitlines()[-1] == "2 ok, 1 skipped, 0 failed"


def test_a_part_that_cannot_be_imported_is_a_failed_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sam3dnet.check.installation", None)
    status, lines = main(tmp_path, "installation")
    assert status == 1
    assert lines[0]["message"].startswith("ModuleNotFoundError: import of sam3dnet.check.installation halted")


def test_torch_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Sam3dError, match=r"torch cannot be imported .*; install it again"):
        command.check(json=tmp_path / "check.json")


def test_the_file_names_the_check_that_runs(tmp_path: Path, replace_checks: Callable[..., None]) -> None:
    seen = []

    def look(_: Setting) -> Iterator[CheckResult]:
        seen.append(json.loads((tmp_path / "check.json").read_text()))
        yield told("iteration", "looked")

    replace_checks(memory=lambda _: iter([told("memory", "before")]), iteration=look)
    main(tmp_path, "memory", "iteration")
    assert seen[0]["running"] == "iteration"
    assert [line["name"] for line in seen[0]["results"]] == ["before"]


def test_warnings_are_kept(tmp_path: Path, replace_checks: Callable[..., None]) -> None:
    def warn(_: Setting) -> Iterator[CheckResult]:
        torch.nn.functional.l1_loss(torch.zeros(2), torch.zeros(1))
        yield told("memory", "warned")

    replace_checks(memory=warn)
    _, lines = main(tmp_path, "memory")
    assert lines[0]["warnings"][0].startswith("UserWarning: Using a target size")


@pytest.mark.parametrize(
    ("options", "message"),
    [("--device cuda:7", "sees no such device on this machine"), ("--device cpu --json file/check.json", "file")],
)
def test_what_users_get_wrong_is_one_line_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "find_check", lambda _: pytest.fail("a check has begun"))
    assert command.main(options.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_numbers_and_folders_are_stored_so_that_the_file_can_be_passed_on() -> None:
    result = CheckResult("a", "b", "failed", float("nan"), message=f"{Path.home()}/x", traceback=f"{sys.prefix}/lib")
    stored = as_stored(result)
    assert json.loads(json.dumps(stored, allow_nan=False)) == {**asdict(result), **stored}
    assert (stored["value"], stored["message"], stored["traceback"]) == ("nan", "~/x", "ENVIRONMENT/lib")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_limits_refuse_what_is_no_number_or_too_much(value: float) -> None:
    assert at_most("a", "b", value, 1.0).status == "failed"
    assert between("a", "b", value, 0.5, 1.0).status == "failed"
    assert between("a", "b", -value, 0.5, 1.0).status == "failed"
    assert (at_most("a", "b", 1.0, 1.0).status, between("a", "b", 0.5, 0.5, 1.0).status) == ("ok", "ok")
