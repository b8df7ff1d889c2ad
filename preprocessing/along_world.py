"""Grids and voxels turned along the world's axes, for comparing files that a reader turns before it compares them."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3dnet.preprocessing.checks_geometry import Grid
from sam3dnet.preprocessing.file_formats import grid_of_affine
from sam3dnet.preprocessing.world import RAS_FROM_LPS, affine_of_itk


def grid_along_world(grid: Grid) -> Grid:
    """Swap and mirror the axes of a grid so that they run most nearly to the right, to the front and upwards."""
    from nibabel.orientations import inv_ornt_aff

    axes = _axes(grid)
    shape_xyz, spacing_xyz = grid.shape[::-1], grid.spacing_mm[::-1]
    source = [int(axis) for axis in np.argsort(axes[:, 0])]
    turned = grid_of_affine(
        [shape_xyz[axis] for axis in source],
        [spacing_xyz[axis] for axis in source],
        _ras(grid) @ inv_ornt_aff(axes, shape_xyz),
    )
    return replace(turned, is_spaced=grid.is_spaced)


def voxels_along_world(voxels_ZYX: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """Swap and mirror the axes of an array as `grid_along_world` does those of its grid."""
    from nibabel.orientations import apply_orientation

    turned: npt.NDArray[Any] = apply_orientation(voxels_ZYX.transpose(), _axes(grid)).transpose()
    return turned


def _axes(grid: Grid) -> Any:
    """Give for each axis (x, y, z) of the file the world's axis, and 1 or -1 where it runs the other way."""
    from nibabel.orientations import io_orientation

    return io_orientation(_ras(grid))


def _ras(grid: Grid) -> Any:
    return RAS_FROM_LPS @ affine_of_itk(grid.spacing_mm[::-1], grid.origin_mm, grid.direction)
