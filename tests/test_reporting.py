"""What a command shows with --quiet and --verbose, and keeps with --log-file; completion in a shell."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam3dnet.cli.command import run_command
from sam3dnet.cli.completion import commands, completion_script
from sam3dnet.errors import PlanError

logger = logging.getLogger("sam3dnet.test_reporting")


def work(*, fail: bool = False, crash: bool = False) -> str:
    """Do something and talk about it.

    Args:
        fail: End with the mistake of a user.
        crash: End with a bug.
    """
    logger.debug("a detail")
    logger.info("a message")
    print("printed ", end="")
    print("by others")
    logger.warning("a warning")
    if fail:
        raise PlanError("no plan; make one")
    if crash:
        raise ValueError("a bug of ours")
    return "the result"


def show(result: str) -> int:
    print(result)
    logger.error("one case failed")
    return 1


def run(*line: object) -> int:
    return run_command(work, "sam3d_work", list(map(str, line)), exit_status=show)


MESSAGES = ["a message", "printed by others", "a warning", "the result"]


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        (None, MESSAGES),
        ("--quiet", ["a warning", "the result"]),
        ("--verbose", ["a detail", *MESSAGES]),
    ],
)
def test_what_is_shown(option: str | None, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*[option] if option else []) == 1
    output = capsys.readouterr()
    assert [line for line in output.out.splitlines() if not line.startswith("sam3d_work")] == shown
    assert output.err == "sam3d_work: one case failed\n"


def test_a_library_that_sets_up_logging_shows_nothing_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
    run()
    output = capsys.readouterr()
    assert output.out.splitlines() == MESSAGES
    assert output.err == "sam3d_work: one case failed\n"


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("--quiet", "--verbose")
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_log_file_keeps_everything_of_every_run_with_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "work.txt"
    for _ in range(2):
        run("--quiet", "--log-file", log)
    assert "a message" not in capsys.readouterr().out
    lines = log.read_text(encoding="utf-8").splitlines()
    for text in ("a detail", *MESSAGES, "one case failed"):
        assert sum(line.endswith(f" {text}") for line in lines) == 2
    assert all(line[:4].isdigit() for line in lines)


def test_a_users_mistake_shows_no_traceback_but_the_log_file_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--fail", "--log-file", tmp_path / "log.txt") == 2
    output = capsys.readouterr()
    assert output.err == "sam3d_work: no plan; make one\n"
    assert "Traceback" not in output.out
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "ERROR   no plan; make one" in log
    assert "Traceback" in log


def test_the_traceback_of_a_bug_is_in_the_log_file_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug of ours"):
        run("--crash", "--log-file", tmp_path / "log.txt")
    assert "ValueError: a bug of ours" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_log_file_that_cannot_be_written_is_a_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run("--log-file", tmp_path / "file" / "log.txt") == 2
    assert "choose another one with --log-file" in capsys.readouterr().err


def test_nothing_is_left_behind_in_the_logger() -> None:
    ours = logging.getLogger("sam3dnet")
    before = list(ours.handlers), ours.level, ours.propagate
    run("--verbose")
    assert (list(ours.handlers), ours.level, ours.propagate) == before


def test_every_command_can_be_completed() -> None:
    assert {"sam3d_plan_and_preprocess", "sam3d_train", "sam3d_predict", "sam3d_dicom"} <= set(commands())
    for shell in ("bash", "zsh", "tcsh"):
        script = completion_script(shell)
        assert all(prog in script for prog in commands())
        assert "step-size" in script
        assert "--names" in script  # of sam3d_dicom import


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_options_of_our_commands(tmp_path: Path) -> None:
    (tmp_path / "completion.sh").write_text(completion_script("bash"), encoding="utf-8")
    code = (
        f"source {tmp_path / 'completion.sh'}; "
        "COMP_WORDS=(sam3d_predict --no-m); COMP_CWORD=1; COMP_LINE='sam3d_predict --no-m'; "
        "$(complete -p sam3d_predict | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); echo ${COMPREPLY[@]}"
    )
    finished = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert finished.stdout.split() == ["--no-mirroring"], finished.stderr
