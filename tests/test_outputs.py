"""What lies beside predictions on request: measures and pictures."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from tiny_models import LABELS, labels_of, make_model, write_image

from sam3dnet.cli.predict import predict
from sam3dnet.outputs import preview as preview_module
from sam3dnet.outputs.formats import colour
from sam3dnet.outputs.measures import as_csv, longest_mm, measure_case, surface_mm
from sam3dnet.outputs.preview import preview

SPACING_MM = (3.0, 0.5, 0.8)
CLASSES = {"organ": (1,), "both": (1, 2), "nowhere": (3,)}


def measured(labels, image=None, **options):
    image = np.zeros((1, *labels.shape), np.float32) if image is None else image
    return measure_case(labels, image, SPACING_MM, CLASSES, [f"c{n}" for n in range(len(image))], **options)


def test_a_box_has_the_volume_and_diameters_of_one():
    labels = np.zeros((6, 20, 18), np.uint8)
    labels[1:5, 2:12, 3:9] = 1  # 12 x 5 x 4.8 mm
    found = measured(labels)["organ"]
    assert found["volume_ml"] == pytest.approx(12 * 5 * 4.8 / 1000)
    assert found["components"] == 1
    outermost = np.linalg.norm([12, 5 - 0.5, 4.8 - 0.8])  # between the middles of opposite faces of corner voxels
    assert outermost <= found["diameter_mm"] <= np.linalg.norm([12, 5, 4.8])
    assert np.linalg.norm([5, 4.0]) <= found["axial_diameter_mm"] <= np.linalg.norm([5, 4.8])
    across = measured(labels, axial_axis=1)["organ"]["axial_diameter_mm"]
    assert np.linalg.norm([12, 4.0]) <= across <= np.linalg.norm([12, 4.8])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (1, 4, 3)])
def test_what_is_flat_or_a_voxel_has_diameters_too(shape):
    labels = np.zeros((3, 6, 7), np.uint8)
    labels[tuple(slice(1, 1 + length) for length in shape)] = 1
    found = measured(labels)["organ"]
    sides = np.multiply(shape, SPACING_MM)
    assert max(sides) <= found["diameter_mm"] <= np.linalg.norm(sides)
    assert max(sides[1:]) <= found["axial_diameter_mm"] <= np.linalg.norm(sides[1:])


def test_a_ball_is_as_wide_as_it_is():
    z, y, x = np.mgrid[:40, :40, :40] - 20
    points = surface_mm(z**2 + y**2 + x**2 <= 15.5**2, (1.0, 1.0, 1.0))
    assert longest_mm(points) == pytest.approx(31, rel=0.03)


def test_pieces_brightness_overlaps_and_absence_are_told():
    labels = np.zeros((4, 9, 9), np.uint8)
    labels[0, :2, :2], labels[3, 7:, 7:], labels[1, 4, 4] = 1, 1, 2
    image = np.random.default_rng(0).normal(size=(2, *labels.shape)).astype(np.float32)
    found = measured(labels, image)
    assert [found[name]["components"] for name in CLASSES] == [2, 3, 0]
    for number in range(2):
        inside = image[number][labels > 0].astype(float)
        assert found["both"]["intensity"][f"c{number}"] == pytest.approx({"mean": inside.mean(), "sd": inside.std()})
    assert found["nowhere"]["volume_ml"] == 0 and found["nowhere"]["diameter_mm"] is None
    rows = list(csv.DictReader(as_csv({"a,b": found}).splitlines()))
    assert [(row["case"], row["class"]) for row in rows] == [("a,b", name) for name in CLASSES]
    assert rows[0]["components"] == "2" and rows[2]["diameter_mm"] == rows[2]["c1 sd"] == ""
    assert float(rows[1]["c0 mean"]) == pytest.approx(found["both"]["intensity"]["c0"]["mean"], rel=1e-5)


def run(tmp_path, images, model, **options):
    return predict(input_folder=images, output_folder=tmp_path / "out", model_folder=model, device="cpu", **options)


def test_statistics_are_of_all_cases_that_are_there(tmp_path, images, model):
    out = tmp_path / "out"
    assert not run(tmp_path, images, model, statistics=True).failed
    found = json.loads((out / "statistics.json").read_text())
    assert list(found) == ["a", "b", "c"]
    voxel_ml = float(np.prod(sitk.ReadImage(str(images / "a_0000.nii.gz")).GetSpacing())) / 1000
    for name in "abc":
        assert list(found[name]) == ["organ", "lesion"]
        for label, one in enumerate(found[name].values(), 1):
            voxels = int((labels_of(out / f"{name}.nii.gz") == label).sum())
            assert one["volume_ml"] == pytest.approx(voxels * voxel_ml)
            inside = sitk.GetArrayFromImage(sitk.ReadImage(str(images / f"{name}_0000.nii.gz")))
            mean = inside[labels_of(out / f"{name}.nii.gz") == label].mean()
            assert one["intensity"]["MRI"]["mean"] == pytest.approx(mean, rel=1e-4)
    (images / "a_0000.nii.gz").unlink()
    (out / "b.nii.gz").unlink()
    write_image(images / "d_0000.nii.gz", 7)
    (images / "b_0000.nii.gz").unlink()
    assert run(tmp_path, images, model, statistics=True).written == ["d"]
    rows = list(csv.DictReader((out / "statistics.csv").read_text().splitlines()))
    assert [row["case"] for row in rows[::2]] == ["a", "c", "d"]  # of b there is no label map any more


def test_axial_planes_are_those_of_the_body(tmp_path, model):
    """A sagittal series: its slices are counted from left to right."""
    labels = np.zeros((5, 9, 7), np.uint8)
    write_image(tmp_path / "images" / "a_0000.nii.gz", direction=(0, 0, 1, 1, 0, 0, 0, -1, 0))
    run(tmp_path, tmp_path / "images", model, statistics=True)
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())["a"]["organ"]
    labels = labels_of(tmp_path / "out" / "a.nii.gz")
    image = np.zeros((1, *labels.shape), np.float32)
    spacing = sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz")).GetSpacing()[::-1]
    expected = [measure_case(labels, image, spacing, {"organ": (1,)}, ["x"], axis)["organ"] for axis in range(3)]
    assert found["axial_diameter_mm"] == pytest.approx(expected[1]["axial_diameter_mm"], rel=1e-4)
    assert len({round(one["axial_diameter_mm"], 3) for one in expected}) > 1


def test_pictures_are_drawn_once_for_each_label_map(tmp_path, images, model, monkeypatch):
    drawn = []

    def draw(labels, image, spacing_mm, classes, title):
        drawn.append(title)
        return preview(labels, image, spacing_mm, classes, title)

    monkeypatch.setattr(preview_module, "preview", draw)
    run(tmp_path, images, model, preview=True)
    run(tmp_path, images, model, preview=True)
    assert drawn == ["a", "b", "c"]
    assert imread(tmp_path / "out" / "a.png").shape[2] == 4


def near(picture, rgb):
    return int((np.abs(picture[..., :3] - np.divide(rgb, 255)).max(-1) < 0.1).sum())


def test_a_picture_shows_the_outlines_of_what_was_found():
    labels = np.zeros((10, 60, 60), np.int32)
    labels[3:7, 10:30, 10:30], labels[4:6, 40:50, 40:50] = 1, 2
    image = np.random.default_rng(0).normal(size=labels.shape)
    classes = {"organ": (1,), "lesion": (2,), "nowhere": (3,)}
    whole, organ, nothing = (
        imread_bytes(preview(shown, image, SPACING_MM, classes, "case"))
        for shown in (labels, np.where(labels == 1, 1, 0), 0 * labels)
    )
    assert near(whole, colour(1)) > 200 and near(whole, colour(2)) > 100
    assert near(organ, colour(1)) > 200 and near(organ, colour(2)) == near(nothing, colour(1)) == 0
    assert whole.shape[0] > organ.shape[0] == nothing.shape[0]


def test_of_many_objects_the_largest_of_each_class_come_first():
    labels = np.zeros((4, 30, 60), np.int32)
    for number in range(20):
        labels[1, 1:3, 3 * number : 3 * number + 1 + (number == 7)] = 1
    labels[2, 20, 20] = 2
    objects = preview_module._objects(labels, {"organ": (1,), "lesion": (2,)})
    assert [name for name, *_ in objects[:2]] == ["organ", "lesion"] and len(objects) == 21
    assert objects[0][1][2] == slice(21, 23)


def imread_bytes(png):
    import io

    return imread(io.BytesIO(png))


def test_a_model_of_several_channels_measures_each(tmp_path):
    model = make_model(tmp_path / "results", num_channels=2, labels=LABELS)
    for number in range(2):
        write_image(tmp_path / "images" / f"a_000{number}.nii.gz", seed=number)
    described = json.loads((model / "dataset.json").read_text()) | {"channel_names": {"0": "T1", "1": "T2"}}
    (model / "dataset.json").write_text(json.dumps(described))
    run(tmp_path, tmp_path / "images", model, statistics=True)
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert list(found["a"]["organ"]["intensity"]) == ["T1", "T2"]
