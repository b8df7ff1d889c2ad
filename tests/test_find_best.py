"""The best model or ensemble, and post-processing: stock nnU-Net's results on the same predictions."""

import json
import pickle
import shutil
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from phantoms import write_volume
from tiny_models import LABELS, REGIONS, make_checkpoint, make_dataset_json, make_plans

from sam3dnet.cli import find_best as command
from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.evaluation.find_best import find_best
from sam3dnet.evaluation.plain_pickles import holds_plain_values
from sam3dnet.inference.postprocessing import FILE
from sam3dnet.preprocessing.folders import Folders, activate_folders
from sam3dnet.settings.find_best import FindBestSettings

pytestmark = pytest.mark.filterwarnings("ignore:Mean of empty slice")

NAME = "Dataset941_Best"
SHAPE = (5, 9, 12)
OURS, STOCK = "nnUNetTrainerSAM3D", "nnUNetTrainer"
FULLRES, LOWRES = f"{OURS}__SAM3DPlans__3d_fullres", f"{OURS}__SAM3DPlans__3d_lowres"


@pytest.fixture(autouse=True)
def threads_in_place_of_processes(monkeypatch):
    """nnU-Net works in pools of new processes, each of which takes seconds to start."""
    monkeypatch.setattr("multiprocessing.get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))


@pytest.fixture
def folders(tmp_path):
    return activate_folders(tmp_path)


def truth_of(case, labels):
    """Draw an organ, and in it a lesion."""
    first, second = [label for label in (1, 2, 700) if label in np.hstack([*labels.values()])]
    truth = np.zeros(SHAPE, np.uint16)
    truth[1:4, 2:6, 2 + case % 2 : 10] = first
    truth[2:4, 3:5, 4:6] = second
    return truth, first, second


def make_dataset(folders, cases=5, labels=LABELS, folds=5):
    dataset = folders.preprocessed / NAME
    (dataset / "gt_segmentations").mkdir(parents=True)
    names = [f"case_{number}" for number in range(cases)]
    for number, name in enumerate(names):
        write_volume(truth_of(number, labels)[0], dataset / "gt_segmentations" / f"{name}.nii.gz")
    splits = [
        {"train": [name for n, name in enumerate(names) if n % folds != fold], "val": names[fold::folds]}
        for fold in range(folds)
    ]
    (dataset / "splits_final.json").write_text(json.dumps(splits))


def make_crossvalidation(folders, model=FULLRES, labels=LABELS, folds=5, error=0, npz=True, trained=True):
    """Write what training leaves: label maps with an island of each class, and where wanted their probabilities."""
    folder = folders.results / NAME / model
    splits = json.loads((folders.preprocessed / NAME / "splits_final.json").read_text())
    for fold in range(folds):
        (folder / f"fold_{fold}" / "validation").mkdir(parents=True)
        if trained:
            (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
        for name in splits[fold]["val"]:
            labels_ZYX, first, second = truth_of(int(name[5:]), labels)
            labels_ZYX[2, 5, 2 : 2 + error] = 0
            labels_ZYX[1, 2, 8] = second  # in the organ
            labels_ZYX[0, 0, 0 : 1 + error] = first
            labels_ZYX[4, 8, 10 : 11 + error] = second
            stem = folder / f"fold_{fold}" / "validation" / name
            write_volume(labels_ZYX, stem.with_name(f"{name}.nii.gz"))
            if npz:
                write_probabilities(stem, labels_ZYX, first, second, labels, error)
    plans, (_, plans_name, configuration) = make_plans("resample_torch_fornnunet", 1), model.split("__")
    plans |= {"dataset_name": NAME, "plans_name": plans_name}
    plans["configurations"] = {configuration: plans["configurations"]["3d_fullres"]}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(make_dataset_json(1, labels)))
    (folders.preprocessed / NAME / f"{plans_name}.json").write_text(json.dumps(plans))
    return folder


def write_probabilities(stem, labels_ZYX, first, second, labels, error):
    """Be the surer the smaller the error."""
    where = [labels_ZYX == second] if labels is REGIONS else [labels_ZYX == first, labels_ZYX == second]
    where = [labels_ZYX > 0, *where] if labels is REGIONS else [labels_ZYX == 0, *where]
    high, low = 0.9 - 0.1 * error, 0.05
    values = np.stack([np.where(one, high, low) for one in where]).astype(np.float32)
    np.savez_compressed(stem.with_name(f"{stem.name}.npz"), probabilities=values)
    places = {"origin": (-11.0, 23.0, 5.0), "spacing": (1.1, 0.7, 3.0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
    properties = {"sitk_stuff": places, "spacing": [3.0, 0.7, 1.1], "class_locations": {1: np.ones((2, 4), int)}}
    stem.with_name(f"{stem.name}.pkl").write_bytes(pickle.dumps(properties))


def find(folders, **options):
    return find_best(FindBestSettings(NAME, num_processes=2, **options), folders)


def snapshot(folder):
    """Read all that nnU-Net writes, but for the lines to type and what only we write."""
    kept = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in (FILE, "inference_instructions.txt"):
            content = json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()
            kept[str(file.relative_to(folder))] = content
    return kept


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("errors", [(0, 1), (1, 0), (1, 1)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nnU-Net leaves a file open
def test_results_are_those_of_stock_find_best_configuration(folders, tmp_path, labels, errors):
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    make_dataset(folders, labels=labels)
    models = []
    for model, error in zip((FULLRES, LOWRES.replace("SAM3DPlans", "OtherPlans")), errors, strict=True):
        make_crossvalidation(folders, model, labels, error=error)
        trainer, plans, configuration = model.split("__")
        models.append({"plans": plans, "configuration": configuration, "trainer": trainer})
    models.sort(key=lambda one: "__".join((one["trainer"], one["plans"], one["configuration"])))
    before = tmp_path / "before"
    shutil.copytree(folders.results, before)
    find_best_configuration(NAME, models, num_processes=2)
    stock = snapshot(folders.results)
    shutil.rmtree(folders.results)
    before.rename(folders.results)
    found = find(folders)
    ours = snapshot(folders.results)
    assert stock.keys() <= ours.keys()
    assert {name: ours[name] for name in stock} == stock
    information = stock[f"{NAME}/inference_information.json"]
    assert found.best.dice == information["best_model_or_ensemble"]["result_on_crossval_pre_pp"]
    assert len(found.scored) == 3


def test_post_processing_of_each_model_is_stored_and_predictions_apply_it(folders):
    make_dataset(folders)
    first, second = (make_crossvalidation(folders, model, error=n) for n, model in enumerate((FULLRES, LOWRES)))
    found = find(folders, no_ensembling=True)
    assert found.best.name == FULLRES
    for model in (first, second):
        content = json.loads((model / FILE).read_text())
        stock = json.loads((model / "crossval_results_folds_0_1_2_3_4" / "postprocessing.json").read_text())
        assert content["keep_largest"] == [[1, 2], [2]]
        assert [step["labels_or_regions"] for step in stock["postprocessing_kwargs"]] == [[1, 2], 2]
        assert content["folds"] == [0, 1, 2, 3, 4] and content["dice_before"] < content["dice_after"] <= 1
    assert found.postprocessing.keep_largest == ((1, 2), (2,))
    assert "It applies the post-processing by itself: it keeps the largest component of all that is" in found.text
    line = f"sam3d_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {NAME} -c 3d_fullres -p SAM3DPlans -f 0 1 2 3 4"
    assert line in found.text.splitlines()
    written = (folders.results / NAME / "inference_instructions.txt").read_text()
    assert found.text.endswith(written.rstrip("\n"))


def test_small_objects_go_of_classes_that_have_several(folders):
    make_dataset(folders)
    model = make_crossvalidation(folders, npz=False)
    places = (folders.preprocessed / NAME / "gt_segmentations", *model.glob("fold_*/validation"))
    for file in (file for place in places for file in place.glob("*.nii.gz")):
        labels_ZYX = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        labels_ZYX[0, 7:9, 4:6] = 2  # a second lesion everywhere
        write_volume(labels_ZYX, file)
    found = find(folders)
    content = json.loads((model / FILE).read_text())
    island_mm3 = pytest.approx(np.prod(sitk.ReadImage(str(file)).GetSpacing()))
    assert [2] not in content["keep_largest"] and [1, 2] not in content["keep_largest"]
    assert [(one["labels"], one["up_to_mm3"]) for one in content["min_volumes"]] == [([2], island_mm3)]
    said = "takes out objects of lesion up to 2.31 mm3"
    assert f"Post-processing of the best: {said}" in found.text or f", then {said}" in found.text
    assert f"{said}." in found.text.partition("It applies the post-processing by itself: it ")[2]


def make_winning_ensemble(folders):
    """Two models, each of which errs where the other is sure."""
    make_dataset(folders)
    for model, wrong in ((FULLRES, np.s_[0:2]), (LOWRES, np.s_[3:5])):
        folder = make_crossvalidation(folders, model)
        for file in folder.glob("fold_*/validation/*.npz"):
            truth = truth_of(int(file.stem[5:]), LABELS)[0]
            values = np.stack([np.where(truth == label, 0.9, 0.05) for label in range(3)])
            values[:, wrong] = np.array([0.2, 0.4, 0.4])[:, None, None, None] + 0.1 * values[:, wrong]
            write_volume(values.argmax(0).astype(np.uint8), file.with_suffix(".nii.gz"))
            np.savez_compressed(file, probabilities=values.astype(np.float32))


def test_an_ensemble_that_is_best_is_told_with_all_lines_to_type(folders):
    make_winning_ensemble(folders)
    found = find(folders, root=folders.results.parent)
    merged = folders.results / NAME / "ensembles" / f"ensemble___{FULLRES}___{LOWRES}___0_1_2_3_4"
    assert found.best.folder == merged
    lines = found.text.splitlines()
    for number, configuration in enumerate(("3d_fullres", "3d_lowres"), start=1):
        line = (
            f"sam3d_predict -i INPUT_FOLDER -o OUTPUT_FOLDER_MODEL_{number} -d {NAME} -c {configuration} -p SAM3DPlans"
        )
        assert f"{line} --root {folders.results.parent} -f 0 1 2 3 4 --save-probabilities" in lines
    assert "nnUNetv2_ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER" in lines
    assert (merged / "postprocessing.pkl").is_file() and not (merged.parent / FILE).exists()
    (merged / "of_a_case_that_is_gone.nii.gz").write_bytes(b"which would be scored")
    assert find(folders).best.dice == found.best.dice


def test_of_ensembles_without_probabilities_is_said_what_to_type(folders, caplog):
    make_dataset(folders)
    first, second = make_crossvalidation(folders), make_crossvalidation(folders, LOWRES)
    (first / "fold_1" / "validation" / "case_1.npz").write_bytes(b"PK half")
    (second / "fold_3" / "validation" / "case_3.pkl").unlink()
    assert len(find(folders).scored) == 2
    for model, fold, name in ((FULLRES, 1, "3d_fullres"), (LOWRES, 3, "3d_lowres")):
        line = f"sam3d_train {NAME} {fold} -c {name} -p SAM3DPlans --validate-only --save-probabilities"
        assert f"no ensembles with {model}, it lacks probabilities; type: {line}\n" in f"{caplog.text}\n"


def test_models_of_other_classes_are_not_averaged(folders, caplog):
    make_dataset(folders)
    make_crossvalidation(folders)
    other = make_crossvalidation(folders, LOWRES)
    content = json.loads((other / "dataset.json").read_text())
    content["labels"] = {"background": 0, "lesion": 1, "organ": 2}
    (other / "dataset.json").write_text(json.dumps(content))
    assert len(find(folders).scored) == 2
    assert "no ensemble of" in caplog.text


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


def test_a_pickle_that_would_run_code_is_not_loaded(folders, tmp_path):
    make_dataset(folders)
    make_crossvalidation(folders)
    other = make_crossvalidation(folders, LOWRES)
    (other / "fold_0" / "validation" / "case_0.pkl").write_bytes(pickle.dumps({"spacing": Bomb()}))
    assert len(find(folders).scored) == 2
    plain = {"spacing": np.float64(1.0), "shape": (1, 2), "seen": {1: np.ones((2, 4))}, "name": "a"}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(plain, protocol))
        assert holds_plain_values(tmp_path / "a.pkl")
    assert not holds_plain_values(tmp_path / "b.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda fold: shutil.rmtree(fold),
            r"fold 2 not trained; type: sam3d_train {name} 2 -c 3d_fullres -p SAM3DPlans",
        ),
        (
            lambda fold: shutil.rmtree(fold / "validation"),
            r"fold 2 not validated; type: sam3d_train {name} 2 -c 3d_fullres -p SAM3DPlans --validate-only",
        ),
        (
            lambda fold: (fold / "validation" / "case_2.nii.gz").rename(fold / "validation" / "case_7.nii.gz"),
            r"fold 2 validated on other cases than the splits say: case_2, case_7; type: sam3d_train {name} 2 .*-only",
        ),
        (
            lambda fold: shutil.copy(fold / "validation" / "case_2.nii.gz", fold.with_name("fold_3") / "validation"),
            r"fold 3 validated on other cases than the splits say: case_2; type",
        ),
        (
            lambda fold: (fold / "validation" / "case_2.nii.gz").write_bytes(b"half"),
            r"case_2: damaged, or not on the grid of the truth in .*gt_segmentations; type: sam3d_train {name} 2 .*",
        ),
        (
            lambda fold: write_volume(np.ones((5, 9, 11), np.uint8), fold / "validation" / "case_2.nii.gz"),
            r"case_2: damaged, or not on the grid of the truth",
        ),
    ],
)
def test_what_a_model_lacks_is_said_with_the_line_to_type(folders, change, message, caplog):
    make_dataset(folders)
    change(make_crossvalidation(folders) / "fold_2")
    message = message.format(name=NAME)
    with pytest.raises(
        DatasetError,
        match=rf"no model of {NAME} was validated on all of the folds 0 1 2 3 4; type what .*\n    .*{message}",
    ):
        find(folders)
    make_crossvalidation(folders, LOWRES)
    assert find(folders).best.name == LOWRES
    assert f"Warning: left out {FULLRES}: " in caplog.text


def trained_on(fold, *names):
    torch.save(make_checkpoint({}, sam3d={"training_cases": names}), fold / "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda fold: shutil.rmtree(fold / "validation"), "not validated"),
        (
            lambda fold: (fold / "validation" / "case_2.nii.gz").rename(fold / "validation" / "case_7.nii.gz"),
            "validated on other cases than the splits say: case_2, case_7",
        ),
        (lambda fold: None, "validated on cases that it was trained on: case_2"),
    ],
)
def test_weights_that_have_seen_their_cases_are_trained_again(folders, change, what):
    make_dataset(folders)
    model = make_crossvalidation(folders)
    trained_on(model / "fold_2", "case_2", "case_4")
    trained_on(model / "fold_3", "case_0", "case_1")
    change(model / "fold_2")
    line = f"sam3d_train {NAME} 2 -c 3d_fullres -p SAM3DPlans"
    why = r"\(fold 2 again, since it was trained on what it validates on now: case_2\)"
    with pytest.raises(DatasetError, match=rf"\n    {FULLRES}: fold 2 {what}; type: {line} {why}$"):
        find(folders)


def test_cases_that_a_fold_trains_and_validates_on_are_meant_so(folders):
    make_dataset(folders)
    trained_on(make_crossvalidation(folders) / "fold_2", "case_2", "case_4")
    file = folders.preprocessed / NAME / "splits_final.json"
    splits = json.loads(file.read_text())
    splits[2]["train"].append("case_2")
    file.write_text(json.dumps(splits))
    assert find(folders).best.name == FULLRES


def test_fewer_folds_where_they_are_asked_for(folders):
    make_dataset(folders)
    model = make_crossvalidation(folders, folds=3)
    with pytest.raises(DatasetError, match=r"fold 3 4 not trained; type: sam3d_train .* 3 .*; sam3d_train .* 4 "):
        find(folders)
    found = find(folders, folds=["0", "fold2"])
    assert "-f 0 2" in found.text
    assert (model / "crossval_results_folds_0_2" / "summary.json").is_file()
    assert json.loads((model / FILE).read_text())["folds"] == [0, 2]
    with pytest.raises(PlanError, match=r"fold 5: the dataset has the folds 0 to 4"):
        find(folders, folds=[5])
    with pytest.raises(PlanError, match=r"fold \"all\" validates on cases that it has seen"):
        find(folders, folds=["all"])


def test_folds_that_validate_the_same_cases_are_named(folders):
    make_dataset(folders)
    file = folders.preprocessed / NAME / "splits_final.json"
    splits = json.loads(file.read_text())
    file.write_text(json.dumps([splits[0], splits[0]]))
    make_crossvalidation(folders, folds=2)
    with pytest.raises(
        DatasetError, match=r"folds 0 1 validate some cases several times, as the splits say: case_0; .*-f"
    ):
        find(folders)
    assert "-f 0" in find(folders, folds=[0]).text


def test_few_cases_have_as_many_folds(folders):
    make_dataset(folders, cases=3, folds=3)
    make_crossvalidation(folders, folds=3)
    assert "-f 0 1 2" in find(folders).text
    (folders.preprocessed / NAME / "splits_final.json").unlink()
    with pytest.raises(PlanError, match=r"splits_final.json: not found; .*two cases or more"):
        find(folders)


def test_which_models_are_considered(folders, caplog):
    make_dataset(folders)
    names = [FULLRES, LOWRES, f"{OURS}__Other__3d_fullres", f"{STOCK}__nnUNetPlans__3d_fullres"]
    for name in names:
        make_crossvalidation(folders, name, npz=False)
    considered = {one.name for one in find(folders).scored}
    assert considered == set(names[:3])
    assert {one.name for one in find(folders, plans=["SAM3DPlans"], configurations=["3d_lowres"]).scored} == {LOWRES}
    found = find(folders, trainers=[STOCK], plans=["nnUNetPlans"])
    assert [one.name for one in found.scored] == [names[3]]
    assert f"sam3d_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {NAME} -c 3d_fullres -p nnUNetPlans" in found.text
    caplog.clear()
    find(folders, trainers=[STOCK, OURS])
    line = f"nnUNetv2_train {NAME} 3d_fullres 0 -tr {STOCK} -p nnUNetPlans --val --npz; nnUNetv2_train"
    assert line in caplog.text
    with pytest.raises(DatasetError, match=r"there are .*; train first, or choose with -tr, -p and -c"):
        find(folders, configurations=["2d"])
    shutil.rmtree(folders.results / NAME)
    with pytest.raises(DatasetError, match=r"expected trained models, .*; there is none"):
        find(folders)


def test_a_model_that_another_trainer_has_too_is_named_by_its_folder(folders):
    make_dataset(folders)
    model = make_crossvalidation(folders)
    make_crossvalidation(folders, f"{STOCK}__SAM3DPlans__3d_fullres")
    assert f"-m {model} -f 0 1" in find(folders).text


def test_what_only_nnunet_predicts_is_told_with_its_command(folders):
    make_dataset(folders)
    model = make_crossvalidation(folders)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 4]
    (model / "plans.json").write_text(json.dumps(plans))
    lines = find(folders).text.splitlines()
    line = f"nnUNetv2_predict -d {NAME} -i INPUT_FOLDER -o OUTPUT_FOLDER -f 0 1 2 3 4 -tr {OURS}"
    assert f"{line} -c 3d_fullres -p SAM3DPlans" in lines
    assert lines[-1].startswith("nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP -pp_pkl_file")


def test_a_mistake_of_a_user_is_one_line(folders, capsys):
    make_dataset(folders)
    assert command.main([NAME, "--root", str(folders.results.parent), "-f", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sam3d_find_best: ") and error.count("\n") == 1
    shutil.rmtree(folders.preprocessed / NAME / "gt_segmentations")
    (folders.raw / NAME).mkdir(parents=True)
    assert command.main([NAME, "--root", str(folders.results.parent)]) == 2
    assert "expected the true label maps" in capsys.readouterr().err


def test_options_reach_the_search(monkeypatch, tmp_path, capsys):
    from sam3dnet.evaluation import find_best as module

    seen = []
    monkeypatch.setattr(module, "find_best", lambda *given: seen.append(given) or SimpleNamespace(text="the best"))
    line = "941 -c A B -p P -tr T U -f 0 2 --no-ensembling --workers 3"
    assert command.main([*line.split(), "--root", str(tmp_path)]) == 0
    options = {"configurations": ["A", "B"], "plans": ["P"], "trainers": ["T", "U"], "folds": ["0", "2"]}
    settings = FindBestSettings("941", root=tmp_path, no_ensembling=True, num_processes=3, **options)
    assert [one for one, _ in seen] == [settings]
    assert isinstance(seen[0][1], Folders)
    assert capsys.readouterr().out == "the best\n"
