"""Many cases in many processes: an item that fails, or kills its process, costs itself alone or is reported."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from cluster_calls import square, square_or_die, square_or_fail

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing import workers
from sam3dnet.preprocessing.workers import Outcome, default_num_processes, map_cases


def die_in_company(folder: Path, item: int) -> int:
    """Die the first time, as if memory were enough only for one process at a time."""
    if not (folder / "tried").exists():
        (folder / "tried").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def thread_limits(_item: int) -> list[str | None]:
    return [os.environ.get(name) for name in ("OMP_THREAD_LIMIT", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")]


def process_and_pause(item: int) -> int:
    time.sleep(0.05 * (item % 2))
    return os.getpid()


def sleep_for_minutes(item: int) -> None:
    time.sleep(600 * item)


needs_kill = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


@pytest.mark.parametrize("num_processes", [0, 1, 2])
def test_an_item_that_fails_costs_itself_alone_and_order_is_kept(num_processes: int) -> None:
    outcomes = map_cases(partial(square_or_fail, 3), [5, 3, 2], num_processes, "square", progress=False)
    assert [outcome.item for outcome in outcomes] == [5, 3, 2]
    assert [outcome.result for outcome in outcomes] == [25, None, 4]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ValueError, type(None)]
    assert str(outcomes[1].error) == "cannot square 3"


def test_no_items_need_no_process() -> None:
    assert map_cases(square, [], 2, "square") == []


def test_zero_processes_work_here_others_elsewhere() -> None:
    here = map_cases(process_and_pause, [1, 2, 3], 0, "where", progress=False)
    assert {outcome.result for outcome in here} == {os.getpid()}
    there = map_cases(process_and_pause, [1, 2, 3], 1, "where", progress=False)
    assert os.getpid() not in {outcome.result for outcome in there}


@needs_kill
@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_item_that_kills_its_process_costs_itself_alone(num_processes: int) -> None:
    outcomes = map_cases(partial(square_or_die, 1), [0, 1, 2, 3], num_processes, "square", progress=False)
    assert [outcome.result for outcome in outcomes] == [0, None, 4, 9]
    assert isinstance(outcomes[1].error, DatasetError)
    assert "its process was killed, alone too, most likely because memory ran out" in str(outcomes[1].error)


@needs_kill
def test_an_item_that_only_lacked_memory_succeeds_alone(tmp_path: Path) -> None:
    outcomes = map_cases(partial(die_in_company, tmp_path), [3, 4], 2, "square", progress=False)
    assert outcomes == [Outcome(3, 9, None), Outcome(4, 16, None)]


def test_processes_share_the_cores() -> None:
    outcomes = map_cases(thread_limits, [0, 1], 2, "threads", progress=False)
    expected = str(max(1, default_num_processes() // 2))
    assert [outcome.result for outcome in outcomes] == [[expected, expected]] * 2


@needs_kill
def test_work_that_is_given_up_leaves_no_process() -> None:
    """As after Ctrl-C: what is still at work is not waited for."""
    work = workers._run_in_pool(sleep_for_minutes, {0: 0, 1: 1, 2: 2}, 2)
    assert next(work) == (0, Outcome(0, None, None))
    work.close()
    assert multiprocessing.active_children() == []
