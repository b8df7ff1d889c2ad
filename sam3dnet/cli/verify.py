"""sam3d_verify: what is wrong with a dataset, all of it at once, and nothing else is done."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sam3dnet.cli.command import STATUS_SOME_FAILED, run_command
from sam3dnet.settings.common import NumProcesses

if TYPE_CHECKING:
    from sam3dnet.preprocessing.problems import Problem


def verify(
    *,
    datasets: Annotated[list[str], "-d"],
    root: Path | None = None,
    json: Path | None = None,
    num_processes: NumProcesses = None,
) -> dict[str, list["Problem"]]:
    """Verify raw datasets, the images in imagesTs included, and list all problems of all cases.

    Ends with status 1 if there is an error; what is wrong with an image of imagesTs is only a warning.

    Args:
        datasets: Datasets by number or name, such as 501 or Dataset501_Hippocampus.
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
        json: File to write the problems to, as JSON.
        num_processes: Processes to verify with; 0 works in the command's own, without it one a core, 8 at most.

    Returns:
        The problems of each dataset, by its name.

    Raises:
        DatasetError: If a dataset is not found.
    """
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name, write_json
    from sam3dnet.preprocessing.verify import verify_dataset
    from sam3dnet.preprocessing.workers import default_num_processes

    folders = activate_folders(root)
    names = [find_dataset_name(identifier, folders) for identifier in datasets]
    processes = default_num_processes() if num_processes is None else num_processes
    found = {name: verify_dataset(folders.raw / name, processes) for name in names}
    if json is not None:
        write_json(json, {name: [asdict(problem) for problem in problems] for name, problems in found.items()})
    return found


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
