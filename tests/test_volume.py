"""Answers to prompts in a whole image, with networks whose answers are known."""

import numpy as np
import pytest
import torch
from fake_prompts import SURE, CarelessNetwork, ConstantNetwork, ObjectNetwork, whole

from sam3dnet.interactive import volume as volume_module
from sam3dnet.interactive.feature_cache import FeatureCache
from sam3dnet.interactive.volume import BUMP_WIDTH, OBEYED_LOGIT, PromptedVolume
from sam3dnet.interactive.window_grid import WindowGrid
from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.prompts import strokes
from sam3dnet.prompts.types import Box, ClassPrompts, Point, Scribble

PATCH = (4, 16, 8)
SHAPE = (5, 60, 9)
LONG = (5, 200, 9)
NARROW = (4, 60, 8)  # as high and wide as a window
FAR = 4  # logits that say that nothing is there


def blank(shape=SHAPE):
    """An image without an object, and logits that say background."""
    logits = torch.full((3, *shape), -FAR, dtype=torch.half)
    logits[0] = FAR
    return torch.zeros(1, *shape), logits


def snake():
    """An object longer than three windows, and another one that does not touch it."""
    image, logits = blank()
    image[0, 1:3, 4:52, 3:5] = 1
    image[0, 1:3, 20:30, 7:] = 1
    return image, logits


def make_volume(image, logits, networks=None, **options):
    networks = [ObjectNetwork()] if networks is None else networks
    return PromptedVolume(networks, image, logits, PATCH, regions=False, **options), networks[0]


def corrected(logits, correction, class_index=1):
    """The mask of a class after a correction."""
    result = logits.float()
    result[class_index] += torch.from_numpy(whole(correction, logits.shape[1:]))
    return (result.argmax(0) == class_index).numpy()


def clicks(*places, positive=True):
    return ClassPrompts(tuple(Point(at, positive) for at in places))


def test_an_object_larger_than_a_window_comes_out_whole_and_alone():
    image, logits = snake()
    volume, network = make_volume(image, logits)
    mask = corrected(logits, volume.correction(1, clicks((2, 10, 4))))
    expected = np.zeros(SHAPE, bool)
    expected[1:3, 4:52, 3:5] = True
    np.testing.assert_array_equal(mask, expected)
    assert network.asked[0][2] is None
    assert all(len(points) and found.any() for points, _, found in network.asked[1:])


def test_a_small_object_costs_one_window():
    image, logits = blank()
    image[0, 1:3, 22:26, 3:5] = 1
    volume, network = make_volume(image, logits)
    mask = corrected(logits, volume.correction(2, clicks((1, 23, 3))), 2)
    np.testing.assert_array_equal(mask, image[0].numpy() > 0)
    assert network.seen == len(network.asked) == 1


def test_a_negative_click_removes_a_false_object_larger_than_a_window():
    image, logits = snake()
    logits[1][image[0] > 0] = 2 * FAR
    volume, _ = make_volume(image, logits)
    mask = corrected(logits, volume.correction(1, clicks((2, 50, 4), positive=False)))
    expected = np.zeros(SHAPE, bool)
    expected[1:3, 20:30, 7:] = True
    np.testing.assert_array_equal(mask, expected)


def test_boxes_and_masks_find_their_objects():
    image, logits = snake()
    volume, _ = make_volume(image, logits)
    mask = np.zeros(SHAPE, bool)
    mask[2, 29, 8] = True
    for prompts in (ClassPrompts(boxes=(Box((1, 19, 7), (1, 21, 8)),)), ClassPrompts(mask=mask)):
        found = corrected(logits, volume.correction(1, prompts))
        assert found[1:3, 20:30, 7:].all()
        assert found.sum() == 2 * 10 * 2


def test_the_answer_does_not_depend_on_earlier_questions():
    image, logits = snake()
    volume, _ = make_volume(image, logits)
    both = clicks((2, 10, 4), (2, 25, 8))
    first = volume.correction(1, both)
    volume.correction(2, clicks((2, 40, 4), positive=False))
    volume.correction(1, clicks((2, 10, 4)))
    again = volume.correction(1, both)
    np.testing.assert_array_equal(whole(first, SHAPE), whole(again, SHAPE))
    other, _ = make_volume(image, logits)
    np.testing.assert_array_equal(whole(first, SHAPE), whole(other.correction(1, both), SHAPE))


@pytest.fixture
def narrow_bumps(monkeypatch):
    """What follows a click that no network obeys ends before the places that a test looks at."""
    monkeypatch.setattr(volume_module, "BUMP_WIDTH", 1.0)


def test_features_are_computed_once_and_of_every_fold(narrow_bumps):
    image, logits = snake()
    networks = [ConstantNetwork(1.0), ConstantNetwork(4.0)]
    volume, _ = make_volume(image, logits, networks)
    correction = volume.correction(1, clicks((2, 25, 8)))
    seen = [network.seen for network in networks]
    assert seen[0] == seen[1] == len(networks[0].asked)
    values = whole(correction, SHAPE)
    assert np.median(values[values > 2]) == pytest.approx(2.5)  # but close to the click
    volume.correction(1, clicks((2, 25, 8), (2, 26, 8)))
    volume.correction(2, clicks((2, 25, 8), positive=False))
    assert [network.seen for network in networks] == seen


def test_the_oldest_features_go_when_the_cache_is_full():
    def features():
        return ImageFeatures(torch.zeros(1, 1, 2, 3, 4), (), ())

    computed = []

    def compute(key):
        computed.append(key)
        return features()

    cache = FeatureCache(2 * features().nbytes())
    for key in "abacab":
        cache.get(key, lambda key=key: compute(key))
    assert computed == ["a", "b", "c", "b"]
    computed.clear()
    small = FeatureCache(features().nbytes() - 1)
    for key in "aa":
        small.get(key, lambda key=key: compute(key))
    assert computed == ["a", "a"]


def test_a_network_that_does_not_listen_is_overruled_at_the_clicked_voxels():
    image, logits = blank()
    logits[1, 2, 30, 4] = 3 * FAR
    volume, _ = make_volume(image, logits, [ConstantNetwork(0.0)])
    prompts = ClassPrompts((Point((1, 20, 3)), Point((2, 30, 4), False), Point((1, 21, 3)), Point((1, 21, 3), False)))
    correction = volume.correction(1, prompts)
    values = whole(correction, SHAPE)
    assert values[1, 20, 3] == pytest.approx(2 * FAR + OBEYED_LOGIT)
    assert values[2, 30, 4] == pytest.approx(-2 * FAR - OBEYED_LOGIT)
    assert corrected(logits, correction)[1, 20, 3]
    assert not corrected(logits, correction)[2, 30, 4]


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("answer", [3.0, -3.0])
def test_a_positive_click_takes_nothing_away_and_a_negative_one_adds_nothing(narrow_bumps, positive, answer):
    image, logits = blank()
    logits[1, :, 30:40] = FAR + 1  # half of it is of the class
    logits[0, :, 30:40] = -FAR
    volume, _ = make_volume(image, logits, [ConstantNetwork(answer)])
    place = (2, 20, 4) if positive else (2, 35, 4)
    assert volume.correction(1, clicks(place, positive=not positive)).boxes == ()  # it agrees
    values = whole(volume.correction(1, clicks(place, positive=positive)), SHAPE)
    beside = values[2, 20, 0] if positive else values[2, 35, 0]
    assert beside == pytest.approx(answer if (answer > 0) == positive else 0, abs=1e-3)
    assert (values >= 0).all() if positive else (values <= 0).all()
    both = ClassPrompts((Point((2, 20, 4)), Point((2, 35, 4), False)))
    for said in (both, ClassPrompts(boxes=(Box((0, 16, 0), (4, 44, 8)),))):
        values = whole(volume.correction(1, said), SHAPE)
        assert values[2, 28, 0] == pytest.approx(answer, abs=1e-3)  # whoever says more gives the network a free hand


def test_answers_to_clicks_reach_no_farther_than_the_network_says():
    image, logits = blank(LONG)
    network = ConstantNetwork(3.0 * FAR, reach=(1.0, 4.0, 2.0))
    volume, _ = make_volume(image, logits, [network])
    values = whole(volume.correction(1, clicks((2, 30, 4), (2, 120, 4))), LONG)
    assert values[2, 30, 4] == values[2, 120, 4] == pytest.approx(3.0 * FAR, rel=1e-3)
    assert values[2, 32, 4] == pytest.approx(3.0 * FAR * np.exp(-1 / 8), rel=1e-2)
    assert values[2, 75, 4] == pytest.approx(0, abs=1e-3)
    boxed = whole(volume.correction(1, ClassPrompts(boxes=(Box((0, 24, 0), (4, 36, 8)),))), LONG)
    assert boxed[2, 25, 0] == pytest.approx(3.0 * FAR, rel=1e-3)
    together, _ = make_volume(image, logits, [network, ConstantNetwork(3.0 * FAR)])  # each fold as far as it may
    values = whole(together.correction(1, clicks((2, 30, 4), (2, 120, 4))), LONG)
    assert values[2, 32, 4] == pytest.approx(3.0 * FAR * (1 + np.exp(-1 / 8)) / 2, rel=1e-2)


def test_what_is_close_to_a_click_follows_where_the_network_does_not_listen():
    image, logits = blank()
    volume, _ = make_volume(image, logits, [ConstantNetwork(0.0)], spacing_mm=(3.0, 1.0, 1.5))
    correction = volume.correction(1, clicks((1, 20, 3)))
    values = whole(correction, SHAPE)
    height = 2 * FAR + OBEYED_LOGIT
    assert values[1, 23, 3] == values[1, 17, 3] == pytest.approx(height * np.exp(-0.5 * (3 / BUMP_WIDTH) ** 2))
    assert values[1, 20, 4] == pytest.approx(height * np.exp(-0.5 * (1.5 / BUMP_WIDTH) ** 2))
    assert values[2, 20, 3] == pytest.approx(height * np.exp(-0.5 * (3 / BUMP_WIDTH) ** 2))
    assert np.nonzero(values)[1].max() == 20 + 9  # the window begins nearer on the other side
    assert values[1, 20, 7] > 0  # 6 mm away
    for other, width in (((1, 24, 3), 2.0), ((1, 21, 3), 1.0), ((1, 28, 3), BUMP_WIDTH)):  # where the opposite is said
        both = ClassPrompts((Point((1, 20, 3)), Point(other, False)))
        values = whole(volume.correction(1, both), SHAPE)
        assert values[1, 19, 3] == pytest.approx(height * np.exp(-0.5 / width**2))
    listening, _ = make_volume(image, logits, [ConstantNetwork(3.0 * FAR)])
    values = whole(listening.correction(1, clicks((1, 20, 3))), SHAPE)
    assert values.max() == pytest.approx(3.0 * FAR, rel=1e-4)


def test_an_image_smaller_than_a_window_is_padded():
    image, logits = blank((3, 9, 5))
    image[0, 1:, 3:7, 2:4] = 1
    mask = np.zeros((3, 9, 5), bool)
    mask[2, 6, 3] = True
    volume, network = make_volume(image, logits)
    prompts = ClassPrompts((Point((1, 3, 2)),), (Box((1, 3, 2), (2, 6, 3)),), mask)
    correction = volume.correction(1, prompts)
    np.testing.assert_array_equal(corrected(logits, correction), image[0].numpy() > 0)
    assert [(box.low, box.high) for box in correction.boxes] == [((0, 0, 0), (3, 9, 5))]
    points, boxes, given = network.asked[-1]
    np.testing.assert_array_equal(points, [[1, 6, 3]])
    np.testing.assert_array_equal(boxes, [[[1, 6, 3], [2, 9, 4]]])
    assert np.argwhere(given).tolist() == [[2, 9, 4]]


def test_regions_are_each_on_their_own():
    image, _ = blank()
    image[0, 1:3, 22:26, 3:5] = 1
    logits = torch.full((2, *SHAPE), -float(FAR), dtype=torch.half)
    logits[1] = FAR  # another region says nothing about the first
    volume = PromptedVolume([ObjectNetwork()], image, logits, PATCH, regions=True)
    correction = volume.correction(0, clicks((1, 23, 3)))
    values = whole(correction, SHAPE)
    np.testing.assert_array_equal(values - FAR > 0, image[0].numpy() > 0)
    assert values.max() == pytest.approx(SURE, rel=1e-3)


def test_prompts_that_say_nothing_new_change_nothing():
    image, logits = snake()
    logits[1][image[0] > 0] = 2 * FAR
    volume, network = make_volume(image, logits)
    outside = clicks((0, 5, 0), positive=False).points
    inside = clicks((1, 10, 3), (2, 40, 4)).points
    for prompts in (ClassPrompts(), ClassPrompts(outside), ClassPrompts((*inside, *outside))):
        assert not volume.correction(1, prompts).boxes
    assert network.seen == 0


def test_clicks_that_agree_are_told_but_open_no_windows_of_their_own():
    image, logits = blank(LONG)
    image[0, 1:3, 20:26, 3:5] = 1
    volume, network = make_volume(image, logits)
    near, far = Point((2, 24, 7), positive=False), Point((2, 180, 4), positive=False)
    correction = volume.correction(1, ClassPrompts((far, Point((2, 22, 4)), near)))
    assert network.seen == len(network.asked) == 1
    assert [len(points) for points, _, _ in network.asked] == [2]
    np.testing.assert_array_equal(corrected(logits, correction), image[0].numpy() > 0)


def test_the_order_of_clicks_and_their_repetition_do_not_matter():
    image, logits = snake()
    points = (Point((2, 10, 4)), Point((2, 25, 8)), Point((0, 30, 2), False), Point((4, 12, 1)), Point((4, 14, 2)))
    corrections = []
    for order in (points, points[::-1], (*points[2:], *points[:4])):
        volume, network = make_volume(image, logits)
        corrections.append(whole(volume.correction(1, ClassPrompts(order)), SHAPE))
        assert all(len(asked) <= len(points) for asked, _, _ in network.asked)
    np.testing.assert_array_equal(corrections[0], corrections[1])
    np.testing.assert_array_equal(corrections[0], corrections[2])


def test_only_objects_that_a_prompt_names_are_changed(narrow_bumps):
    image, logits = blank(NARROW)
    image[0, 1:3, 24:27, 2:5] = -1
    logits[1, 1:3, 24:27, 2:5] = 2 * FAR  # found, and nobody complains
    image[0, 0:3, 29:32, 2:5] = image[0, 0:3, 35:38, 3:6] = 1
    volume, _ = make_volume(image, logits, [CarelessNetwork()])
    mask = corrected(logits, volume.correction(1, clicks((1, 30, 3))))
    expected = np.zeros(NARROW, bool)
    expected[1:3, 24:27, 2:5] = expected[0:3, 29:32, 2:5] = True
    np.testing.assert_array_equal(mask, expected)
    near = clicks((1, 30, 3), (1, 33, 4))  # the second lies beside the other bright object, none of which holds it
    expected[0:3, 35:38, 3:6] = True
    both = corrected(logits, volume.correction(1, near))
    np.testing.assert_array_equal(both[:, 34:], expected[:, 34:])
    for named in (ClassPrompts(boxes=(Box((1, 25, 4), (1, 36, 4)),)), ClassPrompts(mask=mask)):
        everything = corrected(logits, volume.correction(1, named))
        assert not everything[1:3, 24:27, 2:5].any() and everything[0:3, 29:32, 2:5].all()


def test_a_click_near_the_margin_is_followed_by_one_in_the_middle_of_what_it_gave():
    image, logits = blank(NARROW)
    image[0, :3, 21:26, 2:7] = 1
    image[0, :3, 40:45, 2:7] = 1  # another object, which was not clicked
    volume, network = make_volume(image, logits)
    volume.correction(1, clicks((0, 21, 2)))
    (first, *_), (second, *_) = network.asked
    np.testing.assert_array_equal(second - first[0], [[0, 0, 0], [1, 1, 1]])
    assert network.seen == 1


def test_a_stroke_near_the_margin_is_followed_by_a_click_in_the_middle_of_what_it_gave(monkeypatch):
    monkeypatch.setattr(strokes, "APART_VOXELS", 2)
    image, logits = blank(NARROW)
    image[0, :3, 21:28, 2:7] = 1
    volume, network = make_volume(image, logits)
    stroke = Scribble(tuple((0, y, 2) for y in range(21, 28)))
    mask = corrected(logits, volume.correction(1, ClassPrompts(scribbles=(stroke,))))
    np.testing.assert_array_equal(mask, image[0].numpy() > 0)
    (first, *_), (second, *_) = network.asked
    assert len(first) == 3 and len(second) == 4
    (added,) = {tuple(one) for one in second} - {tuple(one) for one in first}
    np.testing.assert_array_equal(added - first.min(0), (1, 1, 1))
    two = ClassPrompts((Point((2, 22, 5)),), scribbles=(stroke,))
    network.asked.clear()
    volume.correction(1, two)
    assert len(network.asked) == 1


@pytest.mark.parametrize(
    "prompts",
    [
        clicks((1, 24, 3)),  # as far inside as any voxel
        clicks((0, 23, 2), (0, 24, 2)),
        ClassPrompts((Point((0, 23, 2)),), (Box((0, 23, 2), (2, 25, 4)),)),
        clicks((3, 24, 7)),  # where the network says that nothing is
    ],
)
def test_no_click_is_added_to_what_is_more_than_one_click_or_is_in_the_middle(prompts):
    image, logits = blank(NARROW)
    image[0, :3, 23:26, 2:5] = 1
    volume, network = make_volume(image, logits)
    volume.correction(1, prompts)
    assert len(network.asked) == 1 + bool(prompts.boxes)  # what a box gives by itself is seen first
    assert len(network.asked[-1][0]) == len(prompts.points)


class ShyNetwork(ObjectNetwork):
    """Answers no box without a click."""

    def prompted(self, features, batch, margin_Qzyx):
        correction = super().prompted(features, batch, margin_Qzyx)
        return correction if len(self.asked[-1][0]) else torch.zeros_like(correction)


def test_a_box_that_gives_nothing_is_followed_by_a_click_in_its_middle():
    image, logits = blank(NARROW)
    image[0, :3, 21:26, 2:7] = 1
    box = Box((0, 21, 2), (2, 25, 6))
    volume, network = make_volume(image, logits, [ShyNetwork()])
    mask = corrected(logits, volume.correction(1, ClassPrompts(boxes=(box,))))
    np.testing.assert_array_equal(mask, image[0].numpy() > 0)
    corner = network.asked[1][1][0, 0] - box.low  # of the box, in the window
    np.testing.assert_array_equal(network.asked[1][0] - corner, [[1, 23, 4]])
    assert network.seen == 1
    more = ClassPrompts((Point((0, 22, 2)), Point((3, 27, 7), positive=False)), (box,))  # as a user goes on
    volume.correction(1, more)
    assert len(network.asked[-1][0]) == 3
    denied = ClassPrompts((Point((1, 24, 4), positive=False),), (box,))
    volume.correction(1, denied)
    assert len(network.asked[-1][0]) == 1


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("is_hollow", [False, True])
def test_a_box_that_finds_its_object_is_followed_by_a_click_in_the_middle_of_that(is_flat, is_hollow):
    image, logits = blank(NARROW)
    image[0, :3, 21:28, 2:7] = 1
    if is_hollow:
        image[0, :3, 24:27, 3:6] = 0
    box = Box((0, 20, 1), (2, 30, 7))  # wide of the object
    drawn = Box((1, *box.low[1:]), (1, *box.high[1:])) if is_flat else box
    volume, network = make_volume(image, logits)
    volume.correction(1, ClassPrompts(boxes=(drawn,)))
    (first, boxes, _), (second, *_) = network.asked
    assert not len(first)
    ((z, y, x),) = (second - boxes[0, 0] + drawn.low).astype(int)  # in the image
    assert ((z, y, x) == (1, 25, 4)) != is_hollow
    assert image[0, z, y, x]
    for positive in (True, False):
        volume.correction(1, ClassPrompts((Point((z, y, x), positive),), (drawn,)))
        assert len(network.asked[-1][0]) == 1


@pytest.mark.parametrize(
    ("extent", "boxes"),
    [((20, 30), 2), ((20, 60), 2), ((20, 180), 1)],  # the last object is clicked at both ends, and they meet
)
def test_clicks_far_apart_are_answered_each_in_its_box_as_in_one(monkeypatch, extent, boxes):
    image, logits = blank(LONG)
    image[0, 1:3, slice(*extent), 3:5] = 1
    image[0, 2:4, 170:176, 3:6] = 1
    prompts = clicks((2, 22, 4), (2, 174, 4))
    volume, network = make_volume(image, logits)
    correction = volume.correction(1, prompts)
    with monkeypatch.context() as patched:
        patched.setattr(WindowGrid, "are_close", lambda *_: True)
        together, other = make_volume(image, logits)
        expected = together.correction(1, prompts)
    assert (len(correction.boxes), len(expected.boxes)) == (boxes, 1)
    assert len(network.asked) == len(other.asked)
    np.testing.assert_allclose(whole(correction, LONG), whole(expected, LONG), atol=2e-4)
    np.testing.assert_array_equal(corrected(logits, correction), image[0].numpy() > 0)


def test_far_clicks_that_the_network_does_not_follow_are_obeyed_each_in_its_box():
    image, logits = blank(LONG)
    volume, _ = make_volume(image, logits, [ConstantNetwork(0.0)])
    correction = volume.correction(1, ClassPrompts((Point((1, 20, 3)), Point((2, 180, 4)), Point((3, 181, 4), False))))
    assert len(correction.boxes) == 2
    mask = corrected(logits, correction)
    assert mask[1, 20, 3] and mask[2, 180, 4] and not mask[3, 181, 4]


@pytest.mark.parametrize("lead", [0.3, -0.3])
def test_a_click_that_agrees_with_an_unsure_answer_far_from_all_others_is_left_alone(lead):
    image, logits = blank(LONG)
    image[0, 1:3, 20:30, 3:5] = 1
    logits[1, 2, 180, 4] = FAR + lead
    agreed = Point((2, 180, 4), positive=lead > 0)
    volume, network = make_volume(image, logits)
    correction = volume.correction(1, ClassPrompts((Point((2, 22, 4)), agreed)))
    assert len(network.asked) == 1
    assert not correction.looked_at((2, 180, 4))
    assert corrected(logits, correction)[2, 180, 4] == (lead > 0)


@pytest.mark.parametrize("seed", range(30))
def test_any_clicks_and_boxes_anywhere_are_answered_and_clicks_obeyed(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers((2, 8, 4), (9, 90, 30)).tolist())
    logits = torch.from_numpy(rng.normal(0, 2, (3, *shape))).half()
    image = torch.from_numpy((rng.random((1, *shape)) < 0.2).astype(np.float32))
    voxels = dict.fromkeys(tuple(rng.integers(0, shape).tolist()) for _ in range(rng.integers(1, 9)))
    points = tuple(Point(voxel, bool(rng.random() < 0.5)) for voxel in voxels)
    corners = np.sort(rng.integers(0, shape, (2, 3)), 0)
    boxes = (Box(*map(tuple, corners.tolist())),) if rng.random() < 0.3 else ()
    networks = [ObjectNetwork(), ConstantNetwork(rng.normal()), CarelessNetwork()][seed % 3 :]
    volume, _ = make_volume(image, logits, networks)
    mask = corrected(logits, volume.correction(1, ClassPrompts(points, boxes)))
    assert [bool(mask[tuple(map(int, point.at))]) for point in points] == [point.positive for point in points]


def test_a_part_that_begins_before_a_mask_or_ends_after_it_is_cut_where_it_lies():
    whole_zyx = np.zeros((5, 6, 7), bool)
    mask_zyx = np.random.default_rng(3).random((2, 4, 3)) > 0.4
    low = (2, 1, 3)
    whole_zyx[2:4, 1:5, 3:6] = mask_zyx
    for part in (np.s_[0:3, 0:6, 2:7], np.s_[2:4, 2:3, 4:6], np.s_[0:1, 0:2, 0:4]):
        np.testing.assert_array_equal(volume_module._cut(mask_zyx, low, part), whole_zyx[part])
