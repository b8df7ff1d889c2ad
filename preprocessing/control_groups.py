"""The control groups that Linux has put this process in: containers and schedulers limit a job by them."""

from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups_of(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the groups that limit this process, of either version; none on another system.

    Args:
        controller: "cpu" or "memory".

    Yields:
        A group's folder, each before those that hold it, and whether it is of the second version, whose groups form
        one tree for all controllers.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_second = not controllers
        if is_second or controller in controllers.split(","):
            parts = [part for part in path.split("/") if part not in ("", "..")]
            root = GROUPS if is_second else GROUPS / controller
            for count in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:count]), is_second
