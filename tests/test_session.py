"""A session: prompts one after the other, with the masks of sam3d_predict --prompts."""

import numpy as np
import pytest
import SimpleITK as sitk
from commands import predict_folder
from fake_prompts import (
    PromptableNetwork,
    make_model_of_bright_objects,
    make_promptable_model,
    write_bright_objects,
    write_prompts,
)
from scipy import ndimage
from tiny_models import REGIONS, SHAPE_ZYX, labels_of, write_image

from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.model import load_model
from sam3dnet.prompts.types import Box, ClassPrompts, Point

SPACING_ZYX = (3.0, 1.1, 0.7)


@pytest.fixture
def session(tmp_path):
    return load_model(make_promptable_model(tmp_path / "results"), device="cpu").session()


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "images" / "a_0000.nii.gz", seed=3)
    return tmp_path / "images" / "a_0000.nii.gz"


@pytest.fixture
def ready(session, image):
    session.set_image(image)
    return session


@pytest.mark.parametrize("options", [{}, {"labels": REGIONS, "folds": (0, 1)}], ids=["labels", "regions, two folds"])
def test_the_masks_are_those_of_the_command(tmp_path, image, options):
    model = make_promptable_model(tmp_path / "results", **options)
    first, second = ("whole", "core") if options else ("organ", "lesion")
    session = load_model(model, device="cpu").session()
    session.set_image(str(image), space="LPS")
    places = {
        index: sitk.ReadImage(str(image)).TransformIndexToPhysicalPoint(index) for index in ((3, 4, 2), (5, 7, 3))
    }
    low, high = (sitk.ReadImage(str(image)).TransformIndexToPhysicalPoint(index) for index in ((0, 0, 1), (2, 3, 2)))
    mask = np.zeros(SHAPE_ZYX, bool)
    mask[3:, 6:, 5:] = True
    session.click(places[3, 4, 2], class_name=second)
    low, high = np.minimum(low, high), np.maximum(low, high)
    box = Box(tuple(low), tuple(high))
    session.prompt(ClassPrompts((Point(places[5, 7, 3], positive=False),), (box,)), first)
    session.set_mask(mask, class_name=second)
    written = sitk.GetImageFromArray(mask.astype(np.uint8))
    written.CopyInformation(sitk.ReadImage(str(image)))
    sitk.WriteImage(written, str(tmp_path / "mask.nii.gz"))
    cases = {
        second: {"points": [{"at": list(places[3, 4, 2])}], "mask": "mask.nii.gz"},
        first: {
            "points": [{"at": list(places[5, 7, 3]), "positive": False}],
            "boxes": [{"min": low.tolist(), "max": high.tolist()}],
        },
    }
    prompts = write_prompts(tmp_path / "prompts.json", {"a": cases}, space="LPS")
    predict_folder(image.parent, tmp_path / "out", model, device="cpu", prompts=prompts)
    np.testing.assert_array_equal(session.label_map(), labels_of(tmp_path / "out" / "a.nii.gz"))
    label = {"lesion": 2, "core": 700}[second]
    np.testing.assert_array_equal(session.mask(second), session.label_map() == label)
    assert session.mask(second)[2, 4, 3]
    assert not session.mask(first)[3, 7, 5]


def test_without_prompts_the_mask_is_the_automatic_one(tmp_path, image):
    model = make_promptable_model(tmp_path / "results")
    predict_folder(image.parent, tmp_path / "out", model, device="cpu")
    session = load_model(model, device="cpu").session()
    np.testing.assert_array_equal(session.set_image(image), labels_of(tmp_path / "out" / "a.nii.gz"))


def test_a_further_prompt_computes_no_features(ready):
    PromptableNetwork.seen = 0
    (z, y, x), *others = np.argwhere(ready.label_map() == 1).tolist()
    ready.click((x, y, z), class_name="lesion")
    first = PromptableNetwork.seen
    assert first > 0
    before = ready.mask("lesion")
    z, y, x = next(voxel for voxel in others if not before[tuple(voxel)])
    assert ready.click((x, y, z), class_name="lesion")[z, y, x]
    ready.undo()
    ready.undo()
    assert PromptableNetwork.seen == first


def test_clicks_that_agree_with_the_mask_leave_it_whenever_they_come(ready):
    automatic = ready.label_map()
    inside, outside = np.argwhere(automatic == 2)[:5].tolist(), np.argwhere(automatic == 0)[-4:].tolist()
    for z, y, x in inside:
        ready.click((x, y, z), class_name="lesion")
    for z, y, x in outside[1:]:
        ready.click((x, y, z), positive=False, class_name="lesion")
    np.testing.assert_array_equal(ready.label_map(), automatic)
    z, y, x = outside[0]
    corrected = ready.click((x, y, z), class_name="lesion")
    assert (corrected != (automatic == 2)).sum() > 1
    for z, y, x in np.argwhere(corrected)[::7].tolist():
        np.testing.assert_array_equal(ready.click((x, y, z), class_name="lesion"), corrected)


def test_undo_and_reset_lead_back(ready):
    automatic = ready.label_map()
    one = ready.click((3, 4, 2), class_name="lesion")
    wrong = tuple(map(int, np.argwhere(one)[-1][::-1]))
    assert wrong != (3, 4, 2)
    both = ready.click(wrong, positive=False, class_name="lesion")
    assert (one != both).any()
    np.testing.assert_array_equal(ready.undo(), one)
    np.testing.assert_array_equal(ready.click(wrong, positive=False, class_name="lesion"), both)
    ready.reset()
    np.testing.assert_array_equal(ready.label_map(), automatic)
    ready.click((3, 4, 2), class_name="lesion")
    ready.undo()
    np.testing.assert_array_equal(ready.label_map(), automatic)
    with pytest.raises(PromptError, match="no prompt to take back"):
        ready.undo()


def test_a_later_mask_takes_the_place_of_an_earlier_one(ready):
    first, second = np.zeros((2, *SHAPE_ZYX), bool)
    first[1:3, :4, :3] = True
    second[3:, 5:, 4:] = True
    alone = ready.set_mask(second, "lesion")
    ready.reset()
    before = ready.set_mask(first, "lesion")
    assert before[1:3, :4, :3].mean() > 0.9
    np.testing.assert_array_equal(ready.set_mask(second, "lesion"), alone)


def test_of_two_clicks_on_a_voxel_the_later_counts_across_classes(ready):
    ready.click((3, 4, 2), class_name="lesion")
    assert ready.click((3, 4, 2), class_name="organ")[2, 4, 3]
    assert not ready.mask("lesion")[2, 4, 3]
    assert ready.click((3, 4, 2), class_name="lesion")[2, 4, 3]


def test_arrays_are_taken_with_their_spacing(session, image):
    from_file = session.set_image(image)
    click = session.click((3, 4, 2), class_name="lesion")
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))
    np.testing.assert_array_equal(session.set_image(array, SPACING_ZYX), from_file)
    np.testing.assert_array_equal(session.click((3, 4, 2), class_name="lesion"), click)
    np.testing.assert_array_equal(session.set_image(array[None].astype(np.float64), SPACING_ZYX), from_file)
    assert session.mask("lesion").shape == SHAPE_ZYX


def test_further_channels_are_found_beside_the_first(tmp_path):
    for channel in range(2):
        write_image(tmp_path / f"a_{channel:04d}.nii.gz", seed=channel)
    session = load_model(make_promptable_model(tmp_path / "results", num_channels=2), device="cpu").session()
    alone = session.set_image(tmp_path / "a_0000.nii.gz")
    both = session.set_image([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
    np.testing.assert_array_equal(alone, both)


def test_what_cannot_be_is_said(ready, image):
    with pytest.raises(PromptError, match=r'the model has the classes "organ", "lesion"; say with class_name'):
        ready.click((3, 4, 2))
    with pytest.raises(PromptError, match='there is no class "liver"'):
        ready.mask("liver")
    with pytest.raises(PromptError, match=r"point \(30, 4, 2\) in voxel lies outside of the image"):
        ready.click((30, 4, 2), class_name="organ")
    with pytest.raises(PromptError, match="mask has shape"):
        ready.set_mask(np.zeros((2, 3, 4), bool), "organ")
    with pytest.raises(PromptError, match="no prompt to take back"):
        ready.undo()
    array = np.zeros(SHAPE_ZYX)
    with pytest.raises(DatasetError, match=r"spacing_mm is None; expected three millimetres"):
        ready.set_image(array)
    with pytest.raises(DatasetError, match="spacing_mm came with a file"):
        ready.set_image(image, SPACING_ZYX)
    with pytest.raises(PromptError, match="give voxel indices instead"):
        ready.set_image(array, SPACING_ZYX, space="LPS")
    with pytest.raises(DatasetError, match="hold 2 channels, the model wants 1"):
        ready.set_image(np.zeros((2, *SHAPE_ZYX)), SPACING_ZYX)


def test_prompts_before_an_image_are_refused(session):
    with pytest.raises(PromptError, match="call set_image first"):
        session.click((3, 4, 2), class_name="organ")
    assert session.class_names == ("organ", "lesion")


def test_prompts_given_together_are_those_given_one_after_the_other(ready):
    mask = np.zeros(SHAPE_ZYX, bool)
    mask[3:, 6:, 5:] = True
    ready.click((3, 4, 2), class_name="lesion")
    ready.click((0, 8, 4), positive=False, class_name="lesion")
    ready.box((0, 0, 1), (2, 3, 2), class_name="lesion")
    after = ready.set_mask(mask, class_name="lesion")
    ready.reset()
    points = (Point((3, 4, 2)), Point((0, 8, 4), positive=False))
    together = ready.prompt(ClassPrompts(points, (Box((0, 0, 1), (2, 3, 2)),), mask), "lesion")
    np.testing.assert_array_equal(together, after)
    automatic = ready.undo()
    assert (automatic != together).any()
    ready.reset()
    np.testing.assert_array_equal(ready.mask("lesion"), automatic)


@pytest.mark.parametrize("options", [{}, {"labels": REGIONS}], ids=["labels", "regions"])
def test_of_a_session_for_single_objects_only_what_was_named_is_shown(tmp_path, options):
    model = make_model_of_bright_objects(tmp_path / "results", **options)
    write_bright_objects(tmp_path / "a_0000.nii.gz")
    session = load_model(model, device="cpu").session(instance=True)
    label, other = session.class_names[1], session.class_names[0]
    automatic = session.set_image(tmp_path / "a_0000.nii.gz")
    objects, count = ndimage.label(session.mask(label), np.ones((3, 3, 3)))
    first, second = objects == objects[2, 2, 1], objects == objects[2, 6, 4]
    assert count == 2
    assert (first | second)[automatic == automatic[2, 2, 1]].all()
    session.click((0, 8, 0), positive=False, class_name=label)  # names nothing
    np.testing.assert_array_equal(session.label_map(), automatic)
    np.testing.assert_array_equal(session.click((1, 2, 2), class_name=label), first)
    np.testing.assert_array_equal(session.label_map(), np.where(first, automatic, 0))
    assert session.mask(other).sum() == (first.sum() if options else 0)  # the other region holds it
    np.testing.assert_array_equal(session.click((4, 6, 2), class_name=label), first | second)  # as it was found
    np.testing.assert_array_equal(session.undo(), first)
    session.reset()
    np.testing.assert_array_equal(session.label_map(), automatic)


def test_a_mask_that_its_owner_draws_on_still_names_what_it_named(tmp_path):
    write_bright_objects(tmp_path / "a_0000.nii.gz")
    session = load_model(make_model_of_bright_objects(tmp_path / "results"), device="cpu").session(instance=True)
    session.set_image(tmp_path / "a_0000.nii.gz")
    mask = session.mask("lesion")
    mask[:, :5] = False
    named = session.set_mask(mask, "lesion")
    mask[:] = True
    session.click((6, 0, 4), positive=False, class_name="lesion")
    np.testing.assert_array_equal(session.mask("lesion"), named)
    assert not named[2, 2, 1]
