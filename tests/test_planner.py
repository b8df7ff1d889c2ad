import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from fingerprints import SITUATIONS, Situation

from sam3dnet.errors import PlanError
from sam3dnet.planning import rules
from sam3dnet.planning.asked import require_plannable
from sam3dnet.planning.encoder import SamWeights, no_weights
from sam3dnet.planning.methods import MethodChoice
from sam3dnet.planning.plan import format_decisions, load_plan
from sam3dnet.preprocessing.cases import list_training_cases
from sam3dnet.preprocessing.folders import Folders

STOCK_KEYS = {
    "data_identifier",
    "preprocessor_name",
    "batch_size",
    "patch_size",
    "median_image_size_in_voxels",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
    "architecture",
    "batch_dice",
}
RECORD = {"family": "sam", "name": "sam.pth", "digest": "sha256:0", "bytes": 7, "path": None}


class LinearCost:
    """Bytes of a step: so much for the parameters, so much a voxel; remembers what it was asked."""

    def __init__(self, fixed=2e8, a_voxel=1200):
        self.fixed, self.a_voxel = fixed, a_voxel
        self.asked = []

    def __call__(self, arch_kwargs, input_channels, num_classes, batch_size):
        self.asked.append((arch_kwargs, input_channels, num_classes, batch_size))
        stride_share = (8 / max(arch_kwargs["token_stride"])) ** 3
        return int(self.fixed + batch_size * math.prod(arch_kwargs["patch_size"]) * self.a_voxel * stride_share)


A_VOXEL_S = 3.5e-6


def linear_seconds(arch_kwargs, _channels, _outputs, batch_size):
    return batch_size * math.prod(arch_kwargs["patch_size"]) * A_VOXEL_S


@pytest.fixture
def folders(nnunet_root, tiny_dataset):
    root = Folders(*(nnunet_root / f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")))
    folder = root.preprocessed / tiny_dataset
    kept = {file: file.read_bytes() for file in folder.glob("*.json")} if folder.is_dir() else {}
    yield root
    for file in folder.glob("*.json"):
        file.unlink()
    for file, content in kept.items():
        file.write_bytes(content)


@pytest.fixture(autouse=True)
def no_pool_of_processes(monkeypatch):
    """nnU-Net's planner lists the cases with twelve processes; that they are listed alike is tested elsewhere."""

    def listed(raw_folder, dataset_json):
        cases = list_training_cases(Path(raw_folder), dataset_json)
        return {case.name: {"images": [str(file) for file in case.images], "label": str(case.label)} for case in cases}

    monkeypatch.setattr(
        "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner"
        ".get_filenames_of_train_images_and_targets",
        listed,
    )


@pytest.fixture
def plan_situation(folders, tiny_dataset, monkeypatch):
    """Plan a made-up fingerprint: (situation, device, memory in GB, cost, ...) -> the plan, as stored."""

    def plan(
        situation: Situation, *, device="cpu", gigabytes=None, cost=None, encoder="auto", at_hand=False, **options
    ):
        found = (lambda *_: SamWeights(RECORD)) if at_hand else no_weights
        from sam3dnet.planning.planner import SAM3DPlanner

        folder = folders.preprocessed / tiny_dataset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_fingerprint.json").write_text(json.dumps(situation.fingerprint()))
        monkeypatch.setattr(
            "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner.load_json",
            lambda path: situation.dataset_json() if path.endswith("dataset.json") else situation.fingerprint(),
        )
        planner = SAM3DPlanner(
            tiny_dataset,
            cost=cost or LinearCost(),
            seconds=options.pop("seconds", linear_seconds),
            budget=rules.choose_budget(device, gigabytes, None),
            find_weights=options.pop("find_weights_with", found),
            plans_name="MadeUpPlans",
            **options,
        )
        planner.dataset = {f"case_{i}": {"images": image_of(planner)} for i in range(situation.cases)}
        planner.plan_experiment()
        return load_plan(folder / "MadeUpPlans.json")

    def image_of(planner):
        return next(iter(planner.dataset.values()))["images"]

    return plan


def plan_tiny(folders, tiny_dataset, **options):
    from sam3dnet.planning.planner import plan_dataset

    settings = {"cost": LinearCost(), "seconds": linear_seconds, "progress": False, **options}
    return plan_dataset(tiny_dataset, folders, **settings)


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize(("device", "gigabytes"), [("cpu", None), ("cuda", 8.0), ("cuda", 1.0), ("cuda", 80.0)])
def test_every_situation_gets_a_valid_plan_within_its_budget(plan_situation, name, device, gigabytes):
    cost = LinearCost()
    situation = SITUATIONS[name]
    plan = plan_situation(situation, device=device, gigabytes=gigabytes, cost=cost)
    for configuration in plan.configurations.values():
        patch, stride = configuration.patch_size, configuration.network.token_stride
        assert all(n % s == 0 for n, s in zip(patch, stride, strict=True))
        assert all(
            n < size + s for n, s, size in zip(patch, stride, configuration.median_image_size_in_voxels, strict=True)
        )
        assert configuration.batch_size >= 2
        arch_kwargs = plan.content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        if device == "cpu":
            assert configuration.batch_size * math.prod(patch) <= rules.CPU_COVER_SECONDS / A_VOXEL_S
        else:
            limit = gigabytes * 1e9 * rules.USABLE_SHARE_OF_MEMORY
            assert cost(arch_kwargs, 1, 2, plan.configurations["3d_fullres"].batch_size) <= limit
    assert len(cost.asked) < 30


@pytest.mark.parametrize("gigabytes", [1.0, 2.0, 8.0])
def test_the_crop_makes_use_of_the_memory(plan_situation, gigabytes):
    cost = LinearCost()
    plan = plan_situation(SITUATIONS["huge CT"], device="cuda", gigabytes=gigabytes, cost=cost)
    full = plan.configuration("3d_fullres")
    used = cost.fixed + full.batch_size * math.prod(full.patch_size) * cost.a_voxel
    assert used > 0.75 * gigabytes * 1e9 * rules.USABLE_SHARE_OF_MEMORY


def test_parameters_that_fill_most_of_the_memory_still_leave_a_crop(plan_situation):
    cost = LinearCost(fixed=6.0e9)
    plan = plan_situation(SITUATIONS["huge CT"], device="cuda", gigabytes=8.0, cost=cost, encoder="small")
    used = cost.fixed + 2 * math.prod(plan.configuration("3d_fullres").patch_size) * cost.a_voxel
    assert 6.2e9 < used <= 6.4e9


def test_too_little_memory_is_an_error_that_names_the_way_out(plan_situation):
    with pytest.raises(PlanError, match=r"'small' does not fit 0.2 GB .* smaller one .* larger memory target"):
        plan_situation(SITUATIONS["huge CT"], device="cuda", gigabytes=0.2)


def test_thick_slices_keep_their_plane(plan_situation):
    plan = plan_situation(SITUATIONS["thick-slice CT"], device="cuda", gigabytes=8.0)
    full = plan.configuration("3d_fullres")
    assert full.network.token_stride == (1, 8, 8)
    assert full.network.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    assert full.spacing == (5.0, 0.8, 0.8)


def test_a_huge_image_gets_a_low_resolution_stage_and_a_cascade(plan_situation):
    plan = plan_situation(SITUATIONS["huge CT"], device="cuda", gigabytes=8.0)
    assert set(plan.configurations) == {"3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    low, full = plan.configuration("3d_lowres"), plan.configuration("3d_fullres")
    assert math.prod(low.patch_size) >= 0.2 * math.prod(low.median_image_size_in_voxels)
    assert math.prod(low.median_image_size_in_voxels) < 0.5 * math.prod(full.median_image_size_in_voxels)
    content = plan.content["configurations"]
    assert content["3d_lowres"]["next_stage"] == "3d_cascade_fullres"
    assert content["3d_cascade_fullres"] == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    assert content["3d_fullres"]["batch_dice"] is True
    assert low.network.encoder == full.network.encoder


@pytest.mark.parametrize("name", ["isotropic MR", "tiny crops", "two slices", "one slice", "four modalities"])
def test_images_that_the_crop_sees_get_full_resolution_alone(plan_situation, name):
    plan = plan_situation(SITUATIONS[name], device="cuda", gigabytes=16.0)
    assert set(plan.configurations) == {"3d_fullres"}


@pytest.mark.parametrize(("name", "slices"), [("two slices", 2), ("one slice", 1)])
def test_one_or_two_slices_are_planned_in_3d(plan_situation, name, slices):
    assert plan_situation(SITUATIONS[name]).configuration("3d_fullres").patch_size[0] == slices


def test_cost_is_asked_for_the_channels_and_outputs_of_the_dataset(plan_situation):
    cost = LinearCost()
    plan_situation(SITUATIONS["four modalities"], device="cuda", gigabytes=8.0, cost=cost)
    assert {(channels, classes) for _, channels, classes, _ in cost.asked} == {(4, 3)}


def test_weights_at_hand_give_a_pretrained_encoder_with_finer_tokens_where_affordable(plan_situation):
    roomy = plan_situation(SITUATIONS["isotropic MR"], device="cuda", gigabytes=80.0, at_hand=True)
    tight = plan_situation(SITUATIONS["isotropic MR"], device="cuda", gigabytes=1.0, at_hand=True)
    fine, coarse = (plan.configuration("3d_fullres").network for plan in (roomy, tight))
    assert (fine.encoder, fine.pretrained) == ("vit_b", True)
    assert max(fine.token_stride) == 4
    assert max(coarse.token_stride) > 4


def test_the_plan_says_which_weights_it_was_made_for(plan_situation):
    plan = plan_situation(SITUATIONS["isotropic MR"], device="cuda", gigabytes=80.0, at_hand=True)
    assert plan.content["sam3d"]["weights"] == RECORD
    assert plan_situation(SITUATIONS["isotropic MR"]).content["sam3d"]["weights"] is None


@pytest.mark.parametrize(("times", "encoder"), [(1.4, "vit_b"), (1.6, "none")])
def test_on_a_cpu_the_traced_seconds_decide_and_nothing_is_looked_for_in_vain(plan_situation, times, encoder):
    asked = []

    def seconds(arch_kwargs, *others):
        asked.append(arch_kwargs["encoder"])
        return linear_seconds(arch_kwargs, *others) * (times if arch_kwargs["pretrained"] else 1)

    plan = plan_situation(SITUATIONS["isotropic MR"], at_hand=True, seconds=seconds)
    assert plan.configuration("3d_fullres").network.encoder == encoder
    assert set(asked) == {"vit_b", "small", encoder}
    seen = len(asked)
    on_a_card = plan_situation(SITUATIONS["isotropic MR"], device="cuda", gigabytes=8.0, at_hand=True, seconds=seconds)
    assert on_a_card.configuration("3d_fullres").network.encoder == "vit_b"
    assert len(asked) == seen


def test_weights_that_cannot_be_had_are_one_warning_and_the_reason_in_the_plan(plan_situation, caplog):
    def find(encoder, asked):
        assert (encoder, asked) == ("vit_b", False)
        return SamWeights(RECORD, missing="sam.pth could not be downloaded from there: refused")

    plan = plan_situation(SITUATIONS["isotropic MR"], find_weights_with=find)
    (decision,) = [d for d in plan.decisions if d.name == "encoder"]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == f"Warning: {decision.reason}"
    assert "it would have been vit_b with SAM's weights: sam.pth could not be downloaded from there" in decision.reason
    assert plan.content["sam3d"]["weights"] is None


def test_axes_are_reordered_with_the_objects(plan_situation):
    situation = Situation((0.8, 0.8, 5.0), (400, 300, 30), {"long": (200.0, 40.0, 20.0)})
    plan = plan_situation(situation)
    assert plan.content["transpose_forward"] == [2, 0, 1]
    full = plan.configuration("3d_fullres")
    assert full.spacing == (5.0, 0.8, 0.8)
    assert full.patch_size[1] > full.patch_size[2]


def test_the_window_of_ct_channels_alone_is_written_where_nnunet_reads_it(plan_situation):
    objects = {"organ": (40.0, 40.0, 40.0)}
    situation = Situation((1.0, 1.0, 1.0), (90, 80, 70), objects, ("T1", "CT"))
    plan = plan_situation(situation)
    properties = plan.content["foreground_intensity_properties_per_channel"]
    stock = situation.fingerprint()["foreground_intensity_properties_per_channel"]
    assert properties["0"] == stock["0"]
    assert (properties["1"]["percentile_00_5"], properties["1"]["percentile_99_5"]) == (-150.0, 250.0)
    assert properties["1"]["median"] == stock["1"]["median"]
    assert plan.configuration("3d_fullres").normalization_schemes == ("ZScoreNormalization", "CTNormalization")


def test_many_labels_are_resampled_one_by_one(plan_situation):
    objects = {f"organ {i}": (20.0, 20.0, 20.0) for i in range(30)}
    plan = plan_situation(Situation((1.0, 1.0, 1.0), (90, 80, 70), objects))
    full = plan.content["configurations"]["3d_fullres"]
    assert full["resampling_fn_seg"] == "resample_data_or_seg_to_shape"
    assert full["resampling_fn_seg_kwargs"]["is_seg"] is True
    assert full["resampling_fn_data"] == "resample_torch_fornnunet"


def test_a_plan_has_stock_keys_and_one_block_of_ours(folders, tiny_dataset):
    content = json.loads(plan_tiny(folders, tiny_dataset).read_text())
    assert set(content["configurations"]) == {"3d_fullres"}
    full = content["configurations"]["3d_fullres"]
    assert set(full) == STOCK_KEYS
    assert full["architecture"]["network_class_name"] == "sam3dnet.network.sam3d.SAM3D"
    assert full["architecture"]["_kw_requires_import"] == []
    assert full["architecture"]["arch_kwargs"]["patch_size"] == full["patch_size"]
    assert set(content["sam3d"]) == {
        "version",
        "method",
        "encoder",
        "pretrained",
        "weights",
        "mirror_axes",
        "orientations",
        "sides",
        "single_objects",
        "as_planned",
        "decisions",
        "text_model",
    }
    assert all(decision["reason"] and decision["source"] for decision in content["sam3d"]["decisions"])


def test_companions_of_macos_are_no_cases(folders, tiny_dataset):
    images = folders.raw / tiny_dataset / "imagesTr"
    first = min(file.name for file in images.iterdir())
    companion = images / f"._{first}"
    companion.write_bytes(b"Mac OS X")
    try:
        assert plan_tiny(folders, tiny_dataset).is_file()
    finally:
        companion.unlink()


def test_nnunet_reads_the_plan(folders, tiny_dataset):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(plan_tiny(folders, tiny_dataset)))
    full = manager.get_configuration("3d_fullres")
    assert full.preprocessor_class.__name__ == "DefaultPreprocessor"
    assert (
        np.prod(np.vstack(full.pool_op_kernel_sizes), axis=0).tolist() == full.network_arch_init_kwargs["token_stride"]
    )
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIO"
    dataset_json = json.loads((folders.preprocessed / tiny_dataset / "dataset.json").read_text())
    assert manager.get_label_manager(dataset_json).num_segmentation_heads == len(dataset_json["labels"])


@pytest.mark.parametrize(
    ("spacing", "target"), [((3.0, 0.7, 1.1), (2.5, 0.9, 0.9)), ((5.0, 0.8, 0.8), (5.0, 1.0, 1.0))]
)
def test_resampled_labels_are_a_subset_and_images_keep_a_constant(folders, tiny_dataset, spacing, target):
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    full = PlansManager(str(plan_tiny(folders, tiny_dataset))).get_configuration("3d_fullres")
    labels = np.random.default_rng(0).choice([-1, 0, 2, 5], size=(1, 5, 16, 17)).astype(np.int16)
    shape = compute_new_shape(labels.shape[1:], spacing, target)
    resampled = full.resampling_fn_seg(labels, shape, spacing, target)
    assert resampled.shape == (1, *shape)
    assert set(np.unique(resampled)) <= set(np.unique(labels))
    constant = np.full((2, 5, 16, 17), 3.5, dtype=np.float32)
    for resample in (full.resampling_fn_data, full.resampling_fn_probabilities):
        assert np.allclose(resample(constant, shape, spacing, target), 3.5)


def test_no_2d_configuration_is_planned(folders, tiny_dataset, monkeypatch):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    def refuse(*_args, **_kwargs):
        raise AssertionError("nnU-Net's own planning was called")

    monkeypatch.setattr(ExperimentPlanner, "get_plans_for_configuration", refuse)
    monkeypatch.setattr(ExperimentPlanner, "plan_experiment", refuse)
    assert "2d" not in json.loads(plan_tiny(folders, tiny_dataset).read_text())["configurations"]


def test_the_same_dataset_gives_the_same_plan_byte_for_byte(folders, tiny_dataset):
    first = plan_tiny(folders, tiny_dataset).read_bytes()
    shutil.rmtree(folders.preprocessed / tiny_dataset)
    assert plan_tiny(folders, tiny_dataset).read_bytes() == first


def test_configurations_that_a_user_added_are_kept_and_planned_ones_replaced(folders, tiny_dataset):
    path = plan_tiny(folders, tiny_dataset)
    content = json.loads(path.read_text())
    content["configurations"]["3d_fullres_bs5"] = {"inherits_from": "3d_fullres", "batch_size": 5}
    content["configurations"]["3d_lowres"] = content["configurations"]["3d_fullres"]
    path.write_text(json.dumps(content))
    plan = load_plan(plan_tiny(folders, tiny_dataset))
    assert set(plan.configurations) == {"3d_fullres", "3d_fullres_bs5"}
    assert plan.configuration("3d_fullres_bs5").batch_size == 5
    path.unlink()
    assert set(load_plan(plan_tiny(folders, tiny_dataset)).configurations) == {"3d_fullres"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"configurations": {}, }', "cannot be read as JSON: line 1, column"),
        ('{"configurations": []}', r"configurations must be an object, not \[\]"),
        ('{"configurations": null}', "configurations must be an object, not None"),
        ('{"configuration": {}}', "configurations is missing"),
        ('{"configurations": {"mine": 3}}', "configurations.mine must be an object, not 3"),
        ('{"configurations": {"mine": {"architecture": "x"}}}', "mine.architecture must be an object, not 'x'"),
        ('{"configurations": {}, "sam3d": []}', r"sam3d must be an object, not \[\]"),
        ('{"configurations": {}, "sam3d": {"as_planned": 1}}', "sam3d.as_planned must be an object, not 1"),
    ],
)
def test_a_plan_that_cannot_be_read_is_not_planned_over(folders, tiny_dataset, content, message):
    path = folders.preprocessed / tiny_dataset / "SAM3DPlans.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(PlanError, match=rf"SAM3DPlans.json: .*{message}.*; correct it, or delete the file"):
        require_plannable(None, path)
    with pytest.raises(PlanError, match=message):
        plan_tiny(folders, tiny_dataset)
    assert path.read_text() == content


def test_a_plan_that_fails_leaves_no_file(folders, tiny_dataset):
    (folders.preprocessed / tiny_dataset / "SAM3DPlans.json").unlink(missing_ok=True)
    with pytest.raises(PlanError, match="does not fit"):
        plan_tiny(folders, tiny_dataset, gpu_memory_target_gb=0.1)
    assert not (folders.preprocessed / tiny_dataset / "SAM3DPlans.json").exists()


def test_regions_count_as_outputs_without_background(folders, tiny_dataset, monkeypatch):
    from sam3dnet.preprocessing.cases import output_channels

    assert output_channels({"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}) == 2
    assert output_channels({"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}) == 3


def test_the_table_shows_every_decision(folders, tiny_dataset):
    plan = load_plan(plan_tiny(folders, tiny_dataset))
    table = format_decisions(plan)
    for decision in plan.decisions:
        assert decision.name in table
    patch = " x ".join(str(n) for n in plan.configuration("3d_fullres").patch_size)
    assert patch in table
    assert max(len(line) for line in table.splitlines()) <= 150


def break_plan(content, keys, value):
    for key in keys[:-1]:
        content = content[key]
    if value is KeyError:
        del content[keys[-1]]
    else:
        content[keys[-1]] = value


ARCHITECTURE = ("configurations", "3d_fullres", "architecture")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("sam3d",), KeyError, "no block 'sam3d': another planner made it; plan again"),
        (("sam3d", "version"), 99, "sam3d.version must be at most 1 .or update sam3dnet., not 99"),
        (("dataset_name",), KeyError, "dataset_name is missing; .*plan again"),
        (("configurations",), {}, "configurations must be something that is not empty, not {}"),
        (("configurations", "3d_fullres"), 3, "configurations.3d_fullres must be an object, not 3"),
        (
            ("configurations", "3d_fullres", "patch_size"),
            [8, 0, 8],
            r"patch_size\[1\] must be a whole number",
        ),
        (("configurations", "3d_fullres", "patch_size"), [8, 8], r"3d_fullres.patch_size\[2\] is missing"),
        (("configurations", "3d_fullres", "batch_size"), "2", "3d_fullres.batch_size must be a whole number"),
        (
            ("configurations", "3d_fullres", "spacing"),
            [1, 0, 1],
            r"3d_fullres.spacing\[1\] must be a number above 0, not 0",
        ),
        (("configurations", "3d_fullres", "inherits_from"), "3d_fullres", "without a circle"),
        (
            (*ARCHITECTURE, "network_class_name"),
            "other.Net",
            "network_class_name must be one of sam3dnet.network.sam3d.SAM3D, ",
        ),
        ((*ARCHITECTURE, "arch_kwargs", "strides"), [[1, 1, 1]], "strides must be factors of the token stride"),
        ((*ARCHITECTURE, "arch_kwargs", "pretrained"), 1, "pretrained must be true or false, not 1"),
    ],
)
def test_a_broken_plan_is_an_error_that_names_file_key_and_remedy(
    folders, tiny_dataset, tmp_path, keys, value, message
):
    content = json.loads(plan_tiny(folders, tiny_dataset).read_text())
    break_plan(content, keys, value)
    path = tmp_path / "BrokenPlans.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=f"BrokenPlans.json.*{message}.*(plan again|sam3d)"):
        load_plan(path)


def test_a_missing_or_damaged_plan_is_an_error(tmp_path):
    path = tmp_path / "SAM3DPlans.json"
    with pytest.raises(PlanError, match="not found; plan again"):
        load_plan(path)
    path.write_text('{"a": ')
    with pytest.raises(PlanError, match=r"cannot be read as JSON: .*plan again"):
        load_plan(path)
    path.write_text("[1]")
    with pytest.raises(PlanError, match="holds a list, expected an object"):
        load_plan(path)


def test_an_unknown_configuration_is_an_error_that_lists_what_there_is(folders, tiny_dataset):
    plan = load_plan(plan_tiny(folders, tiny_dataset))
    with pytest.raises(PlanError, match="no configuration '2d'; it has 3d_fullres"):
        plan.configuration("2d")


@pytest.mark.parametrize("prompts", [True, False])
def test_a_network_answers_prompts_unless_that_is_refused(folders, tiny_dataset, prompts):
    plan = load_plan(plan_tiny(folders, tiny_dataset, choice=MethodChoice(prompts=prompts)))
    configuration = plan.content["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["prompts"] is prompts
    (decision,) = [d for d in plan.content["sam3d"]["decisions"] if d["name"] == "prompts"]
    assert decision["value"] is prompts
    assert ("--no-prompts" in decision["reason"]) is not prompts
