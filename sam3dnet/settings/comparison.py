"""What can be asked of a comparison of methods."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sam3dnet.errors import Sam3dError
from sam3dnet.settings.common import DatasetName, InFolders, OnDevice, OnSam

NO_PROMPTS = "none"


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(InFolders, OnDevice, OnSam):
    """Plan, train and evaluate methods for the same time on the same split, and print one table.

    Every step that is finished is kept: interrupted, the same command goes on. 3dmedsam is built after the abstract.

    Attributes:
        dataset: Dataset by number or name.
        methods: Methods, with commas: nnunet, nnunet-resenc, sam3d, 3dsam-adapter, refsam3d, 3dmedsam, swin-unetr,
            unetr, segresnet, primus, sam-points, network; variants after a colon, such as 3dsam-adapter:as-published,
            sam3d:lora or 3dsam-adapter:automatic.
        minutes: Training time of each method.
        folds: Folds to train and validate, such as 0 1 2; figures are means over them. Without it fold 0.
        prompts: Numbers of clicks, with commas, after which methods that answer them are scored too, in columns of
            their own: corrective ones, and random points given at once; for sam-points, of points a slice. Such as
            none,1,3,10.
        output: Folder for everything that is written; without it sam3d_compare_ and the dataset's name.
        root: Folder that holds nnUNet_raw, in place of the variable of that name; it is only read.
        timed_cases: Validation cases that are timed.
        seed: Of the points of sam-points.

    Returns:
        A row a method.

    Raises:
        Sam3dError: If the dataset or a method is not there, or an option is out of range.
    """

    dataset: Annotated[DatasetName, "-d"]
    methods: str = "nnunet,sam3d,3dsam-adapter,refsam3d,3dmedsam"
    minutes: float = 30.0
    folds: Annotated[list[int] | None, "-f"] = None
    prompts: str = NO_PROMPTS
    output: Annotated[str | Path | None, "-o"] = None
    timed_cases: int = 10
    seed: int = 0

    @property
    def numbers_of_clicks(self) -> tuple[int, ...]:
        """The numbers of clicks, ascending."""
        words = [word for word in self.prompts.split(",") if word != NO_PROMPTS]
        if not all(word.isdigit() and int(word) > 0 for word in words):
            raise Sam3dError(f"--prompts {self.prompts}: expected numbers of clicks with commas, such as none,1,3,10")
        return tuple(sorted({int(word) for word in words}))

    @property
    def names_of_methods(self) -> list[str]:
        """The methods as asked for, a network of the user's own among them."""
        names = [method.strip() for method in self.methods.split(",")]
        return [*names, *(["network"] if self.network and "network" not in names else [])]

    def __post_init__(self) -> None:
        _ = self.numbers_of_clicks
