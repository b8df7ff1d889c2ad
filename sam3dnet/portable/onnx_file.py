"""Write the automatic network of a trained model as ONNX, and as JSON all that is done before and after it."""

import copy
import importlib
import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sam3dnet import __version__
from sam3dnet.errors import CheckpointError
from sam3dnet.inference.models import LoadedModel, load_model
from sam3dnet.inference.postprocessing import read_postprocessing
from sam3dnet.inference.windows import LARGEST_WEIGHT, SIGMA_SHARE, mirror_combinations
from sam3dnet.inference.writing import unfinished_folder
from sam3dnet.portable.content import digest_of
from sam3dnet.preprocessing.cases import channel_names, foreground_classes
from sam3dnet.preprocessing.folders import parse_fold, write_json
from sam3dnet.settings.export import ExportSettings
from sam3dnet.settings.prediction import STEP_SIZE

ENDING = ".onnx"
FORMAT = "sam3dnet-onnx/1"
OPSET = 18
LARGEST_DIFFERENCE = 1e-3  # of logits, against torch's
LARGEST_BYTES = 1_900_000_000  # protobuf's files end at 2 GiB
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "image", "logits"
SEED = 0  # of the made-up crop that the two are compared on
NORMALISED = {  # nnU-Net's class -> what it does with a channel
    "CTNormalization": "clip_and_standardise",
    "ZScoreNormalization": "standardise_image",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "range_to_01",
    "RGBTo01Normalization": "divide_by_255",
}
DATA_ORDER, PROBABILITIES_ORDER = 3, 1  # of nnU-Net's default resampling, where a plan names none

logger = logging.getLogger(__name__)


class MeanOfFolds(nn.Module):
    """Averages the logits of the folds' networks.

    Args:
        networks: Of images (B, C, Z, Y, X); brought to single precision.
    """

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(network.float().eval() for network in networks)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        """Return the mean logits (B, K, Z, Y, X) of a crop."""
        found = [network(x_BCZYX) for network in self.networks]
        finest = [logits[0] if isinstance(logits, list | tuple) else logits for logits in found]
        return torch.stack(finest).mean(0) if len(finest) > 1 else finest[0]


def export_onnx(settings: ExportSettings, model_folder: Path) -> str:
    """Write NAME.onnx, for crops of the plan's size, and NAME.json; both appear whole or not at all.

    The logits of a made-up crop are compared with torch's before anything is written.

    Args:
        settings: What is asked for.
        model_folder: The model.

    Returns:
        The ONNX file.

    Raises:
        CheckpointError: If a package is missing, the model is a cascade's second stage, its network cannot be expressed
            in ONNX or gives other logits there, or the files are there already.
        PlanError: If the plan cannot be read.
    """
    target = Path(settings.output).absolute()
    described = target.with_suffix(".json")
    if described.exists():
        raise CheckpointError(f"{described} is there already; remove it, or name another file with -o")
    if settings.half:
        raise CheckpointError("--half is for .zip files; ONNX has full precision, convert it with onnxruntime's tools")
    _require_packages()
    folds = None if settings.folds is None else [parse_fold(fold) for fold in settings.folds]
    model = load_model(model_folder, folds, settings.checkpoint)
    if model.input_labels:
        raise CheckpointError(
            f"{model_folder.name}: a cascade's second stage needs what the first one said; export 3d_lowres or "
            "3d_fullres, -c CONFIGURATION, or the whole cascade as .zip"
        )
    network = MeanOfFolds(copy.deepcopy(model.network_of(fold)) for fold in range(len(model.weights)))
    size = sum(one.numel() * one.element_size() for one in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise CheckpointError(
            f"weights of {size / 1e9:.1f} GB do not fit into an ONNX file; export fewer folds with -f"
        )
    crop = torch.from_numpy(np.random.default_rng(SEED).normal(size=_input_shape(model)).astype(np.float32))
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(target.parent) as folder:
        made = Path(folder) / target.name
        convert(network, crop, made)
        difference = compare(network, crop, made)
        content = describe(model, model_folder, settings) | {
            "network": target.name,
            "sha256": digest_of(made),
            "largest_difference_of_logits": difference,
        }
        write_json(Path(folder) / described.name, content)
        os.replace(Path(folder) / described.name, described)
        os.replace(made, target)
    logger.info("%s: opset %d, logits differ from torch's by at most %.1e", target.name, OPSET, difference)
    return str(target)


def _require_packages() -> None:
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as problem:
            raise CheckpointError(f"ONNX needs {package}; install it: pip install 'sam3dnet[onnx]'") from problem


def _input_shape(model: LoadedModel) -> tuple[int, ...]:
    return (1, model.num_images, *map(int, model.configuration.patch_size))


@torch.no_grad()
def convert(network: nn.Module, crop_BCZYX: Tensor, file: Path) -> None:
    """Write a network for crops of this one's size.

    Raises:
        CheckpointError: If it cannot be expressed in ONNX.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")  # of torch about its own exporter
            program = torch.onnx.export(
                network,
                (crop_BCZYX,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            program.save(file, external_data=False)
    except Exception as problem:  # torch's exporter raises many kinds
        reason = next((line for line in str(problem).splitlines() if line.strip()), "")
        raise CheckpointError(
            f"the network cannot be expressed in ONNX ({type(problem).__name__}: {reason}); export it as .zip"
        ) from problem


@torch.no_grad()
def compare(network: nn.Module, crop_BCZYX: Tensor, file: Path) -> float:
    """Give the largest difference of logits from torch's in double precision, which the network is brought to.

    In single precision torch's own differ from these by up to 0.002 in large crops on a CPU.

    Raises:
        CheckpointError: If it is too large.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: crop_BCZYX.numpy()})
    expected = network.double()(crop_BCZYX.double()).numpy()
    difference = float(np.abs(found - expected).max())
    allowed = LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:
        raise CheckpointError(
            f"logits by ONNX differ from torch's by {difference:.2g}, expected at most {allowed:.2g}; export it as "
            ".zip, and tell us"
        )
    return difference


def describe(model: LoadedModel, model_folder: Path, settings: ExportSettings) -> dict[str, Any]:
    """Say in plain data what is done before and after the network, for those who have neither torch nor sam3dnet."""
    plans, configuration = model.plans.plans, model.configuration
    order = list(map(int, model.labels.regions_class_order)) if model.labels.has_regions else None
    return {
        "format": FORMAT,
        "made_by": f"sam3dnet {__version__}",
        "opset": OPSET,
        "dataset": plans["dataset_name"],
        "licence": settings.licence,
        "intended_use": settings.intended_use,
        "channels": list(channel_names(model.dataset_json).values()),
        "classes": {name: list(values) for name, values in foreground_classes(model.dataset_json).items()},
        "input": {"name": INPUT, "shape": _input_shape(model)},
        "output": {"name": OUTPUT, "shape": [1, model.labels.num_segmentation_heads, *configuration.patch_size]},
        "read_by": plans["image_reader_writer"],
        "transpose": list(plans["transpose_forward"]),
        "crop_to_nonzero": True,
        "normalisation": _normalisation(plans, configuration),
        "spacing_mm": [float(mm) for mm in configuration.spacing],
        "resampling": _resampling(configuration.configuration),
        "windows": {"step": STEP_SIZE, "sigma": SIGMA_SHARE, "largest_weight": LARGEST_WEIGHT},
        "mirrored": _mirrored(model),
        "label_of_channel": None if order else list(range(model.labels.num_segmentation_heads)),
        "labels_in_order": order,
        **read_postprocessing(model_folder, model.dataset_json, model.fold_folders).as_json(),
    }


def _normalisation(plans: Mapping[str, Any], configuration: Any) -> list[dict[str, Any]]:
    said = []
    for channel, (scheme, in_mask) in enumerate(
        zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
    ):
        known = plans["foreground_intensity_properties_per_channel"].get(str(channel), {})
        one: dict[str, Any] = {"scheme": NORMALISED.get(scheme, scheme), "inside_nonzero_only": bool(in_mask)}
        if scheme == "CTNormalization":
            one |= {"lowest": known["percentile_00_5"], "highest": known["percentile_99_5"]}
            one |= {"mean": known["mean"], "standard_deviation": known["std"]}
        said.append(one)
    return said


def _resampling(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Say by which order images and logits are resampled; along an axis that is much coarser by the nearest."""
    from nnunetv2.configuration import ANISO_THRESHOLD

    def order(role: str, default: int) -> int:
        is_linear = configuration.get(f"resampling_fn_{role}") == "resample_torch_fornnunet"
        return 1 if is_linear else int(configuration.get(f"resampling_fn_{role}_kwargs", {}).get("order", default))

    return {
        "order_of_images": order("data", DATA_ORDER),
        "order_of_logits": order("probabilities", PROBABILITIES_ORDER),
        "nearest_along_axis_coarser_by": float(ANISO_THRESHOLD),
    }


def _mirrored(model: LoadedModel) -> list[dict[str, Any]]:
    """Say which mirrored versions of a crop are averaged: axes of (B, C, Z, Y, X), and the order of logits in each."""
    heads, sides = list(range(model.labels.num_segmentation_heads)), model.sides
    said = []
    for axes in mirror_combinations(model.mirror_axes):
        swapped = sides is not None and sides.axis + 2 in axes
        said.append({"axes": list(axes), "logits": list(sides.channels) if swapped and sides else heads})
    return said
