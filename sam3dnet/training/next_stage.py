"""What a cascade's stages leave for each other in training: label maps of the first on the grid of the second.

They lie where nnU-Net's trainer looks for them, in `predicted_next_stage` of the first stage's model, in its format.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from sam3dnet.inference.label_slabs import start_label_map
from sam3dnet.inference.model_folders import trained_folds
from sam3dnet.inference.models import LoadedModel
from sam3dnet.inference.windows import in_parts
from sam3dnet.training.previous_stage import LabelMaps

FOLDER = "predicted_next_stage"
FEW_LABELS = 255  # nnU-Net's: up to so many are stored in a byte


@dataclass(frozen=True)
class NextStage:
    """A configuration that trains on label maps of another one.

    Attributes:
        configuration: nnU-Net's ConfigurationManager.
        cases_folder: Its preprocessed cases, which need not be there yet.
        output: Where the label maps go.
        only_missing: Whether maps that are there stay: those of fold "all" are by a model that has seen the case, those
            of other folds are not, and only they are like what the next stage gets of new images.
    """

    configuration: Any
    cases_folder: Path
    output: Path
    only_missing: bool = False

    def wants(self, name: str) -> bool:
        """Tell whether the label map of a case is to be written; one on another grid is as good as missing."""
        return not (self.only_missing and LabelMaps(self.output, self.cases_folder).has(name))

    def write(self, name: str, logits_KZYX: Tensor, properties: Mapping[str, Any], model: LoadedModel) -> None:
        """Resample the logits of a case as nnU-Net does, and write the label map, whole or not at all.

        Args:
            name: Of the case.
            logits_KZYX: On the first stage's grid.
            properties: What nnU-Net's preprocessor says about the case.
            model: The first stage.
        """
        labels_ZYX = resampled_labels(logits_KZYX, self.shape_of(properties, model.plans), model)
        kind = np.uint8 if len(model.labels.foreground_labels) < FEW_LABELS else np.uint16
        self.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=self.output) as unfinished:
            self._save(labels_ZYX.astype(kind), Path(unfinished) / name, model)
            for file in Path(unfinished).iterdir():
                os.replace(file, self.output / file.name)

    def shape_of(self, properties: Mapping[str, Any], plans: Any) -> tuple[int, ...]:
        """Give the shape (Z, Y, X) that a case has when it is preprocessed for this stage."""
        spacing_mm = [properties["spacing"][axis] for axis in plans.transpose_forward]
        cropped = properties["shape_after_cropping_and_before_resampling"]
        return tuple(int(n) for n in compute_new_shape(cropped, spacing_mm, self.configuration.spacing))

    def _save(self, labels_ZYX: np.ndarray, file: Path, model: LoadedModel) -> None:
        there = self.cases_folder.is_dir() and any(self.cases_folder.glob("*.pkl"))
        dataset = infer_dataset_class(str(self.cases_folder)) if there else nnUNetDatasetBlosc2
        if dataset is not nnUNetDatasetBlosc2:
            dataset.save_seg(labels_ZYX, str(file))
            return
        patch = tuple(model.configuration.patch_size)
        blocks, chunks = comp_blosc2_params((1, *labels_ZYX.shape), patch, labels_ZYX.itemsize)
        dataset.save_seg(labels_ZYX, str(file), chunks_seg=list(chunks[1:]), blocks_seg=list(blocks[1:]))


def next_stages(trainer: nnUNetTrainer) -> list[NextStage]:
    """List the stages that train on label maps of a trainer's configuration; fold "all" leaves those of others."""
    plans, base = trainer.plans_manager, Path(trainer.output_folder_base)
    found = []
    for name in trainer.configuration_manager.next_stage_names or ():
        configuration = plans.get_configuration(name)
        cases = Path(trainer.preprocessed_dataset_folder_base) / configuration.data_identifier
        found.append(NextStage(configuration, cases, base / FOLDER / name, only_missing=_leaves_others(trainer)))
    return found


def _leaves_others(trainer: nnUNetTrainer) -> bool:
    folds = trained_folds(Path(trainer.output_folder_base))
    return trainer.fold == "all" and any(fold != "all" for fold in folds)


def resampled_labels(logits_KZYX: Tensor, shape_ZYX: tuple[int, ...], model: LoadedModel) -> np.ndarray:
    """Resample logits to another grid of the preprocessed image, slab by slab, and decide on labels.

    nnU-Net takes both grids for equally spaced here, which decides whether thick slices are resampled apart.

    Args:
        logits_KZYX: Of the first stage, which is the model.
        shape_ZYX: Of the other grid.
        model: Says how to resample and to decide.
    """
    plans = model.plans
    as_image = {  # as if this grid were that of an image, with the axes that its file would have
        "spacing": [model.configuration.spacing[axis] for axis in plans.transpose_backward],
        "shape_before_cropping": shape_ZYX,
        "shape_after_cropping_and_before_resampling": shape_ZYX,
        "bbox_used_for_cropping": [[0, size] for size in shape_ZYX],
    }
    growing = start_label_map(logits_KZYX.shape[1:], as_image, plans, model.configuration, model.labels)
    for few in in_parts(logits_KZYX.shape[1], logits_KZYX[:, 0].numel()):
        growing.add(logits_KZYX[:, few].float())
    return growing.finish().transpose(plans.transpose_forward)
