"""sam3d_evaluate: predictions against the truth, one result against another, and what clicks are worth."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sam3dnet.cli.command import STATUS_SOME_FAILED, DeviceName, NumProcesses, parse_fold, run_command
from sam3dnet.cli.scheduler import cluster_at
from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    from sam3dnet.preprocessing.folders import Folders

_log = logging.getLogger("sam3dnet.cli.evaluate")

FirstClick = Literal["centre", "margin"]
Placing = Literal["corrective", "random", "centre"]
Given = Literal["one-by-one", "at-once"]
Protocol = Literal["cvpr25", "autopet4"]


@dataclass(frozen=True)
class Outcome:
    """What to print, the files written, and the cases that have no result, with the reason."""

    text: str
    files: tuple[Path, ...]
    failed: dict[str, str] = field(default_factory=dict)


def evaluate(
    *,
    predictions: Annotated[list[Path] | None, "-p"] = None,
    labels: Annotated[Path | None, "-g"] = None,
    output: Annotated[Path | None, "-o"] = None,
    dataset_json: Path | None = None,
    tolerance: float | None = None,
    lesion_iou: float = 0.1,
    missing_as_empty: bool = False,
    num_processes: NumProcesses = None,
    clicks: str | None = None,
    dataset: Annotated[str | None, "-d"] = None,
    fold: Annotated[str | None, "-f"] = None,
    images: Annotated[Path | None, "-i"] = None,
    placing: list[Placing] | None = None,
    given: list[Given] | None = None,
    first_click: FirstClick = "centre",
    protocol: Protocol | None = None,
    without_box: list[str] | None = None,
    cases: int | None = None,
    configuration: str = "3d_fullres",
    plans: str = "SAM3DPlans",
    root: Path | None = None,
    device: DeviceName | None = None,
    scheduler: str | None = None,
) -> Outcome:
    """Score predictions against the truth (-p PREDICTIONS -g LABELS), compare two results (-p A B -g LABELS), or
    measure what clicks are worth (-d DATASET --clicks 0,1,3,5,10).

    Args:
        predictions: Folder with predicted label maps; with two folders, the difference of the second from the first.
        labels: Folder with the true label maps, such as labelsTs; files have the names of the predictions.
        output: Folder for the results as JSON and CSV; without it the (first) folder of predictions, or for clicks
            the folder of the fold.
        dataset_json: File that names the classes, regions and the ignore label; without it dataset.json in the
            folder of predictions, else the one beside the folder of labels.
        tolerance: Tolerance of the NSD in mm; without it the literature's for this task, else 2.
        lesion_iou: Intersection over union from which on a predicted and a true lesion match; 0 for any common voxel.
        missing_as_empty: Count a missing prediction as one in which nothing was found, in place of an error.
        num_processes: Cases that are scored at the same time; 0 scores in the command's own process, without it one a
            core, 8 at most.
        clicks: Numbers of clicks of a simulated user, such as 0,1,3,5,10.
        dataset: For clicks: the dataset that the model was trained on, by number or name.
        fold: For clicks: the fold whose model is used, and whose validation cases are clicked; without it the first
            trained one.
        images: For clicks: folder with images to click in place of the validation cases; with -g.
        placing: For clicks: where they go; corrective: to the object, then to the largest error that is left; random:
            to voxels drawn uniformly from the class; centre: to the innermost voxel of each component, the largest
            first. Several are compared; without it corrective.
        given: For clicks: one-by-one in one session, or the first k at-once in a fresh session for each k, which
            corrective ones cannot be. Both are compared; without it one-by-one.
        first_click: For corrective clicks: where the first one goes, to the innermost voxel of the object or near its
            margin.
        protocol: In place of --clicks and how they are placed: the prompts and figures of a challenge on interactive
            segmentation; cvpr25: a box, then five corrective clicks, for every class; autopet4: 0 to 10 pairs of a
            click in the class and one beside it.
        without_box: For cvpr25: classes that get no box in the first step.
        cases: For clicks: how many cases to take, the first by name; without it all.
        configuration: For clicks: the configuration of the plan that the model was trained with.
        plans: For clicks: the name of that plan.
        root: For clicks: folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three
            variables of these names.
        device: For clicks: device to predict on: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.
        scheduler: Address of a Dask scheduler, whose workers then score; see docs/cluster.md.

    Returns:
        What to print, the files written and the cases that failed.

    Raises:
        Sam3dError: If the options do not belong together, or a folder, model or case that is needed is not there.
    """
    of_users = {"--placing": placing, "--given": given, "--first-click margin": first_click == "margin"}
    model = {"-d": dataset, "-f": fold, "-i": images, "--cases": cases, "--root": root, "--device": device}
    if clicks is None and protocol is None:
        _refuse(model | of_users | {"--without-box": without_box}, "only with --clicks or --protocol")
        options = {"dataset_json": dataset_json, "tolerance_mm": tolerance, "lesion_iou": lesion_iou}
        options |= {"missing_as_empty": missing_as_empty, "num_processes": num_processes}
        with cluster_at(scheduler, num_processes) as cluster:
            return _evaluate_folders(predictions or [], labels, output, options | {"cluster": cluster})
    scoring = {"-p": predictions, "--dataset-json": dataset_json, "--missing-as-empty": missing_as_empty}
    _refuse(scoring | {"--scheduler": scheduler}, f"not with {'--clicks' if protocol is None else '--protocol'}")
    if protocol != "cvpr25":
        _refuse({"--without-box": without_box}, "only with --protocol cvpr25")
    of_model: dict[str, Any] = {"dataset": dataset, "fold": None if fold is None else parse_fold(fold)}
    of_model |= {"images": images, "labels": labels, "max_cases": cases, "configuration": configuration}
    of_model |= {"plans_name": plans, "device": device}
    if protocol is not None:
        _refuse(of_users | {"--clicks": clicks, "--tolerance": tolerance}, f"not with --protocol {protocol}")
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(root)
    if protocol is not None:
        return _study_challenge(protocol, folders, output, of_model | {"without_box": without_box or []})
    of_model |= {"tolerance_mm": tolerance, "first_click": first_click}
    of_model |= {"placing": placing or ["corrective"], "given": given or ["one-by-one"]}
    return _study_clicks(read_clicks(clicks or ""), folders, output, of_model)


def _study_clicks(clicks: Sequence[int], folders: "Folders", output: Path | None, options: dict[str, Any]) -> Outcome:
    from sam3dnet.evaluation.click_results import default_folder, format_study, write_study
    from sam3dnet.evaluation.click_study import study_clicks

    study = study_clicks(clicks, folders, **options)
    return Outcome(format_study(study), write_study(study, output or default_folder(study)), study.failed)


def _study_challenge(name: Protocol, folders: "Folders", output: Path | None, options: dict[str, Any]) -> Outcome:
    from sam3dnet.evaluation.challenge_results import challenge_folder, format_challenge, write_challenge
    from sam3dnet.evaluation.challenges import study_challenge

    study = study_challenge(name, folders, **options)
    return Outcome(format_challenge(study), write_challenge(study, output or challenge_folder(study)), study.failed)


def read_clicks(text: str) -> tuple[int, ...]:
    """Read numbers of clicks such as "0,1,3", in ascending order.

    Raises:
        DatasetError: If they are not whole numbers from 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise DatasetError(
            f"clicks {text!r}: expected whole numbers from 0 with commas between them, such as 0,1,3,5,10"
        )
    return tuple(sorted({int(part) for part in parts}))


def _evaluate_folders(
    folders: list[Path], labels: Path | None, output: Path | None, options: dict[str, Any]
) -> Outcome:
    if len(folders) not in (1, 2) or labels is None:
        raise DatasetError(
            "expected -p PREDICTIONS -g LABELS, -p A B -g LABELS, or -d DATASET --clicks 0,1,3,5,10; "
            f"came {len(folders)} folders of predictions and {'a' if labels else 'no'} folder of labels"
        )
    if len(folders) == 2:
        from sam3dnet.evaluation.compare import compare_folders, format_comparison, write_comparison

        comparison = compare_folders(folders[0], folders[1], labels, **options)
        files = write_comparison(comparison, output or folders[0])
        return Outcome(format_comparison(comparison), files, comparison.left_out)
    from sam3dnet.evaluation.folder import evaluate_folder
    from sam3dnet.evaluation.results import format_evaluation, write_results

    evaluation = evaluate_folder(folders[0], labels, **options)
    return Outcome(format_evaluation(evaluation), write_results(evaluation, output or folders[0]), evaluation.failed)


def _refuse(options: dict[str, Any], when: str) -> None:
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise DatasetError(f"{', '.join(given)}: {when}")


def print_outcome(outcome: Outcome) -> int:
    """Print the table and where the files are, last the cases that failed; give the exit status."""
    print(outcome.text)
    print(f"Written: {', '.join(map(str, outcome.files))}")
    cases_of_reason: dict[str, list[str]] = {}
    for case, reason in outcome.failed.items():
        cases_of_reason.setdefault(reason, []).append(case)
    for reason, cases in cases_of_reason.items():
        _log.error("case %s: %s", ", ".join(cases), reason)
    return STATUS_SOME_FAILED if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(evaluate, "sam3d_evaluate", argv, exit_status=print_outcome)


if __name__ == "__main__":
    sys.exit(main())
