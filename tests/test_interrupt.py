"""Ctrl-C ends a command within seconds, whatever is at work in it, and leaves no process behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_calls import SECONDS_TO_GIVE_UP_AFTER, wait_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and process groups")

# A shell calls both 130: Python ends itself by the signal if the exception came through code that C ran.
ENDED_BY_CTRL_C = (130, -signal.SIGINT)
HEADER = """
import sys, time
from pathlib import Path
from sam3dnet.cli.command import run_command

def sleep(item):
    (Path(__file__).parent / f"started_{item}").touch()
    time.sleep(3600)
"""
IN_PROCESSES = """
def work():
    '''Let two processes work.'''
    from sam3dnet.preprocessing.workers import map_cases
    map_cases(sleep, [0, 1, 2, 3], 2, "sleep")
"""
IN_THREADS = """
def work():
    '''Read two images ahead, as prediction does.'''
    from sam3dnet.inference.images import Case
    from sam3dnet.inference.images import read_ahead
    cases = [Case(name, ()) for name in "01"]
    for _, reading in read_ahead(cases, lambda case: sleep(case.name), 2, lambda case: 1):
        reading.result()
"""
FOOTER = """
if __name__ == "__main__":
    sys.exit(run_command(work, "sam3d_work"))
"""


def group_is_empty(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@contextmanager
def started(*line: object, **options) -> Iterator[subprocess.Popen]:
    """Start Python in a process group of its own, as a terminal does; nothing of it is left in the end."""
    process = subprocess.Popen(
        [sys.executable, *map(str, line)], stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    with process:
        try:
            yield process
        finally:
            if not group_is_empty(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def interrupt(process: subprocess.Popen, to_whole_group: bool) -> str:
    """Press Ctrl-C in a terminal (all processes of the group), or send the signal to one process; give its messages."""
    (os.killpg if to_whole_group else os.kill)(process.pid, signal.SIGINT)
    messages = process.communicate(timeout=SECONDS_TO_GIVE_UP_AFTER)[1]
    wait_for(lambda: group_is_empty(process.pid))
    return messages


@pytest.mark.parametrize("to_whole_group", [True, False])
@pytest.mark.parametrize("work", [IN_PROCESSES, IN_THREADS], ids=["processes", "threads"])
def test_a_command_ends_and_leaves_no_process(tmp_path: Path, work: str, to_whole_group: bool) -> None:
    (tmp_path / "work.py").write_text(HEADER + work + FOOTER)
    with started(tmp_path / "work.py") as process:
        wait_for(lambda: len(list(tmp_path.glob("started_*"))) == 2 or process.poll() is not None)
        messages = interrupt(process, to_whole_group)
    assert process.returncode in ENDED_BY_CTRL_C, messages
    assert messages == "sam3d_work: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("to_whole_group", [True, False])
def test_a_training_ends_and_leaves_no_loader_and_a_whole_checkpoint(
    tiny_dataset: str, nnunet_root: Path, to_whole_group: bool
) -> None:
    from test_trainer import prepare

    from sam3dnet.training.checkpoint import load_safely

    prepare(tiny_dataset)
    line = f"-m sam3dnet.cli.train {tiny_dataset} 3 --root {nnunet_root} --device cpu --workers 2"
    model = nnunet_root / "nnUNet_results" / tiny_dataset / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    latest = model / "fold_3" / "checkpoint_latest.pth"
    latest.unlink(missing_ok=True)
    endless = ("--epochs", 100_000, "--iterations-per-epoch", 2)
    with started(*line.split(), *endless, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: latest.exists() or process.poll() is not None)
        messages = interrupt(process, to_whole_group)
    assert process.returncode in ENDED_BY_CTRL_C, messages
    assert load_safely(latest)["current_epoch"] >= 1


@pytest.mark.slow
def test_a_training_whose_loaders_are_spawned(tiny_dataset: str, nnunet_root: Path) -> None:
    """As on macOS and Windows: everything that goes to a loader can be pickled."""
    from test_trainer import prepare

    prepare(tiny_dataset)
    code = (
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    from sam3dnet.cli.train import main\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    script = nnunet_root / "spawned.py"
    script.write_text(code)
    line = f"{tiny_dataset} 4 --root {nnunet_root} --device cpu --workers 1 --epochs 1 --iterations-per-epoch 2"
    finished = subprocess.run([sys.executable, str(script), *line.split()], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
