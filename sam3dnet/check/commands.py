"""The three commands on a made-up dataset in a temporary folder: plan, train, go on, predict.

Nothing is compiled, which would take longer than all of it.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam3dnet.check.compiled import SWITCH
from sam3dnet.check.result import CheckResult, judged
from sam3dnet.check.setting import Setting
from sam3dnet.cli.plan_and_preprocess import plan_and_preprocess
from sam3dnet.cli.predict import predict
from sam3dnet.demo.phantom import write_phantom_dataset
from sam3dnet.preprocessing.folders import VARIABLES, activate_folders
from sam3dnet.settings.training import TrainingSettings
from sam3dnet.training.run import train_fold

DATASET = "Dataset900_Phantom"
TRAINING_CASES, TEST_CASES, ITERATIONS = 5, 1, 2


def check_commands(setting: Setting) -> Iterator[CheckResult]:
    """Run the functions of the commands; whatever they raise makes the check fail."""
    with tempfile.TemporaryDirectory(prefix="sam3d_check_") as folder, variables_restored():
        root, device = Path(folder), str(setting.device)
        os.environ[SWITCH] = "f"
        dataset = write_phantom_dataset(root / "nnUNet_raw" / DATASET, TRAINING_CASES, TEST_CASES)
        plan_and_preprocess(datasets=[DATASET], root=root, encoder="tiny", num_processes=0, device=device)
        yield judged("commands", "plan and preprocess", True, f"{TRAINING_CASES} made-up cases")
        asked = TrainingSettings(DATASET, 0, epochs=1, iterations_per_epoch=ITERATIONS, device=device)
        trained = train_fold(asked, activate_folders(root), validate=False)
        yield judge_file("train", trained / "checkpoint_final.pth")
        asked = TrainingSettings(DATASET, 0, epochs=2, iterations_per_epoch=1, continue_training=True, device=device)
        train_fold(asked, activate_folders(root), validate=not setting.quick)
        yield judged("commands", "continue", _epochs(trained) == 2, f"{_epochs(trained)} of 2 epochs")
        output = root / "predictions"
        report = predict(input_folder=dataset / "imagesTs", output_folder=output, root=root, device=device)
        problems = "; ".join(report.failed.values())
        yield judged("commands", "predict", len(report.written) == TEST_CASES, problems or "a label map was written")


def judge_file(name: str, path: Path) -> CheckResult:
    """Judge that a command wrote its file."""
    written = path.is_file()
    return judged("commands", name, written, f"{path.name} {'was' if written else 'was not'} written")


def _epochs(fold: Path) -> int:
    return len((fold / "training_log.jsonl").read_text().splitlines())


@contextmanager
def variables_restored() -> Iterator[None]:
    """Leave nnU-Net's variables as they were."""
    names = [*VARIABLES, "nnUNet_n_proc_DA", "nnUNet_def_n_proc", SWITCH]
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
