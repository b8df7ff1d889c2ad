"""sam3d_compare: methods side by side, trained for the same time on the same split."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.errors import Sam3dError
from sam3dnet.settings.common import EncoderChoice

if TYPE_CHECKING:
    from sam3dnet.comparison.table import Row

NO_PROMPTS = "none"


def compare(
    *,
    dataset: Annotated[str, "-d"],
    methods: str = "nnunet,sam3d,3dsam-adapter,refsam3d,3dmedsam",
    minutes: float = 30.0,
    folds: Annotated[list[int] | None, "-f"] = None,
    prompts: str = NO_PROMPTS,
    network: str | None = None,
    output: Annotated[Path | None, "-o"] = None,
    root: Path | None = None,
    device: str | None = None,
    encoder: EncoderChoice = "auto",
    sam_checkpoint: str | None = None,
    gpu_memory_target: float | None = None,
    timed_cases: int = 10,
    seed: int = 0,
) -> "list[Row]":
    """Plan, train and evaluate methods for the same time on the same split, and print one table.

    Every step that is finished is kept: interrupted, the same command goes on. 3dmedsam is built after the abstract.

    Args:
        dataset: Dataset by number or name.
        methods: Methods, with commas: nnunet, nnunet-resenc, sam3d, 3dsam-adapter, refsam3d, 3dmedsam, swin-unetr,
            unetr, segresnet, primus, sam-points, network; variants after a colon, such as 3dsam-adapter:as-published,
            sam3d:lora or 3dsam-adapter:automatic.
        minutes: Training time of each method.
        folds: Folds to train and validate, such as 0 1 2; figures are means over them. Without it fold 0.
        prompts: Numbers of clicks, with commas, after which methods that answer them are scored too, in columns of
            their own: corrective ones, and random points given at once; for sam-points, of points a slice. Such as
            none,1,3,10.
        network: package.module:Class of an installed package, which joins in as the method "network"; it is given
            (input_channels, num_classes).
        output: Folder for everything that is written; without it sam3d_compare_ and the dataset's name.
        root: Folder that holds nnUNet_raw, in place of the variable of that name; it is only read.
        device: Device to train and predict on: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.
        encoder: Size of the image encoder of the methods built on SAM.
        sam_checkpoint: SAM's weights: sam, medsam, or a file in SAM's format; without it $SAM3D_WEIGHTS, else sam, from
            the cache or by a download.
        gpu_memory_target: GB of memory that training may take, for methods that our planner plans.
        timed_cases: Validation cases that are timed.
        seed: Of the points of sam-points.

    Returns:
        A row a method.

    Raises:
        Sam3dError: If the dataset or a method is not there, or an option is out of range.
    """
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name

    folders = activate_folders(root)
    name = find_dataset_name(dataset, folders)
    clicks = _numbers(prompts)

    from sam3dnet.comparison.competitors import Settings
    from sam3dnet.comparison.run import compare_methods
    from sam3dnet.devices import choose_device
    from sam3dnet.network.weights_registry import families

    if sam_checkpoint and sam_checkpoint not in families():
        sam_checkpoint = str(Path(sam_checkpoint).resolve())
    settings = Settings(
        dataset=name,
        work=(output or Path(f"sam3d_compare_{name}")).resolve(),
        minutes=minutes,
        fold=0,
        device=str(choose_device(device)),
        timed_cases=timed_cases,
        clicks=clicks,
        plan_options=_planning_options(encoder, sam_checkpoint, gpu_memory_target),
        sam_checkpoint=sam_checkpoint,
        seed=seed,
    )
    names = [method.strip() for method in methods.split(",")]
    chosen = [*names, *(["network"] if network and "network" not in names else [])]
    return compare_methods(chosen, settings, folders.raw / name, folds=folds or [0], network=network, show=print)


def _numbers(prompts: str) -> tuple[int, ...]:
    words = [word for word in prompts.split(",") if word != NO_PROMPTS]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise Sam3dError(f"--prompts {prompts}: expected numbers of clicks with commas, such as none,1,3,10")
    return tuple(sorted({int(word) for word in words}))


def _planning_options(encoder: str, sam_checkpoint: str | None, gpu_memory_target: float | None) -> tuple[str, ...]:
    options = ["--encoder", encoder]
    options += ["--sam-checkpoint", sam_checkpoint] if sam_checkpoint else []
    options += ["-gpu_memory_target", str(gpu_memory_target)] if gpu_memory_target else []
    return tuple(options)


def _exit_status(rows: "list[Row]") -> int:
    return STATUS_SOME_FAILED if any(row.note.startswith("failed") for row in rows) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(compare, "sam3d_compare", argv, exit_status=_exit_status)


if __name__ == "__main__":
    sys.exit(main())
