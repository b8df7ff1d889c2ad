"""A picture of what was found in a case: the three planes through each object, with outlines in colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sam3dnet.interactive.planes import as_png, draw_planes, surroundings
from sam3dnet.outputs.formats import colour
from sam3dnet.planning.objects import NEIGHBOURHOOD, LabelBoxes, mask_of
from sam3dnet.prompts.sampling import innermost_voxel

MOST_OBJECTS = 12
INCHES_A_ROW = 3.6

Box = tuple[slice, ...]


def preview(
    labels_ZYX: npt.NDArray[Any],
    image_ZYX: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    title: str,
) -> bytes:
    """Draw the three planes through the largest objects, a row each, those of every class first; a PNG.

    Args:
        labels_ZYX: Label map.
        image_ZYX: One channel.
        spacing_mm: (Z, Y, X).
        classes: Labels of each class or region by name.
        title: Of the picture.
    """
    objects = _objects(labels_ZYX, classes)
    shown = objects[:MOST_OBJECTS]
    colours = {name: "#{:02x}{:02x}{:02x}".format(*colour(number)) for number, name in enumerate(classes, 1)}
    rows = max(1, len(shown))
    figure = Figure(figsize=(11, INCHES_A_ROW * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False)
    masks = {name: mask_of(labels_ZYX, values) for name, values in classes.items()}
    outlines = [(mask, colours[name]) for name, mask in masks.items() if mask.any()]
    for axes, (name, box, mask) in zip(panels, shown, strict=False):
        place = innermost_voxel(mask, spacing_mm)
        at = [voxel + part.start for voxel, part in zip(place, box, strict=True)]
        around = surroundings(box, image_ZYX.shape, spacing_mm)
        draw_planes(axes, image_ZYX, outlines, spacing_mm, around, at)
        axes[0].set_ylabel(name)
        axes[0].set_title(f"{name}: {axes[0].get_title()}", fontsize=9)
    if not shown:
        whole = tuple(slice(0, length) for length in image_ZYX.shape)
        draw_planes(panels[0], image_ZYX, [], spacing_mm, whole, [length // 2 for length in image_ZYX.shape])
    handles = [Line2D([], [], color=colours[name], label=name) for name, mask in masks.items() if mask.any()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    figure.suptitle(f"{title}: {_count(len(objects), len(shown))}", fontsize=11)
    return as_png(figure)


def _count(found: int, shown: int) -> str:
    if not found:
        return "nothing was found"
    return f"{found} object{'s' if found > 1 else ''}" + (f", the {shown} largest are shown" if found > shown else "")


def _objects(
    labels_ZYX: npt.NDArray[Any], classes: Mapping[str, Sequence[int]]
) -> list[tuple[str, Box, npt.NDArray[np.bool_]]]:
    """List the objects, the largest of each class first, then the others by size."""
    from scipy import ndimage

    boxes, found = LabelBoxes(labels_ZYX), []
    for name, values in classes.items():
        box = boxes.of(values)
        if box is None:
            continue
        objects, _ = ndimage.label(mask_of(labels_ZYX[box], values), NEIGHBOURHOOD)
        sizes = np.bincount(objects.ravel())[1:]
        parts = ndimage.find_objects(objects)
        for rank, index in enumerate(np.argsort(-sizes, kind="stable")):
            part = parts[index]
            place = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, part, strict=True))
            found.append(((rank > 0, -int(sizes[index])), (name, place, objects[part] == index + 1)))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]
