"""Made-up dataset fingerprints: the situations that the planning rules are tested on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sam3dnet.planning.objects import measure_classes


@dataclass(frozen=True)
class Situation:
    """A dataset in a few numbers: spacing in mm and shape, both (Z, Y, X), and objects by class in mm."""

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    objects_mm: dict[str, tuple[float, float, float]]
    channels: tuple[str, ...] = ("CT",)
    cases: int = 40

    def dataset_json(self) -> dict[str, Any]:
        """Describe the dataset as its dataset.json would."""
        labels = {"background": 0, **{name: value for value, name in enumerate(self.objects_mm, start=1)}}
        return {
            "channel_names": {str(i): name for i, name in enumerate(self.channels)},
            "labels": labels,
            "numTraining": self.cases,
            "file_ending": ".nii.gz",
        }

    def fingerprint(self) -> dict[str, Any]:
        """Make the fingerprint: all cases alike, foreground between -50 and 250, its surroundings from -150 to 100."""
        quantiles = np.linspace(-60.0, 260.0, 201).tolist()
        intensities = {"mean": 100.0, "std": 80.0, "median": 100.0, "min": -60.0, "max": 260.0}
        intensities |= {"percentile_00_5": -50.0, "percentile_99_5": 250.0}
        around = {"mean": -20.0, "std": 60.0, "percentile_05_0": -150.0, "percentile_95_0": 100.0}
        channels = [str(i) for i in range(len(self.channels))]
        classes = {
            name: {
                "largest_extent_mm": [list(extent)] * self.cases,
                "volume_mm3": [float(np.prod(extent))] * self.cases,
                "voxels": [round(float(np.prod(np.divide(extent, self.spacing_mm))))] * self.cases,
                "largest_voxels": [round(float(np.prod(np.divide(extent, self.spacing_mm))))] * self.cases,
                "cases": [f"case_{index}" for index in range(self.cases)],
                "centre_mm": [[0.0, 0.0, 0.0]] * self.cases,
                "around": {channel: dict(around) for channel in channels},
            }
            for name, extent in self.objects_mm.items()
        }
        return {
            "spacings": [list(self.spacing_mm)] * self.cases,
            "shapes_after_crop": [list(self.shape)] * self.cases,
            "foreground_intensity_properties_per_channel": {channel: dict(intensities) for channel in channels},
            "median_relative_size_after_cropping": 1.0,
            "sam3d": {"classes": classes, "foreground_quantiles": {channel: quantiles for channel in channels}},
        }


SITUATIONS = {
    "isotropic MR": Situation((1.0, 1.0, 1.0), (160, 190, 170), {"hippocampus": (25.0, 40.0, 30.0)}, ("T1",)),
    "thick-slice CT": Situation(
        (5.0, 0.8, 0.8), (60, 512, 512), {"liver": (160.0, 200.0, 220.0), "tumour": (30.0, 25.0, 28.0)}
    ),
    "huge CT": Situation((0.8, 0.7, 0.7), (800, 512, 512), {"aorta": (400.0, 90.0, 80.0), "node": (9.0, 8.0, 8.0)}),
    "tiny crops": Situation((0.9, 0.7, 1.1), (11, 14, 9), {"nucleus": (6.0, 5.0, 5.0)}, ("T1",), 300),
    "two slices": Situation((8.0, 1.4, 1.4), (2, 256, 220), {"ventricle": (16.0, 60.0, 55.0)}, ("MRI",)),
    "one slice": Situation((1.0, 0.5, 0.5), (1, 96, 80), {"cell": (1.0, 10.0, 12.0)}, ("zscore",)),
    "four modalities": Situation(
        (1.0, 1.0, 1.0),
        (138, 170, 140),
        {"oedema": (70.0, 90.0, 65.0), "core": (40.0, 45.0, 38.0)},
        ("A", "B", "C", "D"),
    ),
}


def measure(images_CZYX, mask_ZYX, spacing_mm):
    """Measure the one class that a mask marks."""
    return measure_classes(images_CZYX, mask_ZYX.astype(np.uint8), {"it": (1,)}, spacing_mm)["it"]
