"""SAM with clicks on every slice: where the clicks are, what a seed gives, and what is written."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from sam3dnet.errors import CheckpointError
from sam3dnet.evaluation.sam_points import draw_clicks, load_sam, segment_with_points, write_point_predictions
from sam3dnet.preprocessing.reading import DatasetReader

SHAPE = (4, 6, 7)
CLASSES = {"organ": (1,), "lesion": (2,), "absent": (3,)}


class Recorder:
    """Stands in for SAM's predictor: the mask is the clicks themselves."""

    def __init__(self):
        self.slices, self.clicks = [], []

    def set_image(self, image_YX3):
        assert image_YX3.dtype == np.uint8
        self.slices.append(image_YX3)

    def predict(self, points_P2, labels_P, multimask_output):
        assert (labels_P == 1).all()
        assert not multimask_output
        self.clicks.append(points_P2)
        mask = np.zeros((1, *self.slices[-1].shape[:2]), bool)
        mask[0, points_P2[:, 1], points_P2[:, 0]] = True
        return mask, None, None


@pytest.fixture
def image_and_truth():
    truth = np.zeros(SHAPE, np.int64)
    truth[1, 1:4, 2:5] = 1
    truth[2, 2:4, 2:6] = 1
    truth[2, 3, 3] = 2
    return np.random.default_rng(0).normal(100, 20, SHAPE), truth


def test_clicks_lie_in_the_class_and_only_in_its_slices(image_and_truth):
    image, truth = image_and_truth
    recorder = Recorder()
    found = segment_with_points(image, truth, CLASSES, recorder, points=3)
    assert len(recorder.slices) == 2
    assert [len(clicks) for clicks in recorder.clicks] == [3, 3, 1]  # the lesion has one voxel
    assert (found[found > 0] == truth[found > 0]).all()
    assert (found == 1).sum() == 6
    assert (found == 2).sum() == 1


def test_the_same_seed_gives_the_same_clicks(image_and_truth):
    image, truth = image_and_truth
    one, same, other = (
        segment_with_points(image, truth, CLASSES, Recorder(), points=3, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_clicks_are_different_voxels_with_x_first():
    mask = np.zeros((3, 5), bool)
    mask[2, 1:5] = True
    clicks = draw_clicks(mask, 9, np.random.default_rng(0))
    assert sorted(map(tuple, clicks)) == [(1, 2), (2, 2), (3, 2), (4, 2)]


def tiny_sam():
    torch.manual_seed(0)
    return Sam(
        ImageEncoderViT(img_size=64, embed_dim=16, depth=1, num_heads=2, out_chans=16),
        PromptEncoder(16, (4, 4), (64, 64), 4),
        MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(1, 16, 2, 32), num_multimask_outputs=3),
    )


def test_the_official_predictor_gives_a_mask_on_the_image_s_grid(image_and_truth, tmp_path):
    image, truth = image_and_truth
    files = [tmp_path / "a_0000.nii.gz", tmp_path / "a.nii.gz"]
    for file, array in zip(files, (image, truth.astype(np.uint8)), strict=True):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((0.7, 1.1, 3.0))
        sitk.WriteImage(volume, str(file))
    cases = {"a": ([files[0]], files[1])}
    options = {"reader": DatasetReader("SimpleITKIO"), "file_ending": ".nii.gz", "points": 2}
    predictor = SamPredictor(tiny_sam().eval())
    (written,) = write_point_predictions(cases, tmp_path / "out", CLASSES, predictor, **options)
    found = sitk.ReadImage(str(written))
    assert found.GetSpacing() == pytest.approx((0.7, 1.1, 3.0))
    assert set(np.unique(sitk.GetArrayFromImage(found))) <= {0, 1, 2}
    before = written.stat().st_mtime_ns
    write_point_predictions(cases, tmp_path / "out", CLASSES, None, **options)
    assert written.stat().st_mtime_ns == before


def test_wrong_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; expected the official SAM checkpoint of vit_b"):
        load_sam(tmp_path / "sam.pth")
    (tmp_path / "sam.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not a SAM checkpoint of vit_b"):
        load_sam(tmp_path / "sam.pth")
