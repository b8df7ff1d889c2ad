"""The work that large_ct.py measures, a piece of it in a process of its own: PART METHOD ROOT.

Writes to ROOT/seconds.json what the work took, without imports.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATASET, CASE, CONFIGURATION, ENDING = "Dataset999_LargeCT", "large_000", "3d_fullres", ".nii.gz"
STOCK, OURS = "nnU-Net", "sam3dnet"
PLANS = {STOCK: "nnUNetPlans", OURS: "SAM3DPlans"}
PREPROCESSING, EXPORT = "preprocessing", "export"
PLANES_AT_A_TIME = 64  # of logits that come together: the step between windows of 128 planes
SECONDS_FILE = "seconds.json"

Work = Callable[[], None]


@dataclass(frozen=True)
class Places:
    """Where a dataset of one case lies, below a folder that holds nnUNet_raw and nnUNet_preprocessed."""

    root: Path

    @property
    def raw(self) -> Path:
        """The raw dataset."""
        return self.root / "nnUNet_raw" / DATASET

    @property
    def image(self) -> Path:
        """The image's only channel."""
        return self.raw / "imagesTr" / f"{CASE}_0000{ENDING}"

    @property
    def label(self) -> Path:
        """The label map."""
        return self.raw / "labelsTr" / f"{CASE}{ENDING}"

    @property
    def logits(self) -> Path:
        """Logits on the plan's grid, (K, Z, Y, X), in half precision."""
        return self.root / "logits.npy"

    def plans(self, method: str) -> Path:
        """The plan of a method."""
        return self.root / "nnUNet_preprocessed" / DATASET / f"{PLANS[method]}.json"

    def preprocessed(self, method: str) -> Path:
        """The folder of the preprocessed case."""
        return self.plans(method).parent / f"{PLANS[method]}_{CONFIGURATION}"

    def exported(self, method: str) -> Path:
        """The label map made from the logits."""
        return self.root / f"exported_{PLANS[method]}" / f"{CASE}{ENDING}"


@dataclass(frozen=True)
class Plan:
    """nnU-Net's view of a plan."""

    plans: Any
    configuration: Any
    dataset_json: dict[str, Any]

    @classmethod
    def open(cls, places: Places, method: str) -> "Plan":
        """Read a plan, and import all that it names."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plans = PlansManager(json.loads(places.plans(method).read_text()))
        configuration = plans.get_configuration(CONFIGURATION)
        _ = plans.image_reader_writer_class, configuration.preprocessor_class  # found by a search among modules
        _ = configuration.resampling_fn_data, configuration.resampling_fn_seg, configuration.resampling_fn_probabilities
        return cls(plans, configuration, json.loads((places.raw / "dataset.json").read_text()))


def preprocessed_case(places: Places, method: str) -> tuple[Any, Any, dict[str, Any]]:
    """Read image (C, Z, Y, X), labels (1, Z, Y, X) and properties of the preprocessed case."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    image, labels, _, properties = nnUNetDatasetBlosc2(str(places.preprocessed(method)), [CASE]).load_case(CASE)
    return image, labels, properties


def preprocess_with_stock(places: Places) -> Work:
    """Preprocess for training as a worker of nnUNetv2_preprocess does."""
    plan = Plan.open(places, STOCK)
    folder = places.preprocessed(STOCK)
    folder.mkdir(parents=True, exist_ok=True)
    preprocessor = plan.configuration.preprocessor_class(verbose=False)

    def work() -> None:
        preprocessor.run_case_save(
            str(folder / CASE),
            [str(places.image)],
            str(places.label),
            plan.plans,
            plan.configuration,
            plan.dataset_json,
        )

    return work


def preprocess_with_ours(places: Places) -> Work:
    """Preprocess for training as sam3d_plan_and_preprocess does."""
    from sam3dnet.preprocessing.folders import activate_folders
    from sam3dnet.preprocessing.pipeline import preprocess_dataset

    folders = activate_folders(places.root)
    Plan.open(places, OURS)
    return lambda: preprocess_dataset(DATASET, folders, PLANS[OURS], num_processes=0, progress=False)


def export_with_stock(places: Places) -> Work:
    """Export as a worker of nnUNetv2_predict does."""
    import numpy as np
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    plan = Plan.open(places, STOCK)
    properties = preprocessed_case(places, STOCK)[2]
    output = places.exported(STOCK)
    output.parent.mkdir(exist_ok=True)
    name = str(output).removesuffix(ENDING)

    def work() -> None:
        logits = np.load(places.logits)
        export_prediction_from_logits(logits, properties, plan.configuration, plan.plans, plan.dataset_json, name)

    return work


def export_with_ours(places: Places) -> Work:
    """Export as sam3d_predict does: logits come in slabs, in float32."""
    import numpy as np
    import torch

    from sam3dnet.inference.label_slabs import start_label_map
    from sam3dnet.inference.writing import write_label_map
    from sam3dnet.preprocessing.reading import reader_named

    plan = Plan.open(places, OURS)
    properties = preprocessed_case(places, OURS)[2]
    labels = plan.plans.get_label_manager(plan.dataset_json)
    reader = reader_named(plan.plans.plans["image_reader_writer"], plan.dataset_json)
    output = places.exported(OURS)
    output.parent.mkdir(exist_ok=True)
    shape = np.load(places.logits, mmap_mode="r").shape[1:]

    def work() -> None:
        label_map = start_label_map(shape, properties, plan.plans, plan.configuration, labels)
        for first in range(0, shape[0], PLANES_AT_A_TIME):
            logits = np.load(places.logits, mmap_mode="r")[:, first : first + PLANES_AT_A_TIME].astype(np.float32)
            label_map.add(torch.from_numpy(logits))
        write_label_map(label_map.finish(), output, places.image, properties, reader)

    return work


PREPARE: dict[tuple[str, str], Callable[[Places], Work]] = {
    (PREPROCESSING, STOCK): preprocess_with_stock,
    (PREPROCESSING, OURS): preprocess_with_ours,
    (EXPORT, STOCK): export_with_stock,
    (EXPORT, OURS): export_with_ours,
}


def main() -> None:
    """Prepare, then do one piece of work, and write down its seconds."""
    part, method, root = sys.argv[1:]
    from sam3dnet.preprocessing.folders import activate_folders

    places = Places(Path(root))
    activate_folders(places.root)
    work = PREPARE[part, method](places)
    start = time.perf_counter()
    work()
    (places.root / SECONDS_FILE).write_text(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
