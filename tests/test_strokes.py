"""Scribbles: which of their places a network hears, and that the label map obeys at all of them."""

import numpy as np
import pytest
import SimpleITK as sitk
from commands import predict_folder
from fake_prompts import make_promptable_model, write_prompts
from tiny_models import REGIONS, SHAPE_ZYX, labels_of, write_image

from sam3dnet.errors import PromptError
from sam3dnet.model import load_model
from sam3dnet.prompts.strokes import MOST_PLACES, heard
from sam3dnet.prompts.types import ClassPrompts, Point, Scribble

LINE = tuple((2, y, 3) for y in range(9))  # (z, y, x)


def test_a_short_stroke_is_heard_at_its_middle_a_long_one_at_further_places():
    assert heard(Scribble(LINE)).at == ((2, 4, 3),)
    places = heard(Scribble(tuple((2, y, 3) for y in range(41)))).at
    assert places[0] == (2, 20, 3)
    assert set(places) == {(2, y, 3) for y in (0, 10, 20, 30, 40)}


def test_of_a_long_or_broad_one_some_places_are_heard_that_say_all_of_it():
    drawn = {(z, y, x) for z in (5,) for y in range(80) for x in range(30, 120)}
    for places in (tuple(sorted(drawn)), tuple(sorted(drawn, key=lambda at: at[::-1]))):
        kept = heard(Scribble(places, positive=False))
        assert len(kept.at) == MOST_PLACES and len(set(kept.at)) == MOST_PLACES and not kept.positive
        away = np.abs(np.array(places)[:, None] - np.array(kept.at)[None]).max(-1).min(1)
        assert away.max() <= 25


def test_a_single_place_is_a_click():
    assert heard(Scribble(((1, 2, 3),))).at == ((1, 2, 3),)
    assert ClassPrompts((Point((0, 0, 0)),), scribbles=(Scribble(((1, 2, 3),), False),)).clicks == (
        Point((0, 0, 0)),
        Point((1, 2, 3), False),
    )


def test_a_scribble_without_places_is_refused():
    with pytest.raises(PromptError, match="has no places"):
        Scribble(())
    with pytest.raises(PromptError, match="a place of a scribble is"):
        Scribble(((1, 2),))


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz", seed=3)
    return tmp_path / "images" / "a_0000.nii.gz"


@pytest.mark.parametrize("options", [{}, {"labels": REGIONS, "folds": (0, 1)}], ids=["labels", "regions, two folds"])
def test_the_masks_are_those_of_the_command_and_obey_everywhere(tmp_path, image, options):
    model = make_promptable_model(tmp_path / "results", **options)
    name = "whole" if options else "lesion"
    session = load_model(model, device="cpu").session()
    session.set_image(str(image), space="LPS")
    read = sitk.ReadImage(str(image))
    drawn, away = [tuple(map(int, at[::-1])) for at in LINE], [(x, 1, 0) for x in range(7)]
    positive, negative = ([read.TransformIndexToPhysicalPoint(at) for at in one] for one in (drawn, away))
    session.prompt(ClassPrompts(scribbles=(Scribble(tuple(positive)), Scribble(tuple(negative), False))), name)
    said = {"scribbles": [{"at": positive}, {"at": negative, "positive": False}]}
    prompts = write_prompts(tmp_path / "prompts.json", {"a": {name: said}}, space="LPS")
    predict_folder(image.parent, tmp_path / "out", model, device="cpu", prompts=prompts)
    np.testing.assert_array_equal(session.label_map(), labels_of(tmp_path / "out" / "a.nii.gz"))
    mask = session.mask(name)
    assert all(mask[at] for at in LINE) and not any(mask[at[::-1]] for at in away)
    assert "scribbles" in (tmp_path / "out" / "sam3d_prediction.json").read_text()


def test_one_by_one_undo_and_what_agrees(tmp_path, image):
    session = load_model(make_promptable_model(tmp_path / "results"), device="cpu").session()
    automatic = session.set_image(image)
    places = [at[::-1] for at in LINE]
    first = session.scribble(places, class_name="lesion")
    assert all(first[at] for at in LINE)
    np.testing.assert_array_equal(session.scribble(places[2:5], class_name="lesion"), first)
    session.undo()
    np.testing.assert_array_equal(session.undo(), automatic == 2)
    session.scribble(places, class_name="organ")
    other = session.scribble(places, class_name="lesion")
    assert all(other[at] for at in LINE) and not any(session.mask("organ")[at] for at in LINE)


def test_what_sticks_out_is_left_out_and_all_outside_is_refused(tmp_path, image):
    session = load_model(make_promptable_model(tmp_path / "results"), device="cpu").session()
    session.set_image(image)
    inside = session.scribble([(3, y, 2) for y in range(SHAPE_ZYX[1])], class_name="lesion")
    session.reset()
    beyond = session.scribble([(3, y, 2) for y in range(-4, SHAPE_ZYX[1] + 5)], class_name="lesion")
    np.testing.assert_array_equal(inside, beyond)
    with pytest.raises(PromptError, match=r"scribble at \(3, -4, 2\) in voxel lies outside of the image"):
        session.scribble([(3, -4, 2), (3, -3, 2)], class_name="lesion")
    assert session.num_prompts == 1
