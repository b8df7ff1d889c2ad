"""Models on the Hugging Face hub: hf://owner/name, with @revision for another than the newest."""

import re
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from sam3dnet import __version__
from sam3dnet.errors import CheckpointError

PREFIX = "hf://"
EXTRA = "pip install 'sam3dnet[hub]'"
PATTERNS = ["*.json", "*.pth", "*.md"]
_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        repository: owner/name.
        revision: Branch, tag or commit; None for the newest.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(source: object) -> bool:
    """Tell whether a name is one of the hub's."""
    return str(source).startswith(PREFIX) or bool(re.match(r"hf:/[^/]", str(source)))  # paths lose the second slash


def hub_model(source: object) -> HubModel:
    """Read a name of the hub.

    Raises:
        CheckpointError: If it is none.
    """
    name = re.sub(r"^hf:/+", PREFIX, str(source)).rstrip("/")
    found = _NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{name}: expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    return HubModel(found["repository"], found["revision"])


def pull(model: HubModel) -> Path:
    """Download a model into the hub's cache, or find it there; give its folder.

    Raises:
        CheckpointError: If there is no such model, or it cannot be downloaded.
    """
    hub = _require_hub()
    try:
        return Path(
            hub.snapshot_download(
                model.repository,
                revision=model.revision,
                allow_patterns=PATTERNS,
                library_name="sam3dnet",
                library_version=__version__,
            )
        )
    except Exception as problem:  # of the hub's client, of its transport and of the disk
        raise CheckpointError(
            f"{model} cannot be downloaded ({_first_line(problem)}); see that the name is right, that you may read it "
            "(hf auth login), and that the network is there; without one, copy the exported file"
        ) from problem


def push(folder: Path, model: HubModel, *, private: bool) -> str:
    """Upload a folder as it is, into a new or existing repository; give the address of what was made.

    Of the models in the folder, DATASET/MODEL, nothing stays there of what an earlier upload had and this one has not,
    such as other folds, which would predict along; all else in the repository stays.

    Raises:
        CheckpointError: If that is impossible.
    """
    hub = _require_hub()
    client = hub.HfApi(library_name="sam3dnet", library_version=__version__)
    try:
        client.create_repo(model.repository, private=private, exist_ok=True)
        made = client.upload_folder(
            repo_id=model.repository,
            folder_path=folder,
            revision=model.revision,
            delete_patterns=_patterns_of_models(folder),
            commit_message=f"Exported by sam3dnet {__version__}",
        )
    except Exception as problem:
        raise CheckpointError(
            f"{model} cannot be uploaded ({_first_line(problem)}); log in with hf auth login, with a token that may "
            "write"
        ) from problem
    return str(made.commit_url)


def _patterns_of_models(folder: Path) -> list[str]:
    models = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_dir())
    return [f"{escape(model)}/*" for model in models]  # "*" also matches what is deeper


def _require_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as problem:
        raise CheckpointError(f"{PREFIX} needs huggingface_hub, which is not installed; {EXTRA}") from problem
    return huggingface_hub


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__
