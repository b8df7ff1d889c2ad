"""A small plan, as nnU-Net reads it."""

from typing import Any

INTENSITIES = {"mean": 60.0, "median": 50.0, "std": 40.0, "percentile_00_5": -20.0, "percentile_99_5": 140.0}
INTENSITIES |= {"min": -1000.0, "max": 150.0}


def make_plans(dataset_name: str, schemes: list[str], plans_name: str = "SAM3DPlans") -> dict[str, Any]:
    """A plan with resampling in every axis and swapped axes; keys as nnU-Net reads them."""
    resampling = {
        f"resampling_fn_{what}{suffix}": value
        for what in ("data", "seg", "probabilities")
        for suffix, value in (
            ("", "resample_torch_fornnunet"),
            ("_kwargs", {"is_seg": what == "seg", "force_separate_z": None, "memefficient_seg_resampling": False}),
        )
    }
    configuration = {
        "data_identifier": f"{plans_name}_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [4, 6, 8],
        "spacing": [2.4, 0.9, 0.8],
        "normalization_schemes": schemes,
        "use_mask_for_norm": [False] * len(schemes),
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
        **resampling,
    }
    return {
        "dataset_name": dataset_name,
        "plans_name": plans_name,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 2, 1],
        "transpose_backward": [0, 2, 1],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): INTENSITIES for i in range(len(schemes))},
        "configurations": {"3d_fullres": configuration},
    }
