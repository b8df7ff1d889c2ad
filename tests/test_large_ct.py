"""The benchmark of a large CT: what it compares is each side's own resampling, and both sides give the same labels."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import large_ct
from large_ct_steps import EXPORT, OURS, PREPARE, PREPROCESSING, STOCK, Places

SHAPE, CLASSES, PATCH = (11, 26, 22), 3, (8, 12, 10)


@pytest.fixture
def places(nnunet_root):
    """Folders that this process's nnU-Net knows, since the work is done in it."""
    places = Places(nnunet_root)
    yield places
    for folder in (
        places.raw,
        places.plans(OURS).parent,
        *(places.exported(method).parent for method in (STOCK, OURS)),
    ):
        shutil.rmtree(folder, ignore_errors=True)
    places.logits.unlink(missing_ok=True)


def test_the_phantom_has_air_and_every_organ():
    image, labels = large_ct.make_phantom(SHAPE, CLASSES)
    assert image.shape == labels.shape == SHAPE
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert image[:, 0, 0].mean() < -900
    assert abs(image[labels == 1].mean() - 60) < 10


def test_each_plan_says_what_its_planner_says(tmp_path):
    places = Places(tmp_path)
    large_ct.write_dataset(places, SHAPE, CLASSES)
    large_ct.write_plans(places, PATCH)
    stock, ours = (json.loads(places.plans(m).read_text())["configurations"]["3d_fullres"] for m in (STOCK, OURS))
    assert stock["resampling_fn_data"] == stock["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
    assert (stock["resampling_fn_data_kwargs"]["order"], stock["resampling_fn_probabilities_kwargs"]["order"]) == (3, 1)
    assert {ours[f"resampling_fn_{role}"] for role in ("data", "seg", "probabilities")} == {"resample_torch_fornnunet"}
    assert stock["spacing"] == ours["spacing"] != list(large_ct.SPACING_MM)


def test_both_methods_do_the_same_work(places):
    labels = large_ct.write_dataset(places, SHAPE, CLASSES)
    large_ct.write_plans(places, PATCH)
    for method in (STOCK, OURS):
        PREPARE[PREPROCESSING, method](places)()
    preprocessing = large_ct.agreement_of_preprocessing(places)
    assert preprocessing["equal_voxels"] > 0.99
    assert 0 < preprocessing["image_difference"] < 0.1  # cubic against linear
    large_ct.write_logits(places, labels, CLASSES)
    for method in (STOCK, OURS):
        PREPARE[EXPORT, method](places)()
    assert large_ct.agreement_of_export(places)["equal_voxels"] > 0.999
    exported = large_ct.sitk.GetArrayFromImage(large_ct.sitk.ReadImage(str(places.exported(OURS))))
    assert exported.shape == SHAPE
    assert (exported == labels).mean() > 0.9


def test_methods_run_in_turn_and_the_first_round_does_not_count(monkeypatch, tmp_path):
    calls = []
    seconds = {STOCK: iter([9.0, 6.0, 4.0]), OURS: iter([9.0, 1.0, 1.5])}

    def run(part, method, places, threads):
        calls.append(method)
        return next(seconds[method]), 2.0**20

    monkeypatch.setattr(large_ct, "run_once", run)
    rows = large_ct.measure(EXPORT, Places(tmp_path), 2, None)
    assert calls == [STOCK, OURS] * 3
    assert [row["median_s"] for row in rows] == [5.0, 1.25]
    assert rows[0]["cases_a_minute"] == 12
    rows[1]["equal_voxels"] = 0.5
    assert "| export | sam3dnet | 1.25 (1.12-1.38) | 48 | 4.00 | 1.0 | 1.00 | 50.000 % |" in large_ct.table(rows)


def test_a_failed_run_ends_with_what_it_said(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)export with sam3dnet ended with status 1:.*SAM3DPlans.json"):
        large_ct.run_once(EXPORT, OURS, Places(tmp_path), 1)
