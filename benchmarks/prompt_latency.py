"""Time the prompts of a session: the first click on an image, which computes features, further ones, and sets of them.

    python benchmarks/prompt_latency.py --json OUT
    python benchmarks/prompt_latency.py --model MODEL_FOLDER --json OUT

Without a model its weights are random and its window is the whole crop: that tells the time, not the mask. An image of
noise is set, which segments it automatically, then clicked at seeded places, each time saying the opposite of what the
mask says there; the features of an image that was set before are forgotten, those of clicks at once are known.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import as_markdown, begin, finish, make_parser, shown_ratio, shown_seconds
from prediction_memory import make_plans as make_any_plans

from sam3dnet.check.measuring import spread, time_once
from sam3dnet.check.networks import own_arguments
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import load_model
from sam3dnet.prompts.types import ClassPrompts, Point

SPACING_MM = (1.0, 1.0, 1.0)
LABELS = {"background": 0, "organ": 1, "tumour": 2}
SEED = 0
FIRST = "first click"
AT_ONCE = (1, 3, 10)


def make_model(folder: Path, patch: list[int], encoder: str, token_stride: int) -> Path:
    """Write a model folder with random weights that answers prompts, as planning and training leave it."""
    from sam3dnet.network.sam3d import SAM3D

    arguments = own_arguments(patch, token_stride, encoder, pretrained=False, prompts=True)
    (folder / "fold_0").mkdir(parents=True)
    network = SAM3D(1, len(LABELS), **arguments)
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainerSAM3D",
        "inference_allowed_mirroring_axes": (),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    dataset = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(make_plans(patch, arguments)))
    return folder


def make_plans(patch: list[int], arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the part of a plan that prediction reads."""
    plans = make_any_plans(patch) | {"plans_name": "SAM3DPlans"}
    plans["configurations"]["3d_fullres"] |= {
        "spacing": list(SPACING_MM),
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {
            "network_class_name": "sam3dnet.network.sam3d.SAM3D",
            "arch_kwargs": arguments,
            "_kw_requires_import": [],
        },
    }
    return plans


def measure(a: argparse.Namespace, device: torch.device, model: Path) -> list[dict[str, Any]]:
    """Set an image and click it, as often as asked for; give a row for each kind of step."""
    session = load_model(model, device=device).session()
    plans = json.loads((model / "plans.json").read_text())
    spacing_mm = np.take(plans["configurations"]["3d_fullres"]["spacing"], plans["transpose_backward"])
    channels = len(json.loads((model / "dataset.json").read_text())["channel_names"])
    name, rng = session.class_names[-1], np.random.default_rng(SEED)
    image = rng.normal(size=(channels, *a.shape)).astype(np.float32)
    seconds: dict[str, list[float]] = {}
    for repetition in range(a.repetitions + 1):
        times = {"set image": [time_once(lambda: session.set_image(image, spacing_mm.tolist()), device)]}
        # in the middle, so that a model with small windows looks at the same ones
        places = rng.normal(np.array(a.shape[::-1]) / 2, 2, (1 + a.further, 3)).round()
        clicks = [time_once(partial(session.prompt, disputing(session, name, [at]), name), device) for at in places]
        times |= {FIRST: clicks[:1], "further click": clicks[1:]}
        for number in AT_ONCE:
            session.reset()
            at_once = disputing(session, name, rng.normal(np.array(a.shape[::-1]) / 2, 2, (number, 3)).round())
            step = f"{number} clicks at once"
            times[step] = [time_once(partial(session.prompt, at_once, name), device)]
        for step, measured in times.items():
            seconds.setdefault(step, []).extend(measured if repetition else [])  # the first round warms up
    return [{"step": step, **spread(measured)} for step, measured in seconds.items()]


def disputing(session: PromptSession, class_name: str, places: Sequence[Sequence[float]]) -> ClassPrompts:
    """Click so that each click says the opposite of the present mask."""
    mask_ZYX = session.mask(class_name)
    return ClassPrompts(tuple(Point((x, y, z), not mask_ZYX[int(z), int(y), int(x)]) for x, y, z in places))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a line for each kind of step."""
    first = next(row["median_s"] for row in rows if row["step"] == FIRST)
    lines = [("step", "seconds, median (quartiles)", "times shorter than the first click")]
    lines += [(row["step"], shown_seconds(row), shown_ratio(row["median_s"], first)) for row in rows]
    return as_markdown(lines)


def main() -> None:
    """Parse, measure, print, write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, help="model folder of nnUNet_results (default: random weights)")
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 128, 128], help="of the image (Z, Y, X)")
    parser.add_argument("--encoder", default="small", help="of the random weights (default %(default)s)")
    parser.add_argument("--token-stride", type=int, default=8, help="of the random weights (default %(default)s)")
    parser.add_argument("--further", type=int, default=5, help="further clicks a round (default %(default)s)")
    a = parser.parse_args()
    device = begin(a)
    with tempfile.TemporaryDirectory() as name:
        model = a.model or make_model(Path(name) / "model", a.shape, a.encoder, a.token_stride)
        rows = measure(a, device, model)
    print(table(rows))
    finish(a, "prompt_latency", rows)


if __name__ == "__main__":
    main()
