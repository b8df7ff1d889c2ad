"""sam3d_verify: what is wrong with a dataset, all of it at once, and nothing else is done."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.settings.function import function_of
from sam3dnet.settings.verification import VerificationSettings

if TYPE_CHECKING:
    from sam3dnet.preprocessing.problems import Problem


def _verify(settings: VerificationSettings) -> dict[str, list["Problem"]]:
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name, write_json
    from sam3dnet.preprocessing.verify import verify_dataset
    from sam3dnet.preprocessing.workers import default_num_processes

    folders = activate_folders(settings.root)
    names = [find_dataset_name(identifier, folders) for identifier in settings.datasets]
    processes = default_num_processes() if settings.num_processes is None else settings.num_processes
    found = {name: verify_dataset(folders.raw / name, processes) for name in names}
    if settings.json is not None:
        write_json(
            Path(settings.json), {name: [asdict(problem) for problem in problems] for name, problems in found.items()}
        )
    return found


verify = function_of(VerificationSettings, _verify, "verify")


def print_problems(found: dict[str, list["Problem"]]) -> int:
    """Print the problems of each dataset, errors first, and how many there are; give the exit status."""
    for name, problems in found.items():
        errors = [problem for problem in problems if problem.severity == "error"]
        warnings = [problem for problem in problems if problem.severity == "warning"]
        for problem in (*errors, *warnings):
            print(f"{problem.severity}: {problem.case}: {problem.check}: {problem.message}")
        print(f"{name}: {len(errors)} errors, {len(warnings)} warnings")
    return STATUS_SOME_FAILED if any(p.severity == "error" for problems in found.values() for p in problems) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(verify, "sam3d_verify", argv, exit_status=print_problems)


if __name__ == "__main__":
    sys.exit(main())
