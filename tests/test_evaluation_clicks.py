"""The simulated user and the click study, with a session that obeys in a way that can be followed by hand."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
from commands import study_clicks
from phantoms import write_volume
from plans import make_plans

from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.evaluation import click_model
from sam3dnet.evaluation.click_cases import crop_around
from sam3dnet.evaluation.click_results import default_folder, format_study, save_plot, write_study
from sam3dnet.evaluation.click_study import CROP, WHOLE, ClickStudy
from sam3dnet.evaluation.clicks import Mask, click_through, false_positives, remove_false_positives
from sam3dnet.preprocessing.folders import Folders
from sam3dnet.prompts.types import ClassPrompts

SHAPE = (6, 9, 14)
SPACING_MM = (3.0, 0.7, 1.1)
OBJECT = (slice(1, 4), slice(1, 6), slice(2, 9))
FAR = (slice(4, 6), slice(6, 9), slice(11, 14))


def mask(*boxes: Any, shape: tuple[int, int, int] = SHAPE) -> Mask:
    marked = np.zeros(shape, dtype=bool)
    for box in boxes:
        marked[box] = True
    return marked


class Obedient:
    """Finds `automatic` by itself; a positive click adds a slab of three slices of `hidden`, a negative one removes
    the component that it hits, all but `keeps` of its voxels."""

    def __init__(self, automatic: Mask, hidden: Mask, keeps: float = 0.0) -> None:
        self.automatic, self.hidden, self.keeps = automatic, hidden, keeps
        self.clicks: list[tuple[tuple[float, ...], bool, str]] = []
        self.together: list[int] = []
        self.boxes: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
        self.now = automatic.copy()

    def mask(self, class_name: str) -> Mask:
        return self.now

    def click(self, at: tuple[float, float, float], positive: bool, class_name: str) -> Mask:
        self.clicks.append((at, positive, class_name))
        z, y, x = (int(value) for value in at[::-1])
        if positive:
            slab = mask((slice(max(0, z - 1), z + 2), slice(None), slice(None)), shape=self.now.shape)
            self.now = self.now | (self.hidden & slab)
        else:
            components = cc3d.connected_components(self.now, connectivity=26)
            hit = np.flatnonzero(components == components[z, y, x])
            self.now = self.now.copy()
            self.now.flat[hit[int(self.keeps * len(hit)) :]] = False
        return self.now

    def prompt(self, prompts: ClassPrompts, class_name: str) -> Mask:
        self.together.append(len(prompts.points))
        for box in prompts.boxes:
            self.boxes.append((box.low, box.high))
            sides = zip(box.low[::-1], box.high[::-1], strict=True)
            self.now = self.now | (self.hidden & mask(tuple(slice(int(a), int(b) + 1) for a, b in sides)))
        for point in prompts.points:
            self.click(point.at, point.positive, class_name)
        return self.now

    def reset(self) -> None:
        self.now = self.automatic.copy()


def click(session: Obedient, truth: Mask, num_clicks: int, first_click: Any = "centre") -> list[Mask]:
    rng = np.random.default_rng(5)
    steps = click_through(session, truth, "lesion", SPACING_MM, num_clicks, first_click, rng)
    return [step.mask.copy() for step in steps]


def test_the_first_click_is_innermost_and_further_ones_correct_the_largest_error() -> None:
    truth, beside = mask(OBJECT), mask(FAR)
    session = Obedient(automatic=beside, hidden=truth)
    masks = click(session, truth, 10)
    # The width along y, five voxels of 0.7 mm, decides how deep a voxel lies; among equals the first is taken.
    places, positive, names = zip(*session.clicks, strict=True)
    assert places[0] == (3.0, 3.0, 1.0)
    assert positive == (True, True, False)
    assert set(names) == {"lesion"}
    assert truth[tuple(int(v) for v in places[1][::-1])]
    assert beside[tuple(int(v) for v in places[2][::-1])]
    assert [m.sum() for m in masks] == [18, 18 + 70, 18 + 105, 105]


def test_no_more_clicks_than_asked_for() -> None:
    session = Obedient(automatic=mask(), hidden=mask())
    assert len(click(session, mask(OBJECT), 3)) == 4
    assert len(session.clicks) == 3
    assert len(click(session, mask(OBJECT), 0)) == 1


def test_the_first_click_near_the_margin_is_seeded() -> None:
    truth = mask((slice(0, 6), slice(0, 9), slice(0, 13)))
    places = []
    for _ in range(2):
        session = Obedient(automatic=mask(), hidden=truth)
        click(session, truth, 1, "margin")
        places.append(session.clicks[0][0])
    assert places[0] == places[1]
    centre = Obedient(automatic=mask(), hidden=truth)
    click(centre, truth, 1)
    assert places[0] != centre.clicks[0][0]


def test_false_positives_have_no_true_voxel_and_come_by_size() -> None:
    small, large = (5, slice(0, 3), slice(0, 3)), FAR
    predicted = mask(OBJECT, small, large, (0, 8, 0))
    found = false_positives(predicted, mask((1, 1, 2)))
    assert [component.sum() for component in found] == [18, 9]
    assert np.array_equal(found[0], mask(large))


@pytest.mark.parametrize(("keeps", "removed"), [(0.0, True), (0.1, True), (0.5, False)])
def test_what_a_negative_click_leaves(keeps: float, removed: bool) -> None:
    truth = mask(OBJECT)
    session = Obedient(automatic=truth | mask(FAR, (5, slice(0, 3), slice(0, 4))), hidden=truth, keeps=keeps)
    removals = remove_false_positives(session, truth, "lesion", SPACING_MM)
    assert [removal.voxels for removal in removals] == [18, 12]
    assert [removal.left for removal in removals] == [int(keeps * 18) / 18, int(keeps * 12) / 12]
    assert all(removal.removed is removed for removal in removals)
    assert [positive for _, positive, _ in session.clicks] == [False, False]
    assert np.array_equal(session.now, session.automatic)


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        ((1, 1, 1), ((1, 4), (1, 6), (2, 9))),
        ((5, 5, 9), ((0, 5), (1, 6), (1, 10))),
        ((50, 8, 7), ((0, 6), (0, 8), (2, 9))),
    ],
)
def test_crop_holds_the_object_and_stays_inside(least: tuple[int, int, int], expected: Any) -> None:
    assert crop_around(mask(OBJECT), least) == tuple(slice(*side) for side in expected)


LABELS: dict[str, Any] = {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}
DATASET = "Dataset907_Clicks"


class FakeModel:
    """Stands for a model; its session knows the truth."""

    def __init__(self, *_loaded: Any) -> None:
        pass

    def session(self) -> "FakeSession":
        return FakeSession()


class FakeSession:
    """Knows the truth from the image, whose grey values are the labels; sees nothing before it is clicked."""

    images: list[np.ndarray]

    def __init__(self) -> None:
        FakeSession.images = []

    def set_image(self, image_CZYX: np.ndarray, spacing_mm: Any, space: str) -> None:
        assert spacing_mm == pytest.approx(SPACING_MM)
        assert space == "voxel"
        if (image_CZYX == 77).any():
            raise PromptError("this image is refused")
        FakeSession.images.append(image_CZYX)
        self.labels = image_CZYX[0]
        self.reset()

    def mask(self, class_name: str) -> np.ndarray:
        return self._obedient(class_name).now

    def click(self, at: Any, positive: bool = True, class_name: str = "") -> np.ndarray:
        return self._obedient(class_name).click(at, positive, class_name)

    def prompt(self, prompts: ClassPrompts, class_name: str = "") -> np.ndarray:
        return self._obedient(class_name).prompt(prompts, class_name)

    def reset(self) -> None:
        self._sessions: dict[str, Obedient] = {}

    def _obedient(self, name: str) -> Obedient:
        if name not in self._sessions:
            # Marks the ignored voxels and a false positive, value 5, too.
            automatic = (self.labels == 3) | ((self.labels == 5) & (name == "lesion"))
            self._sessions[name] = Obedient(automatic, self.labels == LABELS[name])
        return self._sessions[name]


def label_map(with_lesion: bool = True) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[OBJECT] = 1
    if with_lesion:
        labels[2:4, 2:5, 3:6] = 2
    labels[:, 8, :5] = 3
    return labels


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A trained model of fold 1 with three validation cases: with lesion, without, and one that is refused."""
    found = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    raw = found.raw / DATASET
    model = found.results / DATASET / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    for folder in (raw / "imagesTr", raw / "labelsTr", found.preprocessed / DATASET, model / "fold_1"):
        folder.mkdir(parents=True)
    description = json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"})
    for place in (raw, model):
        (place / "dataset.json").write_text(description)
    plans = make_plans(DATASET, ["CTNormalization"])
    plans["configurations"]["3d_fullres"] |= {"patch_size": [2, 6, 4], "spacing": [3.0, 1.1, 0.7]}
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "fold_1" / "checkpoint_final.pth").touch()
    for name, labels in {
        "a": label_map(),
        "b": label_map(with_lesion=False),
        "refused": label_map(),
        "t": label_map(),
    }.items():
        image = labels.astype(np.int16)
        image[FAR] = 5
        image[0, 0, 0] = 77 if name == "refused" else 0
        write_volume(image, raw / "imagesTr" / f"{name}_0000.nii.gz", SPACING_MM)
        write_volume(labels, raw / "labelsTr" / f"{name}.nii.gz", SPACING_MM)
    splits = [{"train": [], "val": ["t"]}, {"train": ["t"], "val": ["refused", "b", "a"]}]
    (found.preprocessed / DATASET / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.setattr(click_model, "load_model", FakeModel)
    return found


@pytest.fixture
def study(folders: Folders) -> ClickStudy:
    return study_clicks((0, 1, 4), folders, dataset="907")


def test_study_scores_every_class_after_each_number_of_clicks(study: ClickStudy) -> None:
    assert study.folds == (1,)
    assert study.failed == {"refused": "this image is refused"}
    assert study.absent == {"lesion": 1}
    assert study.values("organ", WHOLE, 0, "dice") == [0, 0]
    assert study.values("organ", WHOLE, 4, "dice") == study.values("organ", WHOLE, 4, "nsd") == [1, 1]
    lesion, false_positive = 18, 18
    assert study.values("lesion", WHOLE, 1, "dice") == [pytest.approx(2 * lesion / (2 * lesion + false_positive))]
    assert study.values("lesion", WHOLE, 4, "dice") == [1]
    assert (len(study.first_seconds), len(study.further_seconds)) == (3, 3)


def test_crop_protocol_gives_and_scores_nothing_but_the_crop(study: ClickStudy) -> None:
    """The crop is 2 x 6 x 4 voxels of 3.0, 1.1, 0.7 mm in the plan's axes, which swap y and x: 2 x 4 x 6 of the file,
    in which the lesion's two slices, 3 x 3 voxels each, fit; the false positive lies outside."""
    assert study.values("lesion", CROP, 1, "dice") == [1]
    shapes = [image.shape[1:] for image in FakeSession.images]
    # Case a: whole, around the organ, around the lesion; b: whole, around the organ.
    assert shapes == [SHAPE, (3, 5, 7), (2, 4, 6), SHAPE, (3, 5, 7)]


def test_negative_clicks_are_measured_also_where_the_class_is_absent(study: ClickStudy) -> None:
    assert [removal.left for removal in study.removals["lesion"]] == [0, 0]
    assert study.removals["organ"] == []


def test_fold_images_and_number_of_cases_can_be_chosen(folders: Folders) -> None:
    raw = folders.raw / DATASET
    given = study_clicks((1,), folders, images=raw / "imagesTr", labels=raw / "labelsTr", cases=1, tolerance=0.5)
    assert {row.case for row in given.rows} == {"a"}
    assert given.tolerance.mm == 0.5
    (folders.results / DATASET / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres" / "fold_0").mkdir()
    assert {row.case for row in study_clicks((1,), folders, fold=0, first_click="margin").rows} == {"t"}


def test_what_a_study_needs_is_named(folders: Folders) -> None:
    raw, splits = folders.raw / DATASET, folders.preprocessed / DATASET / "splits_final.json"
    with pytest.raises(DatasetError, match="give both -i and -g"):
        study_clicks((1,), folders, images=raw / "imagesTr")
    with pytest.raises(DatasetError, match=r"fold all has no validation cases, .* folds 0 to 1"):
        study_clicks((1,), folders, fold="all")
    with pytest.raises(DatasetError, match="fold 7 has no validation cases"):
        study_clicks((1,), folders, fold=7)
    with pytest.raises(DatasetError, match=r"a: .*a\.nii\.gz: no such file; add it"):
        study_clicks((1,), folders, images=raw / "imagesTr", labels=raw / "imagesTr")
    splits.unlink()
    with pytest.raises(DatasetError, match=r"splits_final\.json: not found; .* plan again"):
        study_clicks((1,), folders)


def test_text_json_csv_and_plot(study: ClickStudy, tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in format_study(study).splitlines()]
    assert lines[0] == "class protocol placing given metric of cases 0 clicks 1 click 4 clicks cases"
    assert "lesion whole volume corrective one-by-one Dice mean 0.000 0.667 1.000 1" in lines
    assert "lesion crop around truth corrective one-by-one NSD median 0.000 1.000 1.000 1" in lines
    assert any(line.startswith("lesion: one negative click removed 2 of 2 false positives (100%)") for line in lines)
    assert "lesion: not in 1 case(s), which cannot be clicked." in lines
    json_file, csv_file, plot = write_study(study, tmp_path / "out")
    content = json.loads(json_file.read_text())
    key = {"class": "lesion", "protocol": WHOLE, "placing": "corrective", "given": "one-by-one", "clicks": 1}
    (found,) = [row for row in content["summary"] if row["metric"] == "dice" and key.items() <= row.items()]
    assert (found["mean"], found["median"], found["count"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1)
    assert found["unit"] == "share from 0 to 1"
    assert content["negative_clicks"]["lesion"] == [{"voxels": 18, "left": 0.0}] * 2
    with csv_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 3 * 2
    assert rows[0] | {"nsd": ""} == {
        "case": "a", "class_name": "organ", "protocol": WHOLE, "placing": "corrective",
        "given": "one-by-one", "clicks": "0", "dice": "0.0", "nsd": "",
        "unit": "share from 0 to 1", "nsd_tolerance_mm": "2.0"
    }  # fmt: skip
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert default_folder(study).parts[-2:] == ("fold_1", "clicks_centre")


def test_plot_shows_every_class_metric_and_protocol(
    study: ClickStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    save_plot(study, tmp_path / "plot.png")
    (figure,) = drawn
    lines = {(axes.get_ylabel(), line.get_label()): line for axes in figure.axes[1::2] for line in axes.lines}
    assert list(lines[("Dice", WHOLE)].get_xdata()) == [0, 1, 4]
    assert lines[("Dice", WHOLE)].get_ydata() == pytest.approx([0, 2 / 3, 1])
    assert lines[("NSD", CROP)].get_ydata() == pytest.approx([0, 1, 1])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["organ (2 cases)", "lesion (1 cases)"]
    assert math.isclose(figure.axes[0].get_ylim()[0], 0)


def test_a_session_of_a_model_is_clicked(tmp_path: Path) -> None:
    """With the session itself: a network that takes for the class what looks like the clicked voxel."""
    from fake_prompts import make_promptable_model

    labels = np.zeros((8, 12, 10), np.uint8)
    labels[2:6, 3:9, 2:7] = 1
    image = np.where(labels > 0, 3.0, -1.0) + np.random.default_rng(0).normal(0, 0.05, labels.shape)
    for folder, name, voxels in (("images", "a_0000", image.astype(np.float32)), ("labels", "a", labels)):
        (tmp_path / folder).mkdir()
        write_volume(voxels, tmp_path / folder / f"{name}.nii.gz", SPACING_MM)
    make_promptable_model(tmp_path / "results")
    folders = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    study = study_clicks((0, 1, 3), folders, images=tmp_path / "images", labels=tmp_path / "labels", device="cpu")
    assert study.failed == {}
    assert study.absent == {"lesion": 1}
    (none,), (three,) = (study.values("organ", WHOLE, clicks, "dice") for clicks in (0, 3))
    assert three > none
    assert len(study.values("organ", CROP, 3, "nsd")) == 1
