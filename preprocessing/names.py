"""Names of files and cases that mean something else to a computer, to nnU-Net or to us than to the user."""

from collections.abc import Iterable
from pathlib import Path

from sam3dnet.preprocessing.folders import is_plain_name

# What file managers leave behind; macOS writes its companions as "._NAME".
LEFT_BEHIND = ("thumbs.db", "desktop.ini")
LABELS_SUFFIX = "_seg"  # nnU-Net stores the labels of NAME as NAME_seg
# Of files that lie among label maps; a format whose spacing stands in NAME.json would overwrite them.
JSON_OF_OURS = ("dataset", "plans", "sam3d_prediction", "summary")
SIDECAR_ENDINGS = (".tif", ".tiff")


def entries(folder: Path) -> list[Path]:
    """List what a user put into a folder, sorted by name, broken links and folders too; nothing without the folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not _is_left_behind(path))


def _is_left_behind(path: Path) -> bool:
    return path.name.lower() in LEFT_BEHIND


def not_a_file(path: Path) -> str | None:
    """Say what stands under a file's name if it is no file that could be read: opening others may wait for ever."""
    if path.is_file():
        return None
    if path.is_dir():
        return "a folder"
    if path.is_symlink():
        return f"a link to {path.readlink()}, where there is no file"
    return "no file with content, but a pipe or a device" if path.exists() else "not there"


def has_ending_in_other_case(path: Path, ending: str) -> bool:
    """Tell whether a name ends as expected but for upper and lower case."""
    return path.name.lower().endswith(ending.lower()) and not path.name.endswith(ending)


def fault_of_output(case: str, ending: str) -> str | None:
    """Say why a label map of this name would overwrite another file."""
    if ending.lower() in SIDECAR_ENDINGS and case in JSON_OF_OURS:
        return f"its label map's spacing would overwrite {case}.json; rename the image"
    return None


def fault_of_case(case: str, ending: str) -> str | None:
    """Say why a training case cannot have this name."""
    if not is_plain_name(case):
        return "is not a plain name; expected one without folders; rename its files"
    if case.endswith(LABELS_SUFFIX):
        stem = case.removesuffix(LABELS_SUFFIX)
        return (
            f"ends in {LABELS_SUFFIX}, as the file in which nnU-Net stores the labels of {stem}; rename its files, "
            f"such as to {stem}_b"
        )
    if (fault := fault_of_output(case, ending)) is not None:
        return fault.replace("the image", "its files")
    return None


def faulty_cases(cases: Iterable[str], ending: str) -> dict[str, str]:
    """Say of each training case that cannot have its name why that is so."""
    return {case: fault for case in cases if (fault := fault_of_case(case, ending)) is not None}
