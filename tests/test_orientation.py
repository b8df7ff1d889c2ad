"""Left and right, found in the headers."""

import numpy as np
import pytest
from phantoms import write_volume

from sam3dnet.planning.orientation import left_right_axis

SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)  # left and right along the file's third axis, the array's first
CORONAL = (-1, 0, 0, 0, 0, 1, 0, 1, 0)
SWAPPED = (0, 1, 0, 1, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("direction", "axis"), [((1, 0, 0, 0, 1, 0, 0, 0, 1), 2), (SAGITTAL, 0), (CORONAL, 2), (SWAPPED, 1)]
)
def test_the_axis_is_that_of_the_files(direction, axis, tmp_path):
    write_volume(np.zeros((5, 6, 7), np.int16), tmp_path / "image.nii.gz", direction=direction)
    assert left_right_axis([tmp_path / "image.nii.gz"]) == axis


def test_most_images_decide_and_unreadable_ones_do_not_count(tmp_path):
    for name, direction in {"a": SAGITTAL, "b": SWAPPED, "c": SWAPPED}.items():
        write_volume(np.zeros((5, 6, 7), np.int16), tmp_path / f"{name}.nii.gz", direction=direction)
    (tmp_path / "d.nii.gz").write_bytes(b"nothing")
    assert left_right_axis(sorted(tmp_path.iterdir())) == 1
    assert left_right_axis([tmp_path / "d.nii.gz"]) is None
