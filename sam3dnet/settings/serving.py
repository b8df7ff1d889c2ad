"""What can be asked of a server: for viewers, or to annotate a dataset."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from sam3dnet.errors import Sam3dError
from sam3dnet.settings.common import DatasetName, InFolders, OfPlan, OnDevice

PORT = 1527  # nnInteractive's own, which its plugins suggest


@dataclass(frozen=True, kw_only=True)
class AtAddress:
    """For what listens at an address.

    Attributes:
        host: Address to listen at; any other than this machine's own asks clients for a key.
        port: Port to listen at; 0 takes a free one.
        key: What clients must show; $SAM3D_SERVE_KEY does the same and is not seen by others. Made and printed where
            one is needed and none is given.
        name: Further names that the server goes by, such as that of a proxy.
        no_mirroring: Segment images without the average over mirrored windows: several times as fast, slightly less
            accurate.
        max_sessions: Viewers that are served at the same time.
        idle_minutes: After which a session ends whose user does nothing.
        max_upload: GB that an image may take.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    key: str | None = None
    name: list[str] | None = None
    no_mirroring: bool = False
    max_sessions: int = 8
    idle_minutes: float = 60.0
    max_upload: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise Sam3dError(f"--port {self.port}: expected a number from 0 to 65535")
        require_positive(self, "max_sessions", "idle_minutes", "max_upload")


def require_positive(settings: object, *names: str) -> None:
    """Refuse numbers that are not above 0.

    Raises:
        Sam3dError: For the first of them.
    """
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise Sam3dError(f"--{name.replace('_', '-')} {value}: expected a number above 0")


@dataclass(frozen=True)
class ServingSettings(AtAddress, InFolders, OnDevice, OfPlan):
    """Serve a trained model to napari, 3D Slicer, MITK and ITK-SNAP, until Ctrl-C.

    The addresses to paste into each viewer are printed. docs/viewers.md says what to click there.

    Attributes:
        model: Dataset that the model was trained on, by number or name, or a model folder, or a zip file with one;
            without it the only trained model.
        folds: Folds whose answers are averaged, such as 0 1 2 or all; without it every trained one.
        checkpoint: Checkpoint of each fold: final, best, latest or the name of a file; without it the first of these
            that there is.
        images: Folder of images, named as in nnU-Net's imagesTs: what viewers show of them is recognised, and place
            and further channels are taken from the files.
        viewer: Serve a page in the browser too, for the images of --images; all that is made there is saved at once.
        output: Folder for label maps and prompts of the page; without it that of the images with "_sam3d" at its end.
        instance: Keep only those objects that clicks and boxes name, so that each becomes a segment of its own.
    """

    model: str | None = None
    _: KW_ONLY
    folds: Annotated[list[str | int] | None, "-f"] = None
    checkpoint: str | None = None
    plans: Annotated[str, "-p"] = "SAM3DPlans"
    images: Annotated[str | Path | None, "-i"] = None
    viewer: bool = False
    output: Annotated[str | Path | None, "-o"] = None
    instance: bool = False

    @property
    def output_folder(self) -> Path | None:
        """Folder for what is made in the page; None where there is no page."""
        if not self.viewer or self.images is None:
            return None
        images = Path(self.images).absolute()
        return Path(self.output) if self.output is not None else images.with_name(f"{images.name}_sam3d")

    def __post_init__(self) -> None:
        if self.viewer and self.images is None:
            raise Sam3dError("--viewer shows the images of a folder; name it: --images FOLDER")
        if self.output is not None and not self.viewer:
            raise Sam3dError("--output is for what is made in the page in the browser; add --viewer")
        super().__post_init__()


@dataclass(frozen=True)
class AnnotationSettings(AtAddress, InFolders, OnDevice):
    """Label a dataset in the browser: the model proposes, you correct and accept, and it learns from that.

    What is accepted is in the dataset's imagesTr and labelsTr at once. docs/annotation.md tells more.

    Attributes:
        dataset: Dataset by number or name, such as 501 or Dataset501_Hippocampus.
        images: Folder of the images to label, named as in nnU-Net's imagesTs.
        model: Model folder to begin with; without it that of the last time, else the trained one of the dataset, else
            one is trained first; where nothing is labelled, LiteMedSAM draws objects from boxes.
        every: Accepted cases after which a training begins by itself; 0 for none but those that are asked for.
        minutes: Of each training.
        order: Which image comes next: the one of which the model is the least sure, or the most; by name; or by chance.
    """

    dataset: DatasetName
    _: KW_ONLY
    images: Annotated[str | Path, "-i"]
    model: Annotated[str | Path | None, "-m"] = None
    every: int = 5
    minutes: float = 3.0
    order: Literal["unsure", "sure", "name", "random"] = "unsure"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 0:
            raise Sam3dError(f"--every {self.every}: expected a number of cases, or 0")
        require_positive(self, "minutes")
