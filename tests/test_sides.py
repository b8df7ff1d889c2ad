"""Left and right: classes that are each other's mirror image are found, and swapped with every mirroring."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from fingerprints import measure

from sam3dnet.inference.windows import predict_mirrored
from sam3dnet.planning.plan import format_value, value_in_words
from sam3dnet.planning.rules import Decision
from sam3dnet.planning.sides import (
    MirroredSides,
    find_sides,
    mirrored_overlap,
    mirrored_sides,
    named_as_sides,
    swapped_channels,
)
from sam3dnet.training.augmentation import MirrorWithSides, with_sides

SHAPE = (10, 14, 24)
SPACING_MM = (3.0, 1.0, 0.7)
X = 2


def wedge(at: int, flipped: bool = False) -> np.ndarray:
    """An organ without a symmetry of its own, bent as an L; (Z, Y, X)."""
    mask = np.zeros(SHAPE, bool)
    mask[2:8, 1:11, at : at + 2] = True
    mask[2:8, 1:3, at : at + 9] = True
    return mask[:, :, ::-1] if flipped else mask


def crescent() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    ring = ((y - 7) ** 2 + (x - 6) ** 2 <= 30) & ((y - 7) ** 2 + (x - 9) ** 2 > 22)
    return np.broadcast_to(ring, SHAPE).copy()


def disc() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    return np.broadcast_to((y - 7) ** 2 + (x - 16) ** 2 <= 12, SHAPE).copy()


def cases_of(**masks: np.ndarray) -> tuple[dict[str, Any], Any]:
    """Six cases, each shifted a little, as the fingerprint describes them, and what reads their masks."""
    shifted = {
        f"case_{n}": {name: np.roll(mask, (n % 2, n % 3), (0, 1)) for name, mask in masks.items()} for n in range(6)
    }
    image = np.zeros((1, *SHAPE), np.float32)
    classes = {}
    for name in masks:
        found = {case: measure(image, of_case[name], SPACING_MM) for case, of_case in shifted.items()}
        measured = {case: measures for case, measures in found.items() if measures is not None}
        classes[name] = {
            "cases": list(measured),
            "centre_mm": [measures.centre_mm for measures in measured.values()],
            "volume_mm3": [measures.volume_mm3 for measures in measured.values()],
        }
    return classes, shifted.__getitem__


def test_the_centre_is_that_of_the_voxels():
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 6, 10:12] = True
    measures = measure(np.zeros((1, *SHAPE), np.float32), mask, SPACING_MM)
    assert measures is not None
    np.testing.assert_allclose(measures.centre_mm, np.multiply((3, 6, 10.5), SPACING_MM))


@pytest.mark.parametrize("names", [("kidney_left", "kidney_right"), ("one", "other")])
def test_mirror_images_are_found_with_names_and_without(names):
    classes, read = cases_of(**{names[0]: wedge(2), names[1]: wedge(2, flipped=True)})
    found = find_sides(classes, X, read)
    assert (found.pairs, found.unlike) == ((names,), ())


def test_organs_side_by_side_that_are_no_mirror_images_are_none():
    classes, read = cases_of(RV=crescent(), LV=disc())
    assert find_sides(classes, X, read) == find_sides({}, X, read)
    named, read = cases_of(left=wedge(2), right=wedge(14))  # of equal size, and one is the other moved, not mirrored
    assert find_sides(named, X, read).unlike == (("left", "right"),)


def test_classes_that_change_sides_or_lie_otherwise_are_none():
    classes, read = cases_of(front=np.roll(wedge(2), 3, 1), back=wedge(2))
    assert not find_sides(classes, X, read).pairs
    classes, _ = cases_of(one=wedge(2), other=wedge(2, flipped=True))
    for name, centre in (("one", 20.0), ("other", 2.0)):  # in two of the cases they have changed places
        classes[name]["centre_mm"][:2] = [[15.0, 6.0, centre]] * 2
    assert not find_sides(classes, X, lambda case: {}).pairs


@pytest.mark.parametrize(
    ("one", "other", "are_sides"),
    [
        ("kidney_left", "kidney_right", True),
        ("Parotid L", "Parotid R", True),
        ("LT-lung", "RT-lung", True),
        ("Niere links", "Niere rechts", True),
        ("lung", "liver", False),
        ("left", "left upper", False),
        ("upper left", "lower right", False),
    ],
)
def test_names_that_say_sides(one, other, are_sides):
    assert named_as_sides(one, other) == named_as_sides(other, one) == are_sides


def test_overlap_with_the_mirror_image():
    one = wedge(2)
    assert mirrored_overlap(one, np.roll(one[:, :, ::-1], (1, -2), (0, 2)), X) == 1
    assert mirrored_overlap(one, one, X) < 0.6
    assert mirrored_overlap(one, np.zeros_like(one), X) == 0


def plans(pairs: Any, mirror_axes: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"sam3d": {"mirror_axes": list(mirror_axes), "sides": {"axis": 2, "pairs": pairs}}}


def test_values_and_channels_that_a_plan_swaps():
    dataset_json = {"labels": {"background": 0, "right": 3, "middle": 2, "left": 1}}
    found = mirrored_sides(plans([["left", "right"]]), dataset_json)
    assert found == MirroredSides(2, {1: 3, 3: 1}, (0, 3, 2, 1))
    assert mirrored_sides(plans([["left", "right"]], (0,)), dataset_json) is None
    assert mirrored_sides({}, dataset_json) is None


def test_regions_follow_or_nothing_is_swapped():
    labels: Mapping[str, Any] = {"background": 0, "both": [1, 2], "left": 1, "right": 2}
    assert swapped_channels({1: 2, 2: 1}, {"labels": labels}) == (0, 2, 1)
    assert swapped_channels({1: 2, 2: 1}, {"labels": {"background": 0, "more": [1, 3], "left": 1, "right": 2}}) is None


def test_training_swaps_labels_where_it_mirrors_from_left_to_right():
    stock = MirrorTransform((0, 2))
    transform = with_sides(ComposeTransforms([stock]), MirroredSides(2, {1: 2, 2: 1}, (0, 2, 1))).transforms[0]
    assert isinstance(transform, MirrorWithSides)
    segmentation = torch.randint(-1, 4, (1, 3, 4, 5), generator=torch.manual_seed(0))
    for axes in ([], [0], [2], [0, 2]):
        expected = stock._apply_to_segmentation(segmentation, axes=axes).clone()
        if 2 in axes:
            one, other = expected == 1, expected == 2
            expected[one], expected[other] = 2, 1
        assert torch.equal(transform._apply_to_segmentation(segmentation, axes=axes), expected)


def test_prediction_swaps_the_channels_back():
    """A network that answers by the place alone: 1 on the left half of what it sees, 2 on the right half."""

    def network(windows_BCZYX: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(windows_BCZYX), 3, *windows_BCZYX.shape[2:])
        half = windows_BCZYX.shape[-1] // 2
        logits[:, 1, ..., :half], logits[:, 2, ..., half:] = 1, 1
        return logits

    windows = torch.zeros(1, 1, 2, 2, 6)
    sides = MirroredSides(2, {1: 2, 2: 1}, (0, 2, 1))
    assert torch.equal(predict_mirrored(network, windows, (2,), sides), network(windows))
    assert torch.equal(predict_mirrored(network, windows, (0, 2), sides), network(windows))
    assert not torch.equal(predict_mirrored(network, windows, (2,)), network(windows))


def test_the_table_names_the_sides_as_they_are_called() -> None:
    assert format_value(["left kidney and right kidney", "a and b"]) == "left kidney and right kidney, a and b"
    assert format_value([[1, 2, 2], [2, 2, 2]]) == "1x2x2, 2x2x2"
    assert format_value([]) == "none"  # no axis is mirrored
    assert value_in_words(Decision("mirror_axes", [0, 1, 2], "", "")) == "0, 1, 2"
    assert value_in_words(Decision("mirror_axes", [], "", "")) == "none"
