"""The spacing of full resolution: nnU-Net's, or what the user asks for in its place."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam3dnet.planning.rules import NNUNET, Decision

OPTION = "--overwrite-target-spacing"
ASKED_SPACING = "target_spacing_mm"  # in a plan's block "sam3d", where it was asked for
PATH = "configurations.3d_fullres.spacing"  # among changes by hand

logger = logging.getLogger(__name__)


def spacing_decision(
    spacing: np.ndarray, fingerprint: Mapping[str, Any], asked: Sequence[float] | None = None
) -> Decision:
    """Say how the target spacing came about, (Z, Y, X) in mm as the reader gives images."""
    median = np.median(np.asarray(fingerprint["spacings"], dtype=float), 0)
    value = [float(mm) for mm in spacing]
    if asked is not None:
        reason = f"asked for with {OPTION}, for this planning alone; the median over the cases is {_by(median)}"
        return Decision("spacing", value, reason, "user")
    reason = "median over the cases"
    if not np.allclose(median, spacing):
        reason += "; the anisotropic axis at the 10th percentile"
    return Decision("spacing", value, reason, NNUNET)


def without_the_spacing(
    changes: Mapping[str, Any], before: Mapping[str, Any], plans: Mapping[str, Any], file_name: str
) -> dict[str, Any]:
    """Let a spacing that is asked for win over one that was written into the plan, and tell where one changes back.

    Args:
        changes: By hand in the plan before, by path.
        before: The plan before.
        plans: The new plan.
        file_name: Of the plan.

    Returns:
        The changes that are kept.
    """
    asked_before, asked = (of.get("sam3d", {}).get(ASKED_SPACING) for of in (before, plans))
    if asked is not None and PATH in changes:
        logger.warning("Warning: %s of %s, changed by hand, gives way to %s", PATH, file_name, OPTION)
        return {path: value for path, value in changes.items() if path != PATH}
    if asked is None and asked_before is not None and PATH not in changes:
        logger.warning(
            "Warning: the spacing of %s is no longer %s mm, which %s asked for: it is planned anew, and the cases are "
            "made anew; give the option again to keep it",
            *(file_name, _by(asked_before), OPTION),
        )
    return dict(changes)


def _by(spacing_mm: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing_mm)
