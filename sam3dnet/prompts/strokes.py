"""Strokes of a pencil as clicks: how many of its places a network hears."""

import numpy as np

from sam3dnet.prompts.types import Scribble

APART_VOXELS = 2  # along some axis: closer places say nothing new
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
