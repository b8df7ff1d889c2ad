"""What workers do in the tests of pools and clusters; light, for each of their processes imports it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS_TO_GIVE_UP_AFTER = 3600  # a guard, far above what a busy machine needs


def wait_for(happened: Callable[[], object]) -> None:
    give_up = time.monotonic() + SECONDS_TO_GIVE_UP_AFTER
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def square(item: int) -> int:
    return item * item


def square_or_fail(bad: int, item: int) -> int:
    if item == bad:
        raise ValueError(f"cannot square {item}")
    return square(item)


def square_or_die(bad: int, item: int) -> int:
    if item == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def hold_the_first_time(folder: Path, item: int) -> int:
    """Give the process that does an item; the one that is first to take item 1 keeps it until it is killed."""
    if item == 1 and not (folder / "held").exists():
        (folder / "writing").write_text(str(os.getpid()))
        (folder / "writing").replace(folder / "held")
        time.sleep(SECONDS_TO_GIVE_UP_AFTER)
    return os.getpid()


def begin_and_wait(folder: Path, item: int) -> int:
    (folder / str(item)).touch()
    if item:
        wait_for((folder / "go on").exists)
    return item


def hide_the_package() -> None:
    """Make this process one in which sam3dnet is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sam3dnet"]:
        del sys.modules[name]
    sys.modules["sam3dnet"] = None  # type: ignore[assignment]


def count_loads(folder: Path) -> None:
    """Leave a file for each model that this process loads from now on."""
    from sam3dnet.inference import predictor

    real = predictor.load_stages

    def load(*arguments: Any, **options: Any) -> Any:
        (folder / f"{os.getpid()}_{time.monotonic_ns()}").touch()
        return real(*arguments, **options)

    load.real = real  # type: ignore[attr-defined]
    predictor.load_stages = load


def count_loads_no_longer() -> None:
    from sam3dnet.inference import predictor

    predictor.load_stages = predictor.load_stages.real


def die_at_the_first_export(mark: Path) -> None:
    """Have this process die when it has a label map to write, unless another one has died of it."""
    from sam3dnet.inference import predictor

    real = predictor.write_noted_label_map

    def write(*arguments: Any) -> None:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    predictor.write_noted_label_map = write


def loaded_models() -> int:
    from sam3dnet.inference import predictor

    return predictor._run_of.cache_info().currsize
