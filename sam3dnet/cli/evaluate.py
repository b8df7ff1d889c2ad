"""sam3d_evaluate: predictions against the truth, one result against another, and what clicks are worth."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.settings.evaluation import EvaluationSettings
from sam3dnet.settings.function import function_of

_log = logging.getLogger("sam3dnet.cli.evaluate")


@dataclass(frozen=True)
class Outcome:
    """What to print, the files written, and the cases that have no result, with the reason."""

    text: str
    files: tuple[Path, ...]
    failed: dict[str, str] = field(default_factory=dict)


def _evaluate(settings: EvaluationSettings) -> Outcome:
    output = None if settings.output is None else Path(settings.output)
    if settings.clicks is None and settings.protocol is None:
        return _evaluate_folders(settings, output)
    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(settings.root)
    if settings.protocol is None:
        from sam3dnet.evaluation.click_results import default_folder, format_study, write_study
        from sam3dnet.evaluation.click_study import study_clicks

        study = study_clicks(settings, folders)
        return Outcome(format_study(study), write_study(study, output or default_folder(study)), study.failed)
    from sam3dnet.evaluation.challenge_results import challenge_folder, format_challenge, write_challenge
    from sam3dnet.evaluation.challenges import study_challenge

    challenge = study_challenge(settings, folders)
    files = write_challenge(challenge, output or challenge_folder(challenge))
    return Outcome(format_challenge(challenge), files, challenge.failed)


def _evaluate_folders(settings: EvaluationSettings, output: Path | None) -> Outcome:
    from sam3dnet.preprocessing.cluster import cluster_at

    first, *others = map(Path, settings.predictions or ())
    labels = Path(str(settings.labels))
    with cluster_at(settings.scheduler, settings.num_processes) as cluster:
        if others:
            from sam3dnet.evaluation.compare import compare_folders, format_comparison, write_comparison

            comparison = compare_folders(first, others[0], labels, settings, cluster=cluster)
            files = write_comparison(comparison, output or first)
            return Outcome(format_comparison(comparison), files, comparison.left_out)
        from sam3dnet.evaluation.folder import evaluate_folder
        from sam3dnet.evaluation.results import format_evaluation, write_results

        evaluation = evaluate_folder(first, labels, settings, cluster=cluster)
        return Outcome(format_evaluation(evaluation), write_results(evaluation, output or first), evaluation.failed)


evaluate = function_of(EvaluationSettings, _evaluate, "evaluate")


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
