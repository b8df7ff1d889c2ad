"""sam3d_demo: the three commands on a made-up dataset, from nothing to a score and a picture."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.cli.command import run_command
from sam3dnet.errors import Sam3dError

DATASET_ID = 900
DATASET_NAME = f"Dataset{DATASET_ID}_Phantom"
TRAINING_MINUTES = 2.0
ENCODER = "tiny"
# The cases are so small that to start a second process would take longer than to do without.
NUM_PROCESSES = 1


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: Dice of each class on the test cases, the picture, and the time it took."""

    dice: dict[str, float]
    picture: Path
    seconds: float

    @property
    def mean_dice(self) -> float:
        """Mean over the classes."""
        return sum(self.dice.values()) / len(self.dice)


def demo(
    *, output: Path = Path("sam3d_demo"), minutes: float = TRAINING_MINUTES, device: str | None = None
) -> DemoResult:
    """Write a phantom CT dataset, run the three commands on it, score the result and draw it.

    Args:
        output: Folder for everything that the demo writes.
        minutes: Time to train for.
        device: Device to train and predict on: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.

    Raises:
        Sam3dError: If one of the three commands fails.
    """
    from sam3dnet.demo.phantom import write_phantom_dataset

    start = time.monotonic()
    output = output.resolve()
    predictions = _empty_places(output)
    dataset = write_phantom_dataset(output / "nnUNet_raw" / DATASET_NAME)
    for command in _commands(output, dataset, predictions, minutes, device):
        _run(command, output)
    picture = output / "truth_beside_prediction.png"
    return DemoResult(_score(dataset, predictions, picture), picture, time.monotonic() - start)


def _score(dataset: Path, predictions: Path, picture: Path) -> dict[str, float]:
    """Compare predictions of the test cases with the truth: Dice of each class, and a picture."""
    from sam3dnet.demo.phantom import LABELS
    from sam3dnet.demo.picture import save_truth_beside_prediction
    from sam3dnet.demo.score import dice_per_class

    truths = sorted((dataset / "labelsTs").iterdir())
    images = sorted((dataset / "imagesTs").iterdir())
    predicted = [predictions / truth.name for truth in truths]
    save_truth_beside_prediction(list(zip(images, truths, predicted, strict=True)), picture)
    return dice_per_class(list(zip(truths, predicted, strict=True)), LABELS)


def _empty_places(output: Path) -> Path:
    """Remove what an earlier demo left; give the folder for predictions."""
    predictions = output / "phantom_predictions"
    places = [output / f"nnUNet_{part}" / DATASET_NAME for part in ("raw", "preprocessed", "results")]
    for folder in (*places, predictions):
        shutil.rmtree(folder, ignore_errors=True)
    return predictions


def _commands(root: Path, dataset: Path, predictions: Path, minutes: float, device: str | None) -> list[list[str]]:
    common = ["--root", str(root), *(["--device", device] if device else [])]
    processes = ["--num-processes", str(NUM_PROCESSES)]
    return [
        ["sam3d_plan_and_preprocess", "-d", str(DATASET_ID), "--encoder", ENCODER, *processes, *common],
        ["sam3d_train", str(DATASET_ID), "fold0", "--minutes", f"{minutes:g}", *common],
        ["sam3d_predict", "-i", str(dataset / "imagesTs"), "-o", str(predictions), *common],
    ]


def _run(command: list[str], folder: Path) -> None:
    """Run one of our commands with this Python, from a folder where nothing shadows the installed package."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    module = f"sam3dnet.cli.{command[0].removeprefix('sam3d_')}"
    status = subprocess.run([sys.executable, "-m", module, *command[1:]], cwd=folder, check=False).returncode
    if status:
        raise Sam3dError(f"{command[0]} ended with exit status {status}; the reason stands above")


def _print_result(result: DemoResult) -> int:
    print("\nDice on the test cases")
    for name, dice in {**result.dice, "mean": result.mean_dice}.items():
        print(f"  {name:<8} {dice:.3f}")
    print(f"Truth beside prediction: {result.picture}\nThe demo took {result.seconds / 60:.1f} minutes")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(demo, "sam3d_demo", argv, exit_status=_print_result)


if __name__ == "__main__":
    sys.exit(main())
