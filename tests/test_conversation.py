"""What is said about a case, one thing after the other."""

import numpy as np
import pytest

from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.conversation import Conversation
from sam3dnet.interactive.correction import CorrectedBox, Correction
from sam3dnet.prompts.placing import PlacedPrompts
from sam3dnet.prompts.types import Box, ClassPrompts, Point

SHAPE = (2, 3, 4)
CLASSES = {1: PromptClass(1, 1, (1,)), 2: PromptClass(2, 2, (2,))}


class Answering:
    """Gives a new correction to every question, and draws label maps in which the clicks are obeyed.

    Attributes:
        asked: Class, clicks (voxel, positive), number of boxes, and the mask.
    """

    def __init__(self):
        self.asked = []

    def answer(self, number, prompts):
        points = [(point.voxel, point.positive) for point in prompts.points]
        self.asked.append((number, points, len(prompts.boxes), prompts.mask))
        return Correction((CorrectedBox((0, 0, 0), np.full(SHAPE, len(self.asked), np.float32)),))

    def export(self, corrections, clicks):
        labels = automatic()
        for click in clicks:
            if click.positive:
                labels[click.voxel] = click.class_index
            elif labels[click.voxel] == click.class_index:
                labels[click.voxel] = 0
        return labels


def automatic():
    """Class 1 in the first plane, nothing in the second."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 1
    return labels


def said(*voxels, positive=True, **more):
    prompts = ClassPrompts(tuple(Point(voxel, positive) for voxel in voxels), **more)
    return PlacedPrompts(prompts, prompts)


def make_conversation(exclusive=True):
    answering = Answering()
    return Conversation(automatic(), answering.answer, answering.export, CLASSES, exclusive), answering


def test_clicks_that_agree_with_what_is_seen_ask_nothing():
    conversation, answering = make_conversation()
    acts = [{1: said((0, 1, 1), (0, 2, 3))}, {1: said((1, 0, 0), positive=False)}, {2: said((0, 0, 0), positive=False)}]
    np.testing.assert_array_equal(conversation.after(acts), automatic())
    assert not answering.asked


def test_what_disagrees_is_answered_with_all_that_was_said_before():
    conversation, answering = make_conversation()
    box, masks = Box((0, 0, 0), (1, 1, 1)), np.ones((2, *SHAPE), bool)
    acts = [{1: said((0, 1, 1))}, {1: said((1, 1, 1))}, {1: said((1, 1, 1))}, {1: said(boxes=(box,), mask=masks[0])}]
    conversation.after([*acts, {1: said(mask=masks[1])}])
    (number, points, _, _), (_, again, boxes, mask), (_, _, _, last) = answering.asked
    assert (number, points) == (1, [((0, 1, 1), True), ((1, 1, 1), True)])
    assert (again, boxes) == ([*points, ((1, 1, 1), True)], 1)
    assert mask is masks[0] or mask.base is masks
    np.testing.assert_array_equal(last, masks[1])


def test_what_was_answered_before_is_kept():
    conversation, answering = make_conversation()
    one, two, three = ({1: said((1, 0, n))} for n in range(3))
    both = conversation.after([one, two]).copy()
    first = conversation.after([one]).copy()
    assert len(answering.asked) == 2
    np.testing.assert_array_equal(conversation.after([one, two]), both)
    assert len(answering.asked) == 3  # what was taken back is forgotten
    assert (conversation.after([one, three])[1, 0] == [1, 0, 1, 0]).all()
    assert (first[1, 0] == [1, 0, 0, 0]).all()
    assert (conversation.after([one])[1, 0] == [1, 0, 0, 0]).all()
    np.testing.assert_array_equal(conversation.after([]), automatic())


def test_a_click_on_one_class_says_that_another_is_not_there_where_it_was_not_found():
    conversation, answering = make_conversation()
    conversation.after([{1: said((1, 0, 0))}, {2: said((1, 2, 2), (0, 0, 0))}])
    of_first = [points for number, points, *_ in answering.asked if number == 1]
    assert of_first == [[((1, 0, 0), True)]]  # it is not seen at the other places, so nothing is asked anew
    conversation.after([{1: said((1, 0, 0))}, {2: said((1, 2, 2), (0, 0, 0))}, {1: said((1, 1, 1))}])
    number, points, _, _ = answering.asked[-1]
    assert (number, points) == (1, [((1, 0, 0), True), ((1, 2, 2), False), ((1, 1, 1), True)])


def test_an_answer_that_flowed_into_another_class_is_asked_again():
    conversation, answering = make_conversation()
    conversation.after([{1: said((1, 0, 0))}, {2: said((1, 0, 0))}])
    assert [number for number, *_ in answering.asked] == [1, 1, 2]
    assert answering.asked[1][1] == [((1, 0, 0), True), ((1, 0, 0), False)]


def test_regions_may_lie_on_each_other():
    conversation, answering = make_conversation(exclusive=False)
    conversation.after([{1: said((1, 0, 0))}, {2: said((1, 0, 0))}])
    assert [number for number, *_ in answering.asked] == [1, 2]


def test_what_corrections_add_in_a_box_is_their_sum():
    values = np.random.default_rng(0).normal(size=(2, 2, 2, 2)).astype(np.float32)
    boxes = tuple(CorrectedBox(low, values[n]) for n, low in enumerate(((0, 0, 0), (1, 1, 1))))
    expected = np.zeros((3, 3, 5), np.float32)
    for box in boxes:
        expected[box.box] += box.values_zyx
    total = Correction(boxes)
    np.testing.assert_array_equal(total.values_in((0, 0, 0), (3, 3, 5)), expected)
    np.testing.assert_array_equal(total.values_in((-1, 1, 1), (3, 2, 3))[1:], expected[:2, 1:3, 1:4])
    assert total.at((1, 1, 1)) == pytest.approx(float(expected[1, 1, 1]))
