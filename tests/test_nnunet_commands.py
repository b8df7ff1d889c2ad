"""What sam3dnet has trained goes through nnU-Net's own commands."""

import json
import os
import random
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import predict_folder, train_fold
from phantoms import make_raw_dataset

from sam3dnet.inference.model_folders import find_model
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net, seaborn and torch inside a training

DATASET = "Dataset911_Commands"
EXT_TRAINER = Path(__file__).resolve().parents[1] / "sam3dnet" / "nnunet_ext"
NAMES = ["-tr", "nnUNetTrainerSAM3D", "-p", "SAM3DPlans", "-c", "3d_fullres"]


@pytest.fixture(scope="module", autouse=True)
def threads_in_place_of_processes():
    """nnU-Net writes and scores label maps in pools of new processes, each of which takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield


@pytest.fixture(scope="module")
def folders(nnunet_root, threads_in_place_of_processes):
    """Train five folds: the first until it sees the organ, the others as briefly as can be."""
    make_raw_dataset(nnunet_root / "nnUNet_raw" / DATASET, num_cases=5, num_test=2)
    folders = activate_folders(None)
    plan_dataset(
        DATASET, folders, cost=training_cost, seconds=training_seconds, encoder="tiny", device="cpu", progress=False
    )
    preprocess_dataset(DATASET, folders, num_processes=0, progress=False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    for fold in range(5):  # a hesitant network has many ties, which fall to either side in half precision
        train_fold(DATASET, fold, folders, epochs=1, iterations_per_epoch=1 if fold else 120, device="cpu")
    return folders


def predict_with_nnunets_command(images, output):
    """Run what nnUNetv2_predict runs, in a Python that knows of sam3dnet by nnUNet_extTrainer alone."""
    code = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"
    options = [*NAMES, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
    finished = subprocess.run(
        [sys.executable, "-c", code, "-d", DATASET, "-i", str(images), "-o", str(output), *options],
        env={**os.environ, "nnUNet_extTrainer": str(EXT_TRAINER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


def test_nnunets_prediction_gives_our_label_maps(folders, tmp_path):
    images = folders.raw / DATASET / "imagesTs"
    predict_with_nnunets_command(images, tmp_path / "stock")
    model = find_model(folders.results, DATASET)
    report = predict_folder(images, tmp_path / "ours", model, folds=[0], device="cpu")
    assert report.written == ["test_0", "test_1"]
    for name in report.written:
        stock, ours = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / folder / f"{name}.nii.gz")))
            for folder in ("stock", "ours")
        )
        assert 0.02 < np.mean(ours > 0) < 0.9  # the network has learnt something that could differ
        assert np.mean(ours == stock) >= 0.999


def test_nnunet_finds_the_best_configuration_of_our_folds(folders, monkeypatch):
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration_entry_point

    monkeypatch.setattr(sys, "argv", ["command", DATASET, *NAMES, "-np", "1", "--disable_ensembling"])
    find_best_configuration_entry_point()
    found = json.loads((folders.results / DATASET / "inference_information.json").read_text())
    model = find_model(folders.results, DATASET)
    assert list(found["all_results"]) == [model.name]
    merged = json.loads((model / "crossval_results_folds_0_1_2_3_4" / "summary.json").read_text())
    assert len(merged["metric_per_case"]) == 5
    assert found["all_results"][model.name] == merged["foreground_mean"]["Dice"]
