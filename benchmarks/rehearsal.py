"""Rehearse the first run with SAM's weights at full size: a genuine download and check of a file with random values.

    python benchmarks/rehearsal.py -d 501 --raw FOLDER_WITH_DATASETS --work DIR --json OUT

A file in the format and size of SAM's ViT-B is served by a mirror on this machine, which has a registry of its own. A
few cases are planned, with --encoder auto and with these weights; then the network is trained for a few iterations,
continued, and predicts, once by our command and once by stock nnUNetv2_predict. The weights mean nothing: only times,
memory and sizes do. The last table says what a checkpoint would be without the frozen weights in it. Finished steps are
not repeated.
"""

import argparse
import contextlib
import functools
import hashlib
import http.server
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from against_nnunet import find_dataset
from measuring import as_markdown, finish, make_parser
from random_weights import write_random_weights

from sam3dnet.cli.info import ext_trainer_folder
from sam3dnet.comparison.stages import Stages, call
from sam3dnet.network.weights_registry import REGISTRY_FORMAT
from sam3dnet.preprocessing.folders import write_json

FAMILY, ENCODER, NAME = "rehearsal", "vit_b", "random_vit_b.pth"
TEST_CASES = 2
MODEL = "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"


@dataclass
class Mirror:
    """A web server of one folder on this machine.

    Attributes:
        folder: What it serves.
        requests: Paths that were asked for.
        address: Its own; empty while it does not run.
    """

    folder: Path
    requests: list[str] = field(default_factory=list)
    address: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Keep the paths alone."""
                mirror.requests.append(self.path)

        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(self.folder))
        )
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@dataclass(frozen=True)
class Place:
    """Where everything lies: the dataset's few cases and nnU-Net's three folders are below `work`."""

    dataset: str
    work: Path

    @property
    def raw(self) -> Path:
        return self.work / "nnUNet_raw" / self.dataset

    @property
    def fold(self) -> Path:
        return self.work / "nnUNet_results" / self.dataset / MODEL / "fold_0"


def copy_cases(source: Path, place: Place, cases: int) -> None:
    """Link the first cases of a dataset for training, and the next ones for prediction."""
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (source / "labelsTr").glob(f"*{ending}"))
    for number, name in enumerate(names[: cases + TEST_CASES]):
        part = "Tr" if number < cases else "Ts"
        files = [source / "labelsTr" / f"{name}{ending}", *(source / "imagesTr").glob(f"{name}_????{ending}")]
        for file in files:
            link = place.raw / file.parent.name.replace("Tr", part) / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())
    write_json(place.raw / "dataset.json", {**description, "numTraining": cases})
    for name in ("preprocessed", "results"):
        (place.work / f"nnUNet_{name}").mkdir(exist_ok=True)


def prepare_mirror(mirror: Mirror) -> dict[str, Any]:
    """Make the file of weights where there is none; give what a registry says of it, but for the address."""
    path = mirror.folder / NAME
    mirror.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_random_weights(path, ENCODER)
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return {"family": FAMILY, "encoder": ENCODER, "name": NAME, "bytes": path.stat().st_size, "digest": digest}


def environment(place: Place, mirror: Mirror) -> dict[str, str]:
    """Give the environment of all steps: a cache of its own, the mirror and its registry, nnU-Net's folders."""
    own = ("SAM3D_WEIGHTS", "SAM3D_OFFLINE")
    return {name: value for name, value in os.environ.items() if name not in own} | {
        "XDG_CACHE_HOME": str(place.work / "cache"),
        "SAM3D_WEIGHTS_REGISTRY": str(place.work / "registry.json"),
        "SAM3D_WEIGHTS_URL": mirror.address,
        "no_proxy": "127.0.0.1",
        "nnUNet_extTrainer": str(ext_trainer_folder()),
        "PYTHONUNBUFFERED": "1",
        **{f"nnUNet_{name}": str(place.work / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")},
    }


def steps(place: Place, device: str) -> dict[str, list[str]]:
    """Give the commands, as a user would type them."""
    number = str(int(place.dataset.removeprefix("Dataset").partition("_")[0]))
    ours = ("--root", str(place.work), "--device", device)
    images, out = str(place.raw / "imagesTs"), place.work / "predictions"
    train = ("sam3dnet.cli.train:main", number, "fold0", *ours, "--iterations-per-epoch", "3")
    plan = ("sam3dnet.cli.plan_and_preprocess:main", "-d", number, *ours)
    model = ("-c", "3d_fullres", "-tr", "nnUNetTrainerSAM3D", "-p", "SAM3DPlans", "-f", "0", "-device", device)
    return {
        "plan, --encoder auto": call(*plan),
        "plan with the weights": call(*plan, "--encoder", ENCODER, "--sam-checkpoint", FAMILY),
        "train": call(*train, "--epochs", "1"),
        "train --continue": call(*train, "--epochs", "2", "--continue"),
        "predict": call("sam3dnet.cli.predict:main", "-i", images, "-o", str(out), "-d", number, *ours),
        "nnUNetv2_predict": call(
            "nnunetv2.inference.predict_from_raw_data:predict_entry_point",
            *("-i", images, "-o", f"{out}_stock", "-d", number, *model),
        ),
        "sam3d_info --weights": call("sam3dnet.cli.info:main", "--weights"),
    }


def run_steps(place: Place, mirror: Mirror, entry: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Run all steps beside the mirror; a row each, with the files that it downloaded."""
    rows = []
    with mirror.running():
        registry = {"format": REGISTRY_FORMAT, "weights": [{**entry, "address": f"{mirror.address}/{NAME}"}]}
        write_json(place.work / "registry.json", registry)
        stages = Stages(place.work / "stages", environment(place, mirror))
        for name, command in steps(place, device).items():
            before = len(mirror.requests)
            label = "".join(letter if letter.isalnum() else "_" for letter in name)
            load = stages.run(label, {"digest": entry["digest"], "device": device}, command)["load"]
            rows.append({"step": name, **load, "requests": mirror.requests[before:]})
    return rows


def checkpoint_rows(place: Place) -> list[dict[str, Any]]:
    """Say how large the final checkpoint is and how long it takes to write, whole and without frozen weights."""
    from sam3dnet.training.checkpoint import load_safely, save_atomically

    path = place.fold / "checkpoint_final.pth"
    checkpoint = load_safely(path)
    plans = json.loads((place.fold.parent / "plans.json").read_text())
    trained = trained_names(plans, len(checkpoint["network_weights"]))
    weights = checkpoint["network_weights"]
    kept = {name: value for name, value in weights.items() if name in trained}
    variants = {
        "as it is": checkpoint,
        "without frozen weights": {**checkpoint, "network_weights": kept},
        "without the optimiser's state": {k: v for k, v in checkpoint.items() if k != "optimizer_state"},
    }
    rows = []
    for name, content in variants.items():
        copy = place.work / "copy.pth"
        start = time.perf_counter()
        save_atomically(content, copy)
        seconds = time.perf_counter() - start
        rows.append({"checkpoint": name, "bytes": copy.stat().st_size, "write_s": seconds})
        copy.unlink()
    return rows


def trained_names(plans: dict[str, Any], entries: int) -> set[str]:
    """Name the entries of a checkpoint that training changes, buffers among them."""
    from sam3dnet.network.segmentation import locate_network

    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    with torch.device("meta"):
        network = locate_network(architecture["network_class_name"])(1, 3, True, **architecture["arch_kwargs"])
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert len(network.state_dict()) == entries
    return set(network.state_dict()) - frozen


def agreement(place: Place) -> float:
    """Give the share of voxels in which stock nnU-Net's predictions equal ours."""
    import SimpleITK as sitk

    shares = []
    for path in sorted((place.work / "predictions").glob("*.nii.gz")):
        ours, stock = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            for file in (path, place.work / "predictions_stock" / path.name)
        )
        shares.append(float((ours == stock).mean()))
    return sum(shares) / len(shares)


def tables(steps_done: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> str:
    """Format both tables."""
    lines = [["step", "wall s", "CPU s", "peak MiB", "files asked for"]]
    for row in steps_done:
        figures = [f"{row[key]:,.0f}" for key in ("wall_seconds", "cpu_seconds", "peak_mib")]
        lines.append([row["step"], *figures, ", ".join(row["requests"]) or "-"])
    sizes = [["checkpoint", "MB", "s to write"]]
    sizes += [[row["checkpoint"], f"{row['bytes'] / 1e6:,.0f}", f"{row['write_s']:.2f}"] for row in checkpoints]
    return f"{as_markdown(lines)}\n\n{as_markdown(sizes)}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 501")
    parser.add_argument("--raw", type=Path, required=True, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--cases", type=int, default=20, help="cases to train with (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Rehearse, print the tables, write JSON."""
    a = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    place = Place(find_dataset(a.raw, a.dataset), a.work.resolve())
    place.work.mkdir(parents=True, exist_ok=True)
    copy_cases(a.raw / place.dataset, place, a.cases)
    mirror = Mirror(place.work / "mirror")
    entry = prepare_mirror(mirror)
    done = run_steps(place, mirror, entry, a.device)
    checkpoints = checkpoint_rows(place)
    finish(a, "rehearsal", [*done, *checkpoints, {"weights": entry, "equal_to_stock": agreement(place)}])
    print(tables(done, checkpoints))
    print(f"\nWeights: {entry['bytes']:,} bytes. Equal voxels, our prediction and nnU-Net's: {agreement(place):.4%}")


if __name__ == "__main__":
    main()
