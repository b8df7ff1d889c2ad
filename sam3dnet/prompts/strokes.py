"""Strokes of a pencil as clicks: how many of its places a network hears."""

import numpy as np

from sam3dnet.prompts.types import Scribble

# Along some axis. On Dataset502 (two models, 12 cases, strokes in three planes) the tumour's Dice after one stroke is
# 0.625 and 0.623 with 8, 0.618 and 0.616 with 5, 0.594 and 0.597 with 2, and 0.632 and 0.613 after one click.
APART_VOXELS = 8
MOST_PLACES = 16


def heard(scribble: Scribble) -> Scribble:
    """Give the places of a scribble that say all of it: its middle, then always the one farthest from those before.

    Args:
        scribble: In voxels.
    """
    places = np.asarray(scribble.at)
    chosen = [int(_away(places, places.mean(0)).argmin())]
    nearest = _away(places, places[chosen[0]])
    while len(chosen) < MOST_PLACES and nearest.max() >= APART_VOXELS:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _away(places, places[chosen[-1]]))
    return Scribble(tuple(scribble.at[one] for one in chosen), scribble.positive)


def _away(places: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(places - place).max(1))
