"""The images of a project: those that wait in their folder, those in the dataset, and those that were taken out."""

from collections.abc import Collection
from pathlib import Path

from sam3dnet.annotation.labelled import LabelledDataset
from sam3dnet.errors import DatasetError, did_you_mean
from sam3dnet.inference.images import Case, find_cases


class ProjectImages:
    """Finds images by name, wherever they are now.

    Args:
        folder: Of the images that wait, named as in imagesTr; it may have become empty.
        dataset: That they are labelled for.
        kept: Folder of the images of cases that were taken out of the dataset.
    """

    def __init__(self, folder: Path, dataset: LabelledDataset, kept: Path):
        self._folder, self._dataset, self._kept = folder, dataset, kept

    def all(self) -> list[Case]:
        """List all images: of several of a name that of the folder, else that of the dataset."""
        found: dict[str, Case] = {}
        for case in self._everywhere():
            found.setdefault(case.name, case)
        return list(found.values())

    def _everywhere(self) -> list[Case]:
        there = self._dataset.cases().items()
        in_dataset = [Case(name, case.images) for name, case in there if self._dataset.has_image(case)]
        return [*self._in(self._folder), *in_dataset, *self._in(self._kept)]

    def find(self, name: str) -> Case | None:
        """Give the image of a name; None if there is none."""
        return next((case for case in self.all() if case.name == name), None)

    def named(self, name: str, opened: Collection[Path] = ()) -> Case:
        """Give the image of a name.

        Args:
            name: Of the image.
            opened: Files of the one of several that is meant, if it is there.

        Raises:
            DatasetError: If there is none.
        """
        images = self._everywhere()
        found = [case for case in images if case.name == name]
        if not found:
            names = {case.name for case in images}
            raise DatasetError(
                f"{name}: no such image in {self._folder}{did_you_mean(name, sorted(names))}; give its name without "
                "the channel and the ending"
            )
        return next((case for case in found if {*case.files} <= {*opened}), found[0])

    def _in(self, folder: Path) -> list[Case]:
        try:
            return find_cases(folder, self._dataset.ending, self._dataset.num_channels)[0]
        except DatasetError:  # it has no image any more
            return []
