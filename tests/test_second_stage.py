"""The second stage of a cascade is planned with the channels that it gets; cases are preprocessed as asked for."""

import json
import math

import pytest
from cascades import CASCADE, FULLRES, LOWRES, plan_cascade
from commands import train_fold, validate_fold
from phantoms import make_raw_dataset

from sam3dnet.cli.plan_and_preprocess import plan_and_preprocess
from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.network.cost import training_cost
from sam3dnet.planning import rules
from sam3dnet.planning.asked import choose_configurations, require_plannable, tell_stale
from sam3dnet.planning.decisions import memory_decision
from sam3dnet.planning.edits import changes_by_hand, with_changes
from sam3dnet.planning.fitting import CropFitter
from sam3dnet.planning.methods import METHODS, MethodChoice
from sam3dnet.planning.plan import load_plan
from sam3dnet.planning.rules import choose_budget
from sam3dnet.planning.second_stage import SecondStage, count_labels
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset

LABELS = {"background": 0, "organ": 1, "lesion": 2}
DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": LABELS}
DATASET = "Dataset961_Asked"


def fullres(**changes):
    arch_kwargs = {"encoder": "small", "pretrained": False, "patch_size": [16, 24, 24], "token_stride": [2, 4, 4]}
    return {
        "batch_size": 4,
        "patch_size": [16, 24, 24],
        "batch_dice": False,
        "spacing": [2.0, 1.0, 1.0],
        "median_image_size_in_voxels": [60.0, 100.0, 90.0],
        "architecture": {"network_class_name": "x", "arch_kwargs": arch_kwargs},
        **changes,
    }


def cost(arch_kwargs, input_channels, _classes, batch_size):
    """A byte a value of the input, half of it where activations are recomputed."""
    values = batch_size * math.prod(arch_kwargs["patch_size"]) * input_channels
    return values // 2 if arch_kwargs.get("checkpointing") else values


def plan_stage(limit, made=cost, method="sam3d"):
    budget, _ = choose_budget("cuda", 1.0, None)
    fitter = CropFitter(made, budget, 1, 3, {})
    fitter.budget = type(budget)(**{**vars(budget), "bytes": limit})
    return SecondStage(fitter, DATASET_JSON, {"classes": {}}).of(fullres(), [0, 1, 2], method)


def test_full_resolutions_step_is_inherited_where_it_fits():
    stage = plan_stage(4 * 16 * 24 * 24 * 3)
    assert stage.changes == {}
    channels, memory = stage.decisions(memory_decision)
    assert (channels.name, channels.value) == ("input channels", 3)
    assert "1 of the image, and one for each of 2 labels" in channels.reason
    assert memory.value == f"{stage.step_bytes / 1e9:.2f} GB"


@pytest.mark.parametrize(
    ("share", "batch_size", "checkpointing", "smaller_crop"),
    [(0.99, 3, False, False), (0.5, 2, False, False), (0.3, 2, True, False), (0.2, 2, True, True)],
)
def test_else_a_smaller_step_is_planned_in_the_planners_order(share, batch_size, checkpointing, smaller_crop):
    limit = int(share * 4 * 16 * 24 * 24 * 3)
    stage = plan_stage(limit)
    arch_kwargs = stage.changes["architecture"]["arch_kwargs"]
    assert stage.changes.keys() == {"batch_size", "patch_size", "batch_dice", "architecture"}
    assert stage.changes["batch_size"] == batch_size
    assert arch_kwargs.get("checkpointing", False) is checkpointing
    assert (math.prod(stage.changes["patch_size"]) < 16 * 24 * 24) is smaller_crop
    assert arch_kwargs["patch_size"] == stage.changes["patch_size"]
    assert stage.step_bytes <= limit
    step = stage.decisions(memory_decision)[1]
    assert f"batch {batch_size}" in step.value and "does not fit with these channels" in step.reason


def test_what_does_not_fit_at_all_is_left_out_with_the_reason():
    stage = plan_stage(10)
    assert stage.changes is None
    (decision,) = stage.decisions(memory_decision)
    assert decision.value is None and "does not fit the memory at any crop size" in decision.reason


def test_a_network_of_the_users_own_need_not_take_further_channels():
    def refuses(*_):
        raise RuntimeError("expected 1 channel")

    (decision,) = plan_stage(10**9, refuses, "network").decisions(memory_decision)
    assert "does not take these channels (RuntimeError: expected 1 channel)" in decision.reason
    with pytest.raises(RuntimeError, match="expected 1 channel"):
        plan_stage(10**9, refuses)


def test_labels_are_counted_as_nnunet_does():
    assert count_labels(DATASET_JSON) == 2
    assert count_labels({"labels": LABELS | {"ignore": 3}}) == 2
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    assert count_labels({"labels": regions, "regions_class_order": [1, 2, 3]}) == 3


@pytest.mark.filterwarnings("ignore")  # those of peers' packages
@pytest.mark.parametrize("name", [name for name in METHODS if name != "network"])
def test_every_method_takes_the_channels_of_labels(name):
    choice = MethodChoice(name)
    size = [32, 64, 64] if choice.method.peer else [16, 16, 16]
    stride = [16] * 3 if name == "refsam3d" else [4, 4, 4]
    factors = [[1, 1, 1]] + [[2, 2, 2]] * (stride[0].bit_length() - 1)
    encoder = "none" if choice.method.peer else "tiny"
    arch_kwargs = {"encoder": encoder, "pretrained": False, "patch_size": size, "token_stride": stride}
    arch_kwargs |= {"strides": factors, **choice.network_options(False)}
    few, many = (
        training_cost(arch_kwargs, channels, 3, 2, network_class=choice.method.network_class) for channels in (1, 9)
    )
    assert 0 < few < many


@pytest.fixture
def folders(tmp_path):
    return activate_folders(tmp_path)


def test_values_that_are_added_to_what_a_stage_inherits_are_kept(folders):
    content = {
        "configurations": {
            FULLRES: {"batch_size": 4, "spacing": [2.0, 1.0, 1.0]},
            CASCADE: {"inherits_from": FULLRES, "previous_stage": LOWRES},
        },
        "sam3d": {"decisions": []},
    }
    edited = json.loads(json.dumps(with_changes(content, {}, "p.json")))
    edited["configurations"][CASCADE]["batch_size"] = 2
    edited["configurations"][FULLRES]["added"] = 1
    found = changes_by_hand(edited)
    assert found == {f"configurations.{CASCADE}.batch_size": 2}
    again = with_changes(content, found, "p.json")
    assert again["configurations"][CASCADE]["batch_size"] == 2
    assert "planned was what 3d_cascade_fullres inherits" in again["sam3d"]["decisions"][0]["reason"]
    assert changes_by_hand(json.loads(json.dumps(again))) == found
    smaller = {**content, "configurations": {FULLRES: content["configurations"][FULLRES]}}
    assert CASCADE not in with_changes(smaller, found, "p.json")["configurations"]


def test_without_a_name_the_default_and_what_is_there_are_preprocessed(folders, caplog):
    plan = load_plan(plan_cascade(folders, DATASET, num_cases=2))
    assert choose_configurations(plan, None) == [FULLRES]
    assert choose_configurations(plan, [CASCADE, LOWRES, CASCADE]) == [CASCADE, LOWRES]
    preprocess_dataset(DATASET, folders, configurations=[LOWRES], num_processes=0, progress=False)
    assert not (plan.path.parent / "SAM3DPlans_3d_fullres").exists()
    assert sorted(choose_configurations(plan, None)) == [FULLRES, LOWRES]
    tell_stale(plan, [FULLRES])
    assert not caplog.text
    content = json.loads(plan.path.read_text())
    content["configurations"][LOWRES]["spacing"] = [5.0, 2.0, 2.0]
    plan.path.write_text(json.dumps(content))
    tell_stale(load_plan(plan.path), [FULLRES])
    assert "2 cases of 3d_lowres were left as they are, and are of another plan: case_0, case_1; add it" in caplog.text
    line = rf"2 cases were preprocessed by .*-d {DATASET} --encoder tiny -c 3d_lowres, which keeps"
    with pytest.raises(DatasetError, match=line):
        train_fold(DATASET, 0, folders, configuration=LOWRES, device="cpu")


def test_the_second_stage_shares_the_cases_of_full_resolution_whatever_its_crop(folders):
    file = plan_cascade(folders, DATASET, num_cases=2)
    content = json.loads(file.read_text())
    own = json.loads(json.dumps(content["configurations"][FULLRES]["architecture"]))
    own["arch_kwargs"]["patch_size"] = [8, 8, 12]
    content["configurations"] = {  # in any order
        CASCADE: content["configurations"][CASCADE] | {"patch_size": [8, 8, 12], "architecture": own},
        **{name: content["configurations"][name] for name in (FULLRES, LOWRES)},
    }
    file.write_text(json.dumps(content))
    preprocess_dataset(DATASET, folders, configurations=[CASCADE], num_processes=0, progress=False)
    stored = file.parent / "SAM3DPlans_3d_fullres"
    before = {path.name: path.stat().st_mtime_ns for path in stored.glob("*.b2nd")}
    preprocess_dataset(DATASET, folders, configurations=[FULLRES], num_processes=0, progress=False)
    assert {path.name: path.stat().st_mtime_ns for path in stored.glob("*.b2nd")} == before
    told = r"2 of 2 cases have no label map .*sam3d_train \S+ FOLD -c 3d_lowres, for each FOLD of 0 1"
    with pytest.raises(DatasetError, match=told):
        train_fold(DATASET, 0, folders, configuration=CASCADE, device="cpu")
    with pytest.raises(DatasetError, match=rf"1 of 1 cases have no label map .*sam3d_train {DATASET} 0 -c 3d_lowres$"):
        validate_fold(DATASET, 0, folders, configuration=CASCADE, device="cpu")


def test_maps_of_another_grid_and_trained_folds_are_told(folders):
    import blosc2
    import numpy as np

    plan_cascade(folders, DATASET, num_cases=2)
    preprocess_dataset(DATASET, folders, configurations=[FULLRES], num_processes=0, progress=False)
    first = folders.results / DATASET / "nnUNetTrainerSAM3D__SAM3DPlans__3d_lowres"
    maps = first / "predicted_next_stage" / CASCADE
    maps.mkdir(parents=True)
    (first / "fold_1").mkdir()
    (first / "fold_1" / "checkpoint_final.pth").touch()
    for name in ("case_0", "case_1"):
        blosc2.asarray(np.zeros((3, 4, 5), np.uint8), urlpath=str(maps / f"{name}.b2nd"))
    told = (
        r"case_0: its shape is \(3, 4, 5\), that of the preprocessed image \(\d+, \d+, \d+\).*"
        rf"sam3d_train {DATASET} 0 -c 3d_lowres; sam3d_train {DATASET} 1 -c 3d_lowres --validate-only$"
    )
    with pytest.raises(DatasetError, match=told):
        train_fold(DATASET, 0, folders, configuration=CASCADE, device="cpu")


def test_names_that_no_plan_has_are_told_before_any_work(folders):
    with pytest.raises(
        PlanError, match=r"-c 2d: not a configuration of our plans; there are 3d_lowres, 3d_fullres, 3d_c"
    ):
        require_plannable(["2d"], folders.preprocessed / "none.json")
    file = folders.preprocessed / "own.json"
    file.write_text(json.dumps({"configurations": {"mine": {}}}))
    require_plannable(["mine", FULLRES], file)
    make_raw_dataset(folders.raw / DATASET, num_cases=2)
    with pytest.raises(PlanError, match=r"-c 3d_lowers: .*did you mean 3d_lowres"):
        plan_and_preprocess(datasets=[DATASET], configurations=["3d_lowers"], root=folders.raw.parent, device="cpu")
    assert not (folders.preprocessed / DATASET).exists()


def test_a_large_ct_gets_what_is_asked_for(folders, capsys, monkeypatch):
    """Small images have no low resolution, and say so; larger ones are preprocessed as asked."""
    options = {"root": folders.raw.parent, "device": "cpu", "encoder": "tiny", "num_processes": 0}
    small, large = DATASET, "Dataset962_Large"
    make_raw_dataset(folders.raw / small, num_cases=2)
    told = r"3d_lowres is not planned for .*: a median image of .* voxels is not large; there are 3d_fullres$"
    with pytest.raises(PlanError, match=told):
        plan_and_preprocess(datasets=[small], configurations=[LOWRES], **options)
    monkeypatch.setattr(rules, "CARD_CROP_VOXELS", 48**3)  # so that a test's image is a large one
    make_raw_dataset(folders.raw / large, num_cases=2, shape=(80, 110, 110), spacing_mm=(1.5, 1.2, 1.2))
    (file,) = plan_and_preprocess(datasets=[large], configurations=[LOWRES], **options)
    plan = load_plan(file)
    assert plan.configurations.keys() == {LOWRES, FULLRES, CASCADE}
    printed = capsys.readouterr().out
    assert "input channels (3d_cascade_fullres)" in printed and "memory of a step (3d_cascade_fullres)" in printed
    folder = folders.preprocessed / large
    assert len(list((folder / "SAM3DPlans_3d_lowres").glob("*.pkl"))) == 2
    assert not (folder / "SAM3DPlans_3d_fullres").exists()
    line = "holds no preprocessed case; run sam3d_plan_and_preprocess -d"
    with pytest.raises(DatasetError, match=f"{line} {large} --encoder tiny first"):
        train_fold(large, 0, folders, configuration=CASCADE, device="cpu")
    for file in (folder / "SAM3DPlans_3d_lowres").glob("*.pkl"):
        file.unlink()
    with pytest.raises(DatasetError, match=f"{line} {large} --encoder tiny -c 3d_lowres first"):
        train_fold(large, 0, folders, configuration=LOWRES, device="cpu")
