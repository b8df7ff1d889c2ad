"""Of a label map only what prompts name; each rule by objects that stand side by side."""

import numpy as np
import pytest

from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.objects import only_named_objects, without_unnamed_objects
from sam3dnet.prompts.types import Box, ClassPrompts, Point

SHAPE = (5, 8, 11)
ORGAN, LESION = 1, 2  # channels and labels of classes that exclude each other
CLASSES = {number: PromptClass(number, number, (number,)) for number in (ORGAN, LESION)}
WHOLE, CORE, ACTIVE = 0, 1, 2  # channels of regions, each within the one before
REGIONS = {
    WHOLE: PromptClass(WHOLE, 10, (10, 20, 30)),
    CORE: PromptClass(CORE, 20, (20, 30)),
    ACTIVE: PromptClass(ACTIVE, 30, (30,)),
}
LARGE, DIAGONAL, FLAT = np.s_[1:4, 1:5, 1:4], np.s_[4, 5, 4], np.s_[2, 1:3, 6:10]  # of lesions; the first two touch
LIVER = np.s_[0:5, 5:8, 6:9]


def make_labels():
    labels = np.zeros(SHAPE, np.uint8)
    labels[LARGE] = labels[DIAGONAL] = labels[FLAT] = LESION
    labels[LIVER] = ORGAN
    return labels


def only(labels, *places):
    """The labels of some places, background elsewhere."""
    kept = np.zeros_like(labels)
    for place in places:
        kept[place] = labels[place]
    return kept


def click(voxel, positive=True):
    return Point(voxel, positive)


def said(*points, boxes=(), mask=None):
    return ClassPrompts(points, tuple(Box(*corners) for corners in boxes), mask)


def check(lesion, *places, organ=None):
    """Compare what is left under prompts of the lesion, and of the organ, with these places."""
    labels = make_labels()
    before = labels.copy()
    spoken = {LESION: lesion} | ({} if organ is None else {ORGAN: organ})
    named = only_named_objects(labels, spoken, CLASSES)
    np.testing.assert_array_equal(named, only(labels, *places))
    assert named.dtype == labels.dtype
    np.testing.assert_array_equal(labels, before)


def test_a_click_names_the_object_that_holds_it_over_corners_too():
    check(said(click((1, 1, 1))), LARGE, DIAGONAL)
    check(said(click((4, 5, 4))), LARGE, DIAGONAL)
    check(said(click((2, 2, 9))), FLAT)
    check(said(click((2, 2, 9)), click((2, 2, 2))), LARGE, DIAGONAL, FLAT)


def test_what_other_classes_name_stays_with_it():
    check(said(click((2, 2, 9))), FLAT, LIVER, organ=said(click((0, 6, 6))))
    check(said(click((0, 0, 0), False)), LIVER, organ=said(click((0, 6, 6))))


def test_a_click_beside_all_objects_names_none():
    """Inside and outside of the bounding box of the class, before and behind it, also on another class."""
    for voxel in ((2, 3, 7), (2, 5, 7), (0, 5, 4), (0, 7, 10), (2, 7, 7)):
        check(said(click(voxel)))


@pytest.mark.parametrize(
    "nothing",
    [
        said(),
        said(click((2, 2, 9), False)),
        said(click((2, 2, 9)), click((2, 2, 9), False)),
        said(mask=np.zeros(SHAPE, bool)),
    ],
    ids=["no prompts", "a negative click", "a click taken back", "an empty mask"],
)
def test_where_nothing_is_named_all_stays(nothing):
    labels = make_labels()
    for spoken in ({}, {LESION: nothing}):
        np.testing.assert_array_equal(only_named_objects(labels, spoken, CLASSES), labels)
        np.testing.assert_array_equal(without_unnamed_objects(labels, spoken, CLASSES, {LESION}), labels)


def test_of_two_clicks_on_a_voxel_the_later_counts():
    check(said(click((2, 2, 9), False), click((2, 2, 9))), FLAT)
    check(said(click((2, 2, 9)), click((2, 2, 9), False), click((2, 2, 2))), LARGE, DIAGONAL)


def test_a_box_names_each_object_that_lies_in_it_by_half():
    check(said(boxes=[((0, 1, 6), (3, 2, 7))]), FLAT)  # four of its eight voxels
    check(said(boxes=[((0, 0, 0), (4, 2, 7))]), FLAT)  # and 18 of the other's 37, which are not half
    check(said(boxes=[((0, 0, 0), (4, 5, 9))]), LARGE, DIAGONAL, FLAT)
    check(said(boxes=[((0, 0, 0), (4, 5, 5)), ((1, 0, 6), (3, 3, 10))]), LARGE, DIAGONAL, FLAT)


def test_a_box_that_holds_no_half_names_the_object_with_the_most_voxels_in_it():
    check(said(boxes=[((1, 1, 3), (2, 2, 6))]), LARGE, DIAGONAL)  # 4 of 37 voxels, 2 of 8
    check(said(boxes=[((2, 2, 3), (3, 2, 8))]), FLAT)  # 2 of 37, 3 of 8
    check(said(boxes=[((2, 2, 7), (3, 3, 7)), ((3, 4, 3), (4, 5, 3))]), LARGE, DIAGONAL, FLAT)  # each by itself


def test_a_box_in_one_slice_is_about_what_lies_in_that_slice():
    check(said(boxes=[((2, 0, 0), (2, 5, 10))]), LARGE, DIAGONAL, FLAT)
    check(said(boxes=[((2, 1, 1), (2, 2, 9))]), LARGE, DIAGONAL, FLAT)  # half of 12, all of 8
    check(said(boxes=[((2, 2, 2), (2, 3, 9))]), FLAT)  # 4 of 12, 4 of 8
    check(said(boxes=[((3, 1, 1), (3, 1, 1))]), LARGE, DIAGONAL)


def test_a_box_in_which_there_is_nothing_names_nothing():
    for corners in (((0, 3, 6), (4, 5, 10)), ((0, 0, 0), (0, 7, 10)), ((0, 7, 0), (4, 7, 10))):
        check(said(boxes=[corners]))


def test_a_mask_names_what_shares_a_voxel_with_it():
    mask = np.zeros(SHAPE, bool)
    mask[2, 2:, 9] = True
    check(said(mask=mask), FLAT)
    mask[4, 5, 4] = True
    check(said(mask=mask), LARGE, DIAGONAL, FLAT)
    check(said(mask=make_labels() == ORGAN))


def test_a_class_that_is_not_there_leaves_nothing():
    labels = np.full(SHAPE, ORGAN, np.uint8)
    assert not only_named_objects(labels, {LESION: said(click((1, 2, 3)))}, CLASSES).any()
    left = without_unnamed_objects(labels, {LESION: said(click((1, 2, 3)))}, CLASSES, {LESION})
    np.testing.assert_array_equal(left, labels)


def test_taking_unnamed_objects_of_one_class_out_leaves_the_others():
    labels = make_labels()
    spoken = {LESION: said(click((2, 2, 9))), ORGAN: said(click((0, 0, 0), False))}
    np.testing.assert_array_equal(
        without_unnamed_objects(labels, spoken, CLASSES, {LESION, ORGAN}), only(labels, FLAT, LIVER)
    )
    np.testing.assert_array_equal(without_unnamed_objects(labels, spoken, CLASSES, {ORGAN}), labels)
    np.testing.assert_array_equal(labels, make_labels())


LEFT, RIGHT = np.s_[:, :, :5], np.s_[:, :, 6:]  # each holds a whole with a core with an active part


def make_regions():
    labels = np.zeros(SHAPE, np.int16)
    for first in (0, 6):
        labels[:, 1:7, first : first + 5] = 10
        labels[1:4, 2:6, first + 1 : first + 4] = 20
        labels[2, 3, first + 2] = 30
    return labels


def replaced(labels, place, **labels_by_name):
    """The labels with some of them replaced in a place."""
    result = labels.copy()
    for name, label in labels_by_name.items():
        result[place][labels[place] == int(name[1:])] = label
    return result


def test_the_mask_of_a_region_is_all_its_labels_and_they_stay():
    labels = make_regions()
    for voxel in ((2, 3, 2), (1, 2, 1), (0, 1, 0)):
        if labels[voxel] >= 20:
            expected = only(labels, np.s_[1:4, 2:6, 1:4])
            np.testing.assert_array_equal(only_named_objects(labels, {CORE: said(click(voxel))}, REGIONS), expected)
        named = only_named_objects(labels, {WHOLE: said(click(voxel))}, REGIONS)
        np.testing.assert_array_equal(named, only(labels, LEFT))
    both = {ACTIVE: said(click((2, 3, 2))), CORE: said(click((2, 3, 8)))}
    np.testing.assert_array_equal(
        only_named_objects(labels, both, REGIONS), only(labels, np.s_[2, 3, 2], np.s_[1:4, 2:6, 7:10])
    )


def test_where_an_unnamed_object_of_a_region_goes_the_regions_that_hold_it_stay():
    labels = make_regions()
    for number, expected in (
        (WHOLE, replaced(labels, RIGHT, _10=0, _20=0, _30=0)),
        (CORE, replaced(labels, RIGHT, _20=10, _30=10)),
        (ACTIVE, replaced(labels, RIGHT, _30=20)),
    ):
        spoken = {number: said(click((2, 3, 2)))}
        np.testing.assert_array_equal(without_unnamed_objects(labels, spoken, REGIONS, {number}), expected)
    spoken = {number: said(click((2, 3, 2))) for number in REGIONS}
    np.testing.assert_array_equal(
        without_unnamed_objects(labels, spoken, REGIONS, REGIONS), replaced(labels, RIGHT, _10=0, _20=0, _30=0)
    )


def test_what_another_region_names_is_not_taken_out():
    labels = make_regions()
    spoken = {WHOLE: said(click((2, 3, 2))), CORE: said(click((2, 3, 8)))}
    left = without_unnamed_objects(labels, spoken, REGIONS, {WHOLE})
    np.testing.assert_array_equal(left, replaced(labels, RIGHT, _10=0))
