"""A model folder as nnU-Net leaves it, with the smallest network, and images to predict with it."""

import json

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

SHAPE_ZYX = (5, 9, 7)
SPACING_XYZ = (0.7, 1.1, 3.0)
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 700], "core": [700]}


class TinyNetwork(nn.Module):
    """The smallest network with nnU-Net's signature."""

    def __init__(self, input_channels, num_classes, deep_supervision=False, width=4):
        super().__init__()
        self.first = nn.Conv3d(input_channels, width, 3, padding=1)
        self.last = nn.Conv3d(width, num_classes, 1)

    def forward(self, x_BCZYX):
        return self.last(torch.sin(3 * self.first(x_BCZYX)))


def make_plans(resampling, num_channels):
    function = {"resample_torch_fornnunet": {"force_separate_z": None}, "resample_data_or_seg_to_shape": {"order": 1}}
    intensities = {"mean": 0.0, "std": 1.0, "percentile_00_5": -3.0, "percentile_99_5": 3.0}
    configuration = {
        "data_identifier": "SAM3DPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [4, 8, 6],
        "spacing": [0.8, 2.5, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * num_channels,
        "use_mask_for_norm": [False] * num_channels,
        "architecture": {
            "network_class_name": f"{__name__}.TinyNetwork",
            "arch_kwargs": {"width": 5},
            "_kw_requires_import": [],
        },
    }
    for role in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{role}"] = resampling
        configuration[f"resampling_fn_{role}_kwargs"] = {"is_seg": role == "seg", **function[resampling]}
    return {
        "dataset_name": "Dataset901_Tiny",
        "plans_name": "SAM3DPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 0, 1],  # not its own inverse
        "transpose_backward": [1, 2, 0],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(num_channels)},
        "configurations": {"3d_fullres": configuration},
    }


def make_dataset_json(num_channels, labels, ending=".nii.gz"):
    content = {"channel_names": {str(c): "MRI" for c in range(num_channels)}, "labels": labels, "file_ending": ending}
    return content | ({"regions_class_order": [1, 700], "sam3d_accept": ["labels"]} if labels is REGIONS else {})


def make_weights(seed, num_channels=1, num_heads=3):
    torch.manual_seed(seed)
    network = TinyNetwork(num_channels, num_heads, width=5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
        network.last.weight.mul_(10)  # logits as large as a trained network's, which half precision rounds little
        network.last.bias.zero_()
    return network.state_dict()


def make_checkpoint(weights, **extra):
    return {
        "network_weights": weights,
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainerSAM3D",
        "inference_allowed_mirroring_axes": (0, 2),
        **extra,
    }


def make_model(results, *, folds=(0,), num_channels=1, labels=LABELS, resampling="resample_torch_fornnunet", **options):
    folder = results / options.get("dataset", "Dataset901_Tiny") / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True)
        seed = 9 if fold == "all" else fold
        checkpoint = make_checkpoint(make_weights(seed, num_channels, 2 if labels is REGIONS else len(labels)))
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(make_plans(resampling, num_channels)))
    dataset_json = make_dataset_json(num_channels, labels, options.get("ending", ".nii.gz"))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def write_image(path, seed=0, shape=SHAPE_ZYX, spacing=SPACING_XYZ, direction=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values[0] = 0  # nnU-Net crops empty borders away
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin((-11.3, 20.7, 101.9))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def labels_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
