"""A table of what series a folder with DICOM files holds, and why some are no volumes."""

from collections import Counter
from pathlib import Path

from sam3dnet.dicom.files import Found, as_folder, read_headers
from sam3dnet.dicom.stacks import Stack, find_stacks

HEADER = ("modality", "columns x rows x slices", "voxel in mm (x, y, z)", "description", "remark", "SeriesInstanceUID")


def list_series(source: Path) -> list[str]:
    """Give the lines of the table.

    Raises:
        DatasetError: If there is nothing of that name, or pydicom is not installed.
    """
    with as_folder(source) as folder:
        found = read_headers(folder)
        stacks = find_stacks(found.instances)
        rows = [HEADER, *(_row(stack) for stack in stacks)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*(lines if stacks else ["no image with a place in space"]), *_others(found, stacks)]


def _row(stack: Stack) -> tuple[str, ...]:
    rows, columns = stack.frames[0].shape
    size = f"{columns} x {rows} x {len(stack.frames)}"
    voxel = "-" if stack.grid is None else " x ".join(f"{mm:.4g}" for mm in stack.grid.spacing_mm)
    return stack.modality or "-", size, voxel, stack.description or "-", _remark(stack), stack.series


def _remark(stack: Stack) -> str:
    if stack.fault is not None:
        return f"no volume: {stack.fault}"
    remarks = ["a localizer or the like, taken only if it is named"] if stack.is_no_choice else []
    if stack.grid is not None and stack.grid.is_tilted:
        remarks.append("tilted gantry, slices are shifted above each other")
    if not stack.frame_of_reference:
        remarks.append("no frame of reference")
    if stack.modality == "PT":
        remarks.append(f"unit {stack.instance.of('Units', 'not said')}")
    return "; ".join(remarks) or "-"


def _others(found: Found, stacks: list[Stack]) -> list[str]:
    listed = {id(instance) for stack in stacks for instance in stack.files}
    kinds = Counter(
        f"{instance.of('Modality', 'no modality')} ({getattr(instance.header.SOPClassUID, 'name', 'unknown')})"
        for instance in found.instances
        if id(instance) not in listed
    )
    lines = [f"no images with a place: {count} {kind}" for kind, count in sorted(kinds.items())]
    lines += [f"damaged: {file.name}: {why}" for file, why in found.damaged.items()]
    return lines + ([f"{found.others} other files"] if found.others else [])
