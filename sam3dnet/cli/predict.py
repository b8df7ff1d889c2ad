"""sam3d_predict: from a folder of images to a folder of label maps on each image's own grid."""

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.settings.function import function_of
from sam3dnet.settings.prediction import PredictionSettings

if TYPE_CHECKING:
    from sam3dnet.inference.predictor import PredictionReport

_log = logging.getLogger("sam3dnet.cli.predict")


def _predict(settings: PredictionSettings) -> "PredictionReport":
    from sam3dnet.inference.predictor import predict_folder
    from sam3dnet.interactive.run_prompts import prompt_reader
    from sam3dnet.outputs.run import predict_any

    prompts = prompt_reader(settings.prompts, settings.instance)
    return predict_any(settings, lambda images: predict_folder(images, prompts))


predict = function_of(PredictionSettings, _predict, "predict")


def print_report(report: "PredictionReport") -> int:
    """Print how many cases were written, last those that failed and why; give the exit status."""
    counts = f"{len(report.written)} written, {len(report.skipped)} there already, {len(report.failed)} failed"
    print(f"Predictions: {counts}")
    for case, reason in report.failed.items():
        _log.error("case %s failed: %s", case, reason)
    return STATUS_SOME_FAILED if report.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(predict, "sam3d_predict", argv, exit_status=print_report)


if __name__ == "__main__":
    sys.exit(main())
