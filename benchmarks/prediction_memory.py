"""Measure the memory that the prediction of a large volume takes around the network: ours beside stock nnU-Net's.

Run as `python benchmarks/prediction_memory.py --shape 600 512 512 --classes 20 --workers 1 8 --json OUT`. Makes a
CT-like volume and a model whose network is one convolution of 1 x 1 x 1 voxels, so that what is measured is everything
else: reading, preprocessing, the logits of the whole volume, resampling, the decision, writing. The plan's voxels are
1.25 times as long as the image's, so that logits are resampled. Each run is a process of its own, watched with all its
children. The method "validation" is what `sam3d_train --validate-only` does with the same cases, preprocessed before,
and "session" segments the first image for clicks.

The label maps of both are compared, and with --exact each with labels from float32 logits of the whole volume, which
the network gives without windows: stock nnU-Net sums its windows in half precision, and where two logits nearly tie
another class may win. For small volumes, since all logits are held at once.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SPACING_MM = (1.0, 0.8, 0.8)
PLAN_SPACING_FACTOR = 1.25
CONFIGURATION = "3d_fullres"
DATASET, PLANS = "Dataset999_Memory", "Memory"


def make_plans(patch_size: Sequence[int]) -> dict[str, Any]:
    """Return a plan as nnU-Net reads it, with the resampling of our plans."""
    configuration: dict[str, Any] = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "spacing": [PLAN_SPACING_FACTOR * mm for mm in SPACING_MM],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "prediction_memory_network.Pointwise",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
    }
    for role in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{role}"] = "resample_torch_fornnunet"
        configuration[f"resampling_fn_{role}_kwargs"] = {"is_seg": role == "seg", "force_separate_z": None}
    intensities = {"mean": 0.0, "std": 300.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {CONFIGURATION: configuration},
    }


def write_model(folder: Path, num_classes: int, patch_size: Sequence[int]) -> None:
    """Write a model folder with one fold, as nnU-Net leaves it."""
    import torch
    from prediction_memory_network import Pointwise

    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    labels = {"background": 0, **{f"class_{k}": k for k in range(1, num_classes)}}
    dataset_json = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (folder / "plans.json").write_text(json.dumps(make_plans(patch_size)))
    torch.manual_seed(0)
    checkpoint = {
        "network_weights": Pointwise(1, num_classes).state_dict(),
        "init_args": {"configuration": CONFIGURATION},
        "trainer_name": "nnUNetTrainerSAM3D",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def write_images(folder: Path, shape: Sequence[int], num_cases: int) -> None:
    """Write one volume of smooth intensities, and link it under further names."""
    import numpy as np
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    z, y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in shape)
    values = np.empty(shape, np.int16)
    for index, height in enumerate(z):  # a slice at a time: this process shall not be the largest one
        wave = np.sin(9 * height + 7 * y[:, None]) * np.cos(8 * x[None] - 3 * height)
        values[index] = 900 * wave
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING_MM[::-1])
    first = folder / "case_0_0000.nii.gz"
    sitk.WriteImage(image, str(first), useCompression=True, compressionLevel=1)
    for number in range(1, num_cases):
        link = folder / f"case_{number}_0000.nii.gz"
        link.unlink(missing_ok=True)
        os.link(first, link)


def predict_with_ours(images: Path, output: Path, model: Path, workers: int, device: str) -> None:
    """Predict all images with sam3dnet."""
    from sam3dnet.inference.predictor import predict_folder
    from sam3dnet.settings.prediction import PredictionSettings

    places = {"input_folder": images, "output_folder": output, "model_folder": model}
    settings = PredictionSettings(**places, device=device, no_mirroring=True, num_processes=workers)

    report = predict_folder(settings)
    if report.failed:
        raise SystemExit(f"failed: {report.failed}")


def predict_with_stock(images: Path, output: Path, model: Path, workers: int, device: str) -> None:
    """Predict all images with nnU-Net's predictor, as nnUNetv2_predict does."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    on_card = device == "cuda"
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device(device), perform_everything_on_device=on_card, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    output.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files(
        str(images),
        str(output),
        num_processes_preprocessing=max(1, workers),
        num_processes_segmentation_export=max(1, workers),
    )


def validate_with_ours(images: Path, output: Path, model: Path, workers: int, device: str) -> None:
    """Validate the fold whose validation cases are all images, and copy its label maps to the output."""
    from sam3dnet.preprocessing.folders import activate_folders
    from sam3dnet.settings.training import TrainingSettings
    from sam3dnet.training.run import validate_fold

    folders = activate_folders(images.parent)
    settings = TrainingSettings(DATASET, 0, plans=PLANS, device=device, num_processes=workers, validate_only=True)
    fold = validate_fold(settings, folders)
    shutil.copytree(fold / "validation", output, dirs_exist_ok=True)


def ask_a_session(images: Path, output: Path, model: Path, workers: int, device: str) -> None:
    """Segment the first image in a PromptSession, click into its middle for each of three classes, write the labels."""
    import SimpleITK as sitk

    from sam3dnet import PromptSession, load_model

    session = PromptSession(load_model(model, device=device, mirror=False))
    labels = session.set_image(images / "case_0_0000.nii.gz")
    for name in session.class_names[:3]:
        session.click([size // 2 for size in reversed(labels.shape)], class_name=name)
    output.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(session.label_map()), str(output / "case_0.nii.gz"))


def preprocess(images: Path, output: Path, model: Path, workers: int, device: str) -> None:
    """Preprocess the first image as a training case with a made-up label map, and link the others to it."""
    import SimpleITK as sitk

    from sam3dnet.inference.models import load_model

    loaded = load_model(model)
    cases = output / loaded.configuration.data_identifier
    for folder in (cases, output / "gt_segmentations"):
        folder.mkdir(parents=True, exist_ok=True)
    first, truth = images / "case_0_0000.nii.gz", output / "gt_segmentations" / "case_0.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(first)) > 0, str(truth))
    preprocessor = loaded.configuration.preprocessor_class(verbose=False)
    preprocessor.run_case_save(
        str(cases / "case_0"), [str(first)], str(truth), loaded.plans, loaded.configuration, loaded.dataset_json
    )
    names = sorted(file.name.removesuffix("_0000.nii.gz") for file in images.glob("*.nii.gz"))
    for file in [truth, *cases.glob("case_0*")]:
        for name in names[1:]:
            link = file.with_name(file.name.replace("case_0", name))
            link.unlink(missing_ok=True)
            os.link(file, link)
    contents = {
        f"{PLANS}.json": loaded.plans.plans,
        "dataset.json": loaded.dataset_json,
        "splits_final.json": [{"train": names, "val": names}],
    }
    for file_name, content in contents.items():
        (output / file_name).write_text(json.dumps(content))


PREDICTORS = {
    "sam3dnet": predict_with_ours,
    "nnU-Net": predict_with_stock,
    "validation": validate_with_ours,
    "session": ask_a_session,
}
RUNS = {**PREDICTORS, "preprocess": preprocess}


def measure(method: str, workers: int, places: dict[str, Path], device: str) -> dict[str, Any]:
    """Run a method in a process of its own; give its peak memory and time."""
    from sam3dnet.comparison.process_load import run_measured

    output = places.get(method, places["work"] / f"{method}_{workers}")
    line = [sys.executable, __file__, "--run", method, "--workers", str(workers), "--device", device]
    paths = [str(places["images"]), str(output), str(places["model"])]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    log = places["work"] / f"{method}_{workers}.log"
    load = run_measured([*line, "--paths", *paths], log, environment, interval_seconds=0.2)
    return {
        "method": method,
        "workers": workers,
        "peak_gb": round(load.peak_mib * 2**20 / 1e9, 2),
        "minutes": round(load.wall_seconds / 60, 1),
        "status": load.returncode,
        "output": str(output),
    }


def read_labels(folder: Path) -> Any:
    """Return the label map of the first case, None if it is missing."""
    import SimpleITK as sitk

    file = folder / "case_0.nii.gz"
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))) if file.is_file() else None


def exact_labels(places: dict[str, Path]) -> Any:
    """Return the labels that follow from float32 logits of the whole volume."""
    import numpy as np
    import torch

    from sam3dnet.inference.label_slabs import label_map
    from sam3dnet.inference.models import load_model

    model = load_model(places["model"])
    reader, preprocessor = (
        model.plans.image_reader_writer_class(),
        model.configuration.preprocessor_class(verbose=False),
    )
    image, properties = reader.read_images([str(places["images"] / "case_0_0000.nii.gz")])
    image, _, properties = preprocessor.run_case_npy(
        image, None, properties, model.plans, model.configuration, model.dataset_json
    )
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(np.ascontiguousarray(image))[None])[0]
    return label_map(logits, properties, model.plans, model.configuration, model.labels)


def compare(label_maps: dict[str, Any]) -> dict[str, float]:
    """Return the share of equal voxels of every two label maps."""
    there = {name: labels for name, labels in label_maps.items() if labels is not None}
    return {f"{a} = {b}": float((there[a] == there[b]).mean()) for a, b in combinations(there, 2)}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[600, 512, 512], help="of the volume: z y x")
    parser.add_argument("--classes", type=int, default=20, help="background among them")
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128], help="window of the plan: z y x")
    parser.add_argument("--cases", type=int, default=3, help="the same volume under so many names")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="one run of each method for each number")
    parser.add_argument("--methods", nargs="+", choices=list(PREDICTORS), default=["sam3dnet", "nnU-Net"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--exact", action="store_true", help="compare with float32 logits of the whole volume")
    parser.add_argument("--work", type=Path, default=Path("prediction_memory"), help="folder for everything")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Make the volume and the model, measure each method, print a table and write JSON."""
    arguments = parse_arguments()
    if arguments.run:
        RUNS[arguments.run](*arguments.paths, arguments.workers[0], arguments.device)
        return
    work = arguments.work.resolve()
    model = work / "nnUNet_results" / DATASET / f"nnUNetTrainerSAM3D__{PLANS}__{CONFIGURATION}"
    places = {"work": work, "images": work / "images", "model": model}
    places["preprocess"] = work / "nnUNet_preprocessed" / DATASET
    work.mkdir(parents=True, exist_ok=True)
    write_model(places["model"], arguments.classes, arguments.patch)
    write_images(places["images"], arguments.shape, arguments.cases)
    if "validation" in arguments.methods:
        measure("preprocess", 1, places, arguments.device)
    results = []
    for workers in arguments.workers:
        for method in arguments.methods:
            results.append(measure(method, workers, places, arguments.device))
            print(
                "{method:<10} {workers} workers: {peak_gb:6.2f} GB, {minutes} minutes, status {status}".format(
                    **results[-1]
                )
            )
    label_maps = {result["method"]: read_labels(Path(result["output"])) for result in results}
    equal = compare(label_maps | ({"exact": exact_labels(places)} if arguments.exact else {}))
    print(f"share of equal voxels: {equal}")
    if arguments.json:
        settings = {
            key: value for key, value in vars(arguments).items() if key in ("shape", "classes", "patch", "cases")
        }
        arguments.json.write_text(json.dumps({**settings, "results": results, "equal_voxels": equal}, indent=2) + "\n")


if __name__ == "__main__":
    main()
