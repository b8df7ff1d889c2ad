"""Models as one file: they predict elsewhere as they did here, also for stock nnU-Net, and hold nothing of cases."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cascades import make_cascade_model
from tiny_models import LABELS, labels_of, make_model

from sam3dnet.cli import export as export_command
from sam3dnet.cli.export import export
from sam3dnet.cli.predict import predict
from sam3dnet.errors import CheckpointError
from sam3dnet.inference.calibration import FILE as CALIBRATION_FILE
from sam3dnet.inference.calibration import Pairs, Validated
from sam3dnet.inference.models import load_checkpoint
from sam3dnet.inference.postprocessing import Measured, write_postprocessing_of_fold
from sam3dnet.model import load_model
from sam3dnet.portable.content import RECORD

SECRET = "smith_john"


@pytest.fixture
def trained(tmp_path):
    """A model of two folds, as a training leaves it."""
    model = make_model(tmp_path / "results", folds=(0, 1))
    described = json.loads((model / "dataset.json").read_text())
    described |= {"training": [{"image": f"./imagesTr/{SECRET}.nii.gz"}], "numTraining": 1, "licence": "CC0"}
    described |= {"dataset": {SECRET: {"images": [f"{SECRET}.mha"], "label": f"{SECRET}.mha"}}, "made_of": [SECRET]}
    described |= {"description": "made up", "reference": {"first": SECRET}}
    (model / "dataset.json").write_text(json.dumps(described))
    plans = json.loads((model / "plans.json").read_text())
    weights = {"family": "own", "name": "my.pth", "path": f"/{SECRET}/my.pth"}
    plans["sam3d"] = plans.get("sam3d", {}) | {"like": f"/{SECRET}/model", "weights": weights}
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]] * 7}))
    for fold in (0, 1):
        folder = model / f"fold_{fold}"
        checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
        checkpoint["optimizer_state"] = {"state": torch.zeros(10000)}
        checkpoint["init_args"] |= {"dataset_json": described, "plans": plans}
        checkpoint["logging"] = {"cases": SECRET}
        checkpoint["sam3d"] = {"trained_in": "bfloat16", "training_cases": [SECRET], "started_from": [SECRET]}
        torch.save(checkpoint, folder / "checkpoint_final.pth")
        said = {"case": SECRET, "class_name": "organ", "said": 0.5, "found": 0.6, "share": 1.0}
        other = said | {"case": "another", "found": 0.7}
        calibration = {
            "format": "sam3dnet-calibration/1",
            "errors": {"dice": None},
            "dice": [said, other],
            "objects": [],
        }
        (folder / CALIBRATION_FILE).write_text(json.dumps(calibration))
        (folder / "validation").mkdir()
        metrics = {"1": {"Dice": 0.8 + 0.1 * fold}, "2": {"Dice": float("nan")}}
        summary = {"metric_per_case": [{"prediction_file": SECRET, "metrics": metrics}]}
        (folder / "validation" / "summary.json").write_text(json.dumps(summary))
        kept = Measured(keep_largest=(1,), cases=2, dice_before=0.5, dice_after=0.6)
        write_postprocessing_of_fold(folder, [kept], described)
    return model


def run(images, out, model, **options):
    return predict(input_folder=images, output_folder=out, model_folder=model, device="cpu", **options)


def maps_in(folder):
    return {file.name: labels_of(file) for file in sorted(folder.glob("*.nii.gz"))}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_an_exported_model_predicts_the_same_elsewhere_and_knows_what_it_did(tmp_path, images, trained, capsys):
    run(images, tmp_path / "here", trained)
    words = ["-m", str(trained), "-o", str(tmp_path / "new" / "tiny.zip"), "--licence", "CC-BY-4.0"]
    assert export_command.main(words) == 0
    shown = capsys.readouterr()
    assert "tiny.zip: 0.0 MB; predict with: sam3d_predict -i IMAGES -o OUT -m" in shown.out
    assert "the model card says no intended-use" in shown.out and "says no licence" not in shown.out
    (tmp_path / "moved").mkdir()
    moved = shutil.move(tmp_path / "new" / "tiny.zip", tmp_path / "moved" / "model.zip")
    shutil.rmtree(trained.parents[1])
    assert run(images, tmp_path / "there", moved).written == ["a", "b", "c"]
    assert same(maps_in(tmp_path / "here"), maps_in(tmp_path / "there"))
    assert run(images, tmp_path / "there", moved).skipped == ["a", "b", "c"]
    os.utime(moved, (1, 1))  # another file
    assert run(images, tmp_path / "there", moved).written == ["a", "b", "c"]


def test_cases_of_several_folds_stay_several(tmp_path, images, trained):
    """Also where each fold was validated on its own: what confidences are worth is the same from the zip file."""
    cases = [f"case{number}" for number in range(12)]
    for fold, of_fold in enumerate((cases[:6], cases[6:])):
        pairs = Pairs(of_fold, ["organ"] * 6, [0.9] * 6, [0.5] * 6, [1.0] * 6)
        Validated(pairs, pairs).write(trained / f"fold_{fold}", Validated(pairs, Pairs()))
    file = export(output=tmp_path / "m.zip", model_folder=trained)
    said = []
    for place, model in (("here", trained), ("there", file)):
        run(images, tmp_path / place, model, confidence=True)
        said.append(json.loads((tmp_path / place / "a_confidence.json").read_text()))
        said[-1].pop("calibration")
    assert said[0] == said[1] and said[0]["calibrated_on_cases"] == 12


def test_a_folder_of_any_name_is_exported_under_nnunets(tmp_path, images, trained):
    run(images, tmp_path / "here", trained)
    other = trained.rename(tmp_path / "my model")
    file = export(output=tmp_path / "m.zip", model_folder=other)
    with zipfile.ZipFile(file) as archive:
        assert f"Dataset901_Tiny/{trained.name}/plans.json" in archive.namelist()
    assert run(images, tmp_path / "there", file).written == ["a", "b", "c"]
    assert same(maps_in(tmp_path / "here"), maps_in(tmp_path / "there"))
    for fold in (0, 1):
        shutil.rmtree(other / f"fold_{fold}")
    with pytest.raises(CheckpointError, match="none is trained"):
        export(output=tmp_path / "n.zip", model_folder=other)


def test_it_needs_no_folders_and_no_variables(tmp_path, images, trained):
    run(images, tmp_path / "here", trained)
    export(output=tmp_path / "m.zip", model_folder=trained)
    shutil.rmtree(trained.parents[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet")}
    words = ["-i", str(images), "-o", str(tmp_path / "there"), "-m", str(tmp_path / "m.zip"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "sam3dnet.cli.predict", *words],
        env=environment | {"PYTHONPATH": os.path.dirname(__file__)},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert same(maps_in(tmp_path / "here"), maps_in(tmp_path / "there"))


def test_nothing_of_cases_and_of_the_training_is_in_it(tmp_path, trained):
    file = export(output=tmp_path / "m.zip", model_folder=trained)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        assert not [name for name in names if SECRET.encode() in archive.read(name)]
        archive.extractall(tmp_path / "open")
    (folder,) = (tmp_path / "open" / "Dataset901_Tiny").iterdir()
    of_folds = [
        f"fold_{fold}/{name}"
        for fold in (0, 1)
        for name in ("checkpoint_final.pth", CALIBRATION_FILE, "sam3d_postprocessing.json")
    ]
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == {"README.md", "dataset.json", "plans.json", RECORD, *of_folds}
    checkpoint = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    assert set(checkpoint) <= {
        "network_weights",
        "init_args",
        "trainer_name",
        "inference_allowed_mirroring_axes",
        "current_epoch",
        "sam3d",
    }
    assert checkpoint["sam3d"] == {"trained_in": "bfloat16"}
    cases = [one["case"] for one in json.loads((folder / "fold_0" / CALIBRATION_FILE).read_text())["dice"]]
    assert len(set(cases)) == 2
    described = json.loads((folder / "dataset.json").read_text())
    whole = json.loads((trained / "dataset.json").read_text())
    assert described == {
        key: whole[key] for key in ("channel_names", "labels", "numTraining", "file_ending", "licence", "description")
    }
    assert checkpoint["init_args"]["dataset_json"] == described


def test_the_card_says_what_is_known(tmp_path, trained):
    file = export(
        output=tmp_path / "m.zip", model_folder=trained, licence="CC-BY-4.0", intended_use="Counting spleens."
    )
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("README.md"))
        card = archive.read(name).decode()
    assert card.startswith("---\nlicense: CC-BY-4.0\n")
    for said in (
        "Segments organ, lesion in 3D images with the channels MRI.",
        "Intended use: Counting spleens.",
        "Trained on 7 cases of Dataset901_Tiny, CC0",
        "Dice on 2 cases of validation",
        "| organ | 0.850 |",
        "-tr nnUNetTrainerSAM3D -p SAM3DPlans -f 0 1",
    ):
        assert said in card
    assert "| lesion |" not in card


def test_a_checkpoint_and_a_zip_file_without_a_model_are_named(tmp_path, trained):
    checkpoint = next(trained.glob("fold_*/*.pth"))
    with pytest.raises(CheckpointError, match=rf"{checkpoint}: is a checkpoint; expected the folder .* {trained}"):
        load_model(checkpoint, device="cpu")
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "nothing")
    with pytest.raises(CheckpointError, match=rf"{other}: holds no plans.json; expected a zip file with a model"):
        load_model(other, device="cpu")


def test_what_was_decided_in_validation_goes_along(tmp_path, trained):
    file = export(output=tmp_path / "m.zip", model_folder=trained)
    assert load_model(file, device="cpu").loaded.postprocessing.keep_largest == ((1,),)


def test_half_precision_is_half_as_large_and_nearly_the_same(tmp_path, images):
    model = make_model(tmp_path / "results")
    run(images, tmp_path / "whole", model)
    whole, half = (export(output=tmp_path / f"{half}.zip", model_folder=model, half=half) for half in (False, True))
    assert Path(half).stat().st_size < Path(whole).stat().st_size
    run(images, tmp_path / "half", half)
    one, other = maps_in(tmp_path / "whole"), maps_in(tmp_path / "half")
    assert np.mean([(one[name] == other[name]).mean() for name in one]) > 0.97
    weights = load_model(half, device="cpu").loaded.network.state_dict()
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_folds_are_chosen_and_must_be_there(tmp_path, trained):
    file = export(output=tmp_path / "one.zip", model_folder=trained, folds=["fold1"])
    assert [one.parent.name for one in load_model(file, device="cpu").loaded.checkpoint_files] == ["fold_1"]
    with pytest.raises(CheckpointError, match="fold 4 cannot be exported; trained are 0, 1"):
        export(output=tmp_path / "two.zip", model_folder=trained, folds=[4])
    with pytest.raises(CheckpointError, match=r"one.zip is there already"):
        export(output=tmp_path / "one.zip", model_folder=trained)
    with pytest.raises(CheckpointError, match=r"expected the name of a file that ends in \.zip"):
        export(output=tmp_path / "one", model_folder=trained)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "results"]


def test_a_cascade_takes_its_first_stage_along(tmp_path):
    model = make_cascade_model(tmp_path / "results", folds=(0, 1), first_folds=(0, 1, 2))
    file = export(output=tmp_path / "m.zip", model_folder=model, folds=[1])
    shutil.rmtree(tmp_path / "results")
    loaded = load_model(file, device="cpu").loaded
    assert loaded.previous is not None
    stages = [[one.parent.name for one in stage.checkpoint_files] for stage in (loaded, loaded.previous)]
    assert stages == [["fold_1"], ["fold_1"]]


def altered(file, ending, change):
    """Write the file anew, entries that end so as `change` gives them; None leaves them out."""
    other = Path(file).with_name("altered.zip")
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(other, "w") as written:
        for name in archive.namelist():
            content = change(archive.read(name)) if name.endswith(ending) else archive.read(name)
            if content is not None:
                written.writestr(name, content)
    return other


FAULTS = {  # what ends so is changed, to what, and what is said
    "another byte": ("plans.json", lambda old: old[:-3] + b"xyz", "plans.json is damaged"),
    "missing": ("fold_1/checkpoint_final.pth", lambda old: None, "fold_1/checkpoint_final.pth is missing"),
    "no record": (RECORD, lambda old: b"{", RECORD),
    "no model": (".pth", lambda old: None, "expected a trained model"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_named(tmp_path, images, trained, fault):
    ending, change, message = FAULTS[fault]
    file = altered(export(output=tmp_path / "m.zip", model_folder=trained), ending, change)
    with pytest.raises(CheckpointError, match=message):
        run(images, tmp_path / "out", file)


@pytest.mark.parametrize(
    "name", ["fold_4/checkpoint_final.pth", "fold_0/checkpoint_best.pth", "sam3d_postprocessing.json"]
)
def test_a_file_that_was_not_exported_with_a_model_is_refused(tmp_path, images, trained, name):
    file = export(output=tmp_path / "m.zip", model_folder=trained)
    with zipfile.ZipFile(file, "a") as archive:
        (plans,) = (entry for entry in archive.namelist() if entry.endswith("plans.json"))
        archive.writestr(plans.replace("plans.json", name), b"{}")
    with pytest.raises(CheckpointError, match=rf"m.zip: {name} is not one of the files that were written"):
        run(images, tmp_path / "out", file)


def test_the_first_stage_of_a_cascade_is_seen_to_be_whole_too(tmp_path, images):
    model = make_cascade_model(tmp_path / "results")
    file = export(output=tmp_path / "m.zip", model_folder=model)
    other = altered(file, "3d_lowres/plans.json", lambda old: old[:-2] + b" }")
    with pytest.raises(CheckpointError, match=r"altered.zip: plans.json is damaged"):
        run(images, tmp_path / "out", other)


def test_what_is_no_model_says_so(tmp_path, images):
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(CheckpointError, match=r"text.zip: expected a zip file with a model"):
        run(images, tmp_path / "out", tmp_path / "text.zip")


def test_stock_nnunet_installs_it(tmp_path, images, trained):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    file = export(output=tmp_path / "m.zip", model_folder=trained)
    results = tmp_path / "stock"
    results.mkdir()
    environment = os.environ | {"nnUNet_results": str(results), "nnUNet_raw": "", "nnUNet_preprocessed": ""}
    install = "from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point as f; f()"
    subprocess.run([sys.executable, "-c", install, str(file)], env=environment, check=True, capture_output=True)
    (folder,) = (results / "Dataset901_Tiny").iterdir()
    for fold in (0, 1):
        weights = torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
        assert {"trainer_name", "init_args", "network_weights"} <= weights.keys()
    assert nnUNetPredictor.auto_detect_available_folds(str(folder), "checkpoint_final.pth") == [0, 1]
    run(images, tmp_path / "a", folder)
    run(images, tmp_path / "b", trained)
    assert same(maps_in(tmp_path / "a"), maps_in(tmp_path / "b"))


def test_a_zip_of_stock_nnunets_with_another_plan_is_read(tmp_path, images):
    model = make_model(tmp_path / "results", labels=LABELS)
    other = model.rename(model.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"))
    with zipfile.ZipFile(tmp_path / "stock.zip", "w") as archive:
        for file in (path for path in other.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(other.parents[1]))
    assert run(images, tmp_path / "out", tmp_path / "stock.zip").written == ["a", "b", "c"]
