"""sam3d_compare: methods side by side, trained for the same time on the same split."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.settings.comparison import ComparisonSettings
from sam3dnet.settings.function import function_of

if TYPE_CHECKING:
    from sam3dnet.comparison.table import Row


def _compare(settings: ComparisonSettings) -> "list[Row]":
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name

    folders = activate_folders(settings.root)
    name = find_dataset_name(settings.dataset, folders)

    from sam3dnet.comparison.competitors import Settings
    from sam3dnet.comparison.run import compare_methods
    from sam3dnet.devices import choose_device
    from sam3dnet.network.weights_registry import families

    sam_checkpoint = settings.sam_checkpoint
    if sam_checkpoint and sam_checkpoint not in families():
        sam_checkpoint = str(Path(sam_checkpoint).resolve())
    resolved = Settings(
        dataset=name,
        work=Path(settings.output or f"sam3d_compare_{name}").resolve(),
        minutes=settings.minutes,
        fold=0,
        device=str(choose_device(settings.device)),
        timed_cases=settings.timed_cases,
        clicks=settings.numbers_of_clicks,
        plan_options=_planning_options(settings.encoder, sam_checkpoint, settings.gpu_memory_target),
        sam_checkpoint=sam_checkpoint,
        seed=settings.seed,
    )
    options: dict[str, Any] = {"folds": settings.folds or [0], "network": settings.network}
    return compare_methods(settings.names_of_methods, resolved, folders.raw / name, show=print, **options)


def _planning_options(encoder: str, sam_checkpoint: str | None, gpu_memory_target: float | None) -> tuple[str, ...]:
    options = ["--encoder", encoder]
    options += ["--sam-checkpoint", sam_checkpoint] if sam_checkpoint else []
    options += ["-gpu_memory_target", str(gpu_memory_target)] if gpu_memory_target else []
    return tuple(options)


compare = function_of(ComparisonSettings, _compare, "compare")


def _exit_status(rows: "list[Row]") -> int:
    return STATUS_SOME_FAILED if any(row.note.startswith("failed") for row in rows) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(compare, "sam3d_compare", argv, exit_status=_exit_status)


if __name__ == "__main__":
    sys.exit(main())
