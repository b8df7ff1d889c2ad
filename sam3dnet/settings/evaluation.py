"""What can be asked of an evaluation: of predictions, of clicks, by a challenge's protocol."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sam3dnet.errors import DatasetError
from sam3dnet.settings.common import DatasetName, InFolders, NumProcesses, OfPlan, OnDevice

FirstClick = Literal["centre", "margin"]
Placing = Literal["corrective", "random", "centre"]
Given = Literal["one-by-one", "at-once"]
ChallengeName = Literal["cvpr25", "autopet4"]

CENTRE: FirstClick = "centre"
LESION_IOU = 0.1  # lenient, as usual where lesions are counted and not outlined; 0 stands for any common voxel


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How predictions are scored.

    Attributes:
        dataset_json: File that names the classes, regions and the ignore label; without it dataset.json in the
            folder of predictions, else the one beside the folder of labels.
        tolerance: Tolerance of the NSD in mm; without it the literature's for this task, else 2.
        lesion_iou: Intersection over union from which on a predicted and a true lesion match; 0 for any common voxel.
        missing_as_empty: Count a missing prediction as one in which nothing was found, in place of an error.
        num_processes: Cases that are scored at the same time; 0 scores in the command's own process, without it one a
            core, 8 at most.
    """

    dataset_json: str | Path | None = None
    tolerance: float | None = None
    lesion_iou: float = LESION_IOU
    missing_as_empty: bool = False
    num_processes: NumProcesses = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ScoringSettings, InFolders, OnDevice, OfPlan):
    """Score predictions against the truth (-p PREDICTIONS -g LABELS), compare two results (-p A B -g LABELS), or
    measure what clicks are worth (-d DATASET --clicks 0,1,3,5,10).

    Attributes:
        predictions: Folder with predicted label maps; with two folders, the difference of the second from the first.
        labels: Folder with the true label maps, such as labelsTs; files have the names of the predictions.
        output: Folder for the results as JSON and CSV; without it the (first) folder of predictions, or for clicks
            the folder of the fold.
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
        scheduler: Address of a Dask scheduler, whose workers then score; see docs/cluster.md.

    Raises:
        DatasetError: If options do not belong together, or are no numbers of clicks.
    """

    predictions: Annotated[list[str | Path] | None, "-p"] = None
    labels: Annotated[str | Path | None, "-g"] = None
    output: Annotated[str | Path | None, "-o"] = None
    clicks: str | None = None
    dataset: Annotated[DatasetName | None, "-d"] = None
    fold: Annotated[str | int | None, "-f"] = None
    images: Annotated[str | Path | None, "-i"] = None
    placing: list[Placing] | None = None
    given: list[Given] | None = None
    first_click: FirstClick = CENTRE
    protocol: ChallengeName | None = None
    without_box: list[str] | None = None
    cases: int | None = None
    scheduler: str | None = None

    @property
    def numbers_of_clicks(self) -> tuple[int, ...]:
        """The numbers of clicks, ascending."""
        return read_clicks(self.clicks or "")

    def __post_init__(self) -> None:
        of_users: dict[str, Any] = {"--placing": self.placing, "--given": self.given}
        of_users["--first-click margin"] = self.first_click != CENTRE
        if self.clicks is None and self.protocol is None:
            of_model: dict[str, Any] = {"-d": self.dataset, "-f": self.fold, "-i": self.images, "--cases": self.cases}
            of_model |= {"--root": self.root, "--device": self.device, "--without-box": self.without_box}
            _refuse(of_model | of_users, "only with --clicks or --protocol")
            self._require_folders()
            return
        scoring: dict[str, Any] = {"-p": self.predictions, "--dataset-json": self.dataset_json}
        scoring |= {"--missing-as-empty": self.missing_as_empty, "--scheduler": self.scheduler}
        _refuse(scoring, f"not with {'--clicks' if self.protocol is None else '--protocol'}")
        if self.protocol != "cvpr25":
            _refuse({"--without-box": self.without_box}, "only with --protocol cvpr25")
        if self.protocol is not None:
            replaced = of_users | {"--clicks": self.clicks, "--tolerance": self.tolerance}
            _refuse(replaced, f"not with --protocol {self.protocol}")
        else:
            read_clicks(self.clicks or "")
        if (self.images is None) != (self.labels is None):
            raise DatasetError("images and labels belong together: give both -i and -g, or neither")

    def _require_folders(self) -> None:
        folders = self.predictions or []
        if len(folders) not in (1, 2) or self.labels is None:
            raise DatasetError(
                "expected -p PREDICTIONS -g LABELS, -p A B -g LABELS, or -d DATASET --clicks 0,1,3,5,10; "
                f"came {len(folders)} folders of predictions and {'a' if self.labels else 'no'} folder of labels"
            )


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


def _refuse(options: dict[str, Any], when: str) -> None:
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise DatasetError(f"{', '.join(given)}: {when}")
