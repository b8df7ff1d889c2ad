"""What must hold of clicks on a trained network, small as it is: more of them are never worse."""

import numpy as np
import pytest
from scipy import ndimage
from trained_models import SPACING_MM, draw_case, make_trained_model

from sam3dnet.model import load_model
from sam3dnet.prompts.places import random_voxels
from sam3dnet.prompts.sampling import corrective_click, innermost_voxel
from sam3dnet.prompts.types import ClassPrompts, Point

SHAPE = (10, 56, 50)
CASES = 4


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / max(np.count_nonzero(one) + np.count_nonzero(other), 1)


def clicks(voxels, positive=True):
    return tuple(Point((x, y, z), positive) for z, y, x in voxels)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return load_model(make_trained_model(tmp_path_factory.mktemp("results")), device="cpu", mirror=False).session()


@pytest.fixture(params=range(CASES))
def case(request, session):
    """A session that holds an image, the truth, and the automatic mask."""
    image, truth = draw_case(np.random.default_rng(100 + request.param), SHAPE, 9)
    session.set_image(image, SPACING_MM)
    automatic = session.mask()
    assert 0.3 < dice(automatic, truth) < 0.99  # it knows something, and there is something to say
    return session, truth, automatic


def missed_object(session, truth):
    """Give the object of which most is missed."""
    objects, count = ndimage.label(truth, np.ones((3, 3, 3)))
    missed = ndimage.sum_labels(~session.mask(), objects, range(1, count + 1))
    return objects == 1 + int(np.argmax(missed))


def missed_voxel(session, truth):
    """Give the middle of what is missed of that object, and of the class where nothing is, a voxel beside it."""
    missed = missed_object(session, truth) & ~session.mask()
    return innermost_voxel(missed if missed.any() else ndimage.binary_dilation(truth) & ~session.mask(), SPACING_MM)


def test_ten_clicks_that_agree_leave_the_automatic_mask(case):
    session, truth, automatic = case
    rng = np.random.default_rng(0)
    inside = clicks(random_voxels(automatic & truth, 7, rng))
    outside = clicks(random_voxels(~automatic & ~truth, 3, rng), positive=False)
    assert dice(session.prompt(ClassPrompts((*inside, *outside))), automatic) >= 0.99


def test_ten_clicks_that_agree_leave_a_corrected_mask(case):
    session, truth, automatic = case
    corrected = session.prompt(ClassPrompts(clicks([missed_voxel(session, truth)])))
    rng = np.random.default_rng(0)
    for voxel in random_voxels(corrected & truth, 5, rng):
        mask = session.prompt(ClassPrompts(clicks([voxel])))
    mask = session.prompt(ClassPrompts(clicks(random_voxels(corrected & truth, 5, rng))))
    assert dice(mask, corrected) >= 0.99
    assert (corrected != automatic).any()


def test_a_click_on_the_same_voxel_again_changes_nothing(case):
    session, truth, _ = case
    click = clicks([missed_voxel(session, truth)])
    once = session.prompt(ClassPrompts(click))
    np.testing.assert_array_equal(session.prompt(ClassPrompts(click)), once)
    session.reset()
    np.testing.assert_array_equal(session.prompt(ClassPrompts(click * 5)), once)


def test_the_order_of_clicks_given_together_does_not_matter(case):
    session, truth, _ = case
    rng = np.random.default_rng(1)
    said = (*clicks(random_voxels(truth, 5, rng)), *clicks(random_voxels(~truth, 3, rng), positive=False))
    masks = []
    for order in (said, said[::-1], (*said[3:], *said[:3])):
        session.reset()
        masks.append(session.prompt(ClassPrompts(order)))
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_clicks_one_by_one_and_at_once_agree(case):
    session, truth, _ = case
    said = clicks(random_voxels(truth, 6, np.random.default_rng(2)))
    for click in said:
        one_by_one = session.prompt(ClassPrompts((click,)))
    session.reset()
    assert dice(session.prompt(ClassPrompts(said)), one_by_one) >= 0.98


def test_a_negative_click_outside_of_every_mask_changes_nothing(case):
    session, truth, automatic = case
    outside = clicks(random_voxels(~automatic & ~truth, 1, np.random.default_rng(3)), positive=False)
    np.testing.assert_array_equal(session.prompt(ClassPrompts(outside)), automatic)
    session.reset()
    positive = clicks([missed_voxel(session, truth)])
    corrected = session.prompt(ClassPrompts(positive))
    far = ~ndimage.binary_dilation(corrected | truth, iterations=4)
    outside = clicks(random_voxels(far, 1, np.random.default_rng(3)), positive=False)
    np.testing.assert_array_equal(session.prompt(ClassPrompts(outside)), corrected)


def test_a_positive_click_takes_nothing_away_and_a_negative_one_adds_nothing(case):
    session, truth, automatic = case
    mask = session.prompt(ClassPrompts(clicks([missed_voxel(session, truth)])))
    assert not (automatic & ~mask).any()
    assert (mask & ~automatic).any()
    session.reset()
    false = automatic & ~truth
    wrong = innermost_voxel(false if false.any() else automatic, SPACING_MM)
    mask = session.prompt(ClassPrompts(clicks([wrong], positive=False)))
    assert not (mask & ~automatic).any()
    assert (automatic & ~mask).any()


def test_clicks_on_one_object_leave_others_alone(case):
    session, truth, automatic = case
    chosen = missed_object(session, truth)
    mask = session.prompt(ClassPrompts(clicks(random_voxels(chosen, 3, np.random.default_rng(4)))))
    changed = mask != automatic
    objects, _ = ndimage.label(mask | automatic, np.ones((3, 3, 3)))
    touched = np.unique(objects[changed])
    clicked = np.unique(objects[chosen & mask])
    assert set(touched.tolist()) <= set(clicked.tolist())


def test_every_clicked_voxel_is_obeyed(case):
    session, truth, _ = case
    rng = np.random.default_rng(5)
    inside, outside = random_voxels(truth, 4, rng), random_voxels(~truth, 4, rng)
    mask = session.prompt(ClassPrompts((*clicks(inside), *clicks(outside, positive=False))))
    assert all(mask[voxel] for voxel in inside)
    assert not any(mask[voxel] for voxel in outside)


def test_more_clicks_are_not_worse_and_corrective_ones_help(session):
    """Over all cases, since in a single one a click may cost something."""
    corrective, at_once = [], []
    for number in range(CASES):
        image, truth = draw_case(np.random.default_rng(100 + number), SHAPE, 9)
        session.set_image(image, SPACING_MM)
        curve = [dice(session.mask(), truth)]
        for _ in range(6):
            click = corrective_click(session.mask(), truth, SPACING_MM)
            z, y, x = click.at
            curve.append(dice(session.click((x, y, z), click.positive), truth))
        corrective.append(curve)
        said, curve = clicks(random_voxels(truth, 12, np.random.default_rng(number))), curve[:1]
        for count in (1, 3, 6, 12):
            session.reset()
            curve.append(dice(session.prompt(ClassPrompts(said[:count])), truth))
        at_once.append(curve)
    for curves in (corrective, at_once):
        assert (np.diff(np.mean(curves, 0)) > -0.01).all()
    assert np.mean(corrective, 0)[-1] > np.mean(corrective, 0)[0] + 0.02
