"""Segment Anything in 3D for medical images, configured by nnU-Net's rules.

The commands are functions here, with the options as parameters: `plan_and_preprocess`, `train`, `predict`, `evaluate`,
`verify`. `load_model` gives a trained model that segments images, `PromptSession` one that answers prompts too,
`AnnotationProject` a dataset that is labelled with one. What a user can cause is a `Sam3dError`. Whatever a name needs
is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam3dnet.annotation.project import AnnotationProject
    from sam3dnet.cli.evaluate import evaluate
    from sam3dnet.cli.plan_and_preprocess import plan_and_preprocess
    from sam3dnet.cli.predict import predict
    from sam3dnet.cli.train import train
    from sam3dnet.cli.verify import verify
    from sam3dnet.errors import CheckpointError, DatasetError, FailedCasesError, PlanError, PromptError, Sam3dError
    from sam3dnet.interactive.session import PromptSession
    from sam3dnet.model import Model, load_model

__version__ = "0.1.0"

__all__ = [
    "AnnotationProject",
    "CheckpointError",
    "DatasetError",
    "FailedCasesError",
    "Model",
    "PlanError",
    "PromptError",
    "PromptSession",
    "Sam3dError",
    "__version__",
    "evaluate",
    "load_model",
    "plan_and_preprocess",
    "predict",
    "train",
    "verify",
]

_HOMES = {
    "AnnotationProject": "annotation.project",
    "evaluate": "cli.evaluate",
    "plan_and_preprocess": "cli.plan_and_preprocess",
    "predict": "cli.predict",
    "train": "cli.train",
    "verify": "cli.verify",
    "PromptSession": "interactive.session",
    "Model": "model",
    "load_model": "model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sam3dnet' has no attribute {name!r}")
    return getattr(import_module(f"sam3dnet.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
