"""What the second stage of a cascade needs before it is trained: the first stage's label map of every case."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.errors import DatasetError
from sam3dnet.inference.model_folders import trained_folds
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.splits import Split

SUFFIXES = (".b2nd", ".npz", ".npy")  # nnU-Net's


@dataclass(frozen=True)
class LabelMaps:
    """Where the label maps of a first stage lie, and how it is trained.

    Attributes:
        folder: Of the label maps, `predicted_next_stage/CONFIGURATION` of the first stage's model folder.
        cases_folder: Of the second stage's preprocessed cases.
        command: That trains the first stage, with FOLD in place of the fold.
        splits: All folds of the dataset.
    """

    folder: Path
    cases_folder: Path
    command: str = ""
    splits: Sequence[Split] = ()

    def require(self, names: Collection[str]) -> None:
        """See that each of these cases has a label map on its own grid.

        Raises:
            DatasetError: If some have none; says which folds of the first stage to train or validate.
        """
        found = {name: self._fault(name) for name in sorted(set(names))}
        faulty = {name: fault for name, fault in found.items() if fault is not None}
        if faulty:
            name, fault = next(iter(faulty.items()))
            raise DatasetError(
                f"{self.folder}: {len(faulty)} of {len(found)} cases have no label map of the first stage to go on "
                f"from: {shorten(list(faulty))} ({name}: {fault}); its validation writes them: "
                f"{self._lines(faulty.keys())}"
            )

    def has(self, name: str) -> bool:
        """Tell whether a case has a label map on its own grid."""
        return self._fault(name) is None

    def _fault(self, name: str) -> str | None:
        files = [file for suffix in SUFFIXES if (file := self.folder / f"{name}{suffix}").is_file()]
        if not files:
            return "there is none"
        stored, image = _shape(files[0]), _shape(self.cases_folder / f"{name}.b2nd")
        if stored is None or image is None or stored == image[-len(stored) :]:
            return None
        return f"its shape is {stored}, that of the preprocessed image {image[-len(stored) :]}"

    def _lines(self, names: Collection[str]) -> str:
        """Say what to type, for folds that are trained and for those that are not."""
        validated = {name for split in self.splits for name in split.val}
        folds: list[int | str] = [number for number, split in enumerate(self.splits) if set(split.val) & set(names)]
        if set(names) - validated:
            folds.append("all")
        trained = trained_folds(self.folder.parents[1])
        to_train = [str(fold) for fold in folds if fold not in trained]
        to_validate = [str(fold) for fold in folds if fold in trained]
        lines = ((self.command, to_train), (f"{self.command} --validate-only", to_validate))
        return "; ".join(_line(command, some) for command, some in lines if some)


def _line(command: str, folds: Sequence[str]) -> str:
    if len(folds) == 1:
        return command.replace("FOLD", folds[0])
    return f"{command}, for each FOLD of {' '.join(folds)}"


def _shape(file: Path) -> tuple[int, ...] | None:
    """Read the shape of an array of blosc2's from its header; None of other formats."""
    if file.suffix != ".b2nd" or not file.is_file():
        return None
    import blosc2

    try:
        return tuple(int(size) for size in blosc2.open(str(file), mode="r").shape)
    except RuntimeError:
        return ()
