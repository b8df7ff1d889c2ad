"""Cases of configurations that were not preprocessed again are told where they are not what they would be now."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from cascades import FULLRES, LOWRES, plan_cascade
from phantoms import make_raw_dataset

from sam3dnet.cli.command import run_command
from sam3dnet.planning.asked import line_to_preprocess, tell_stale
from sam3dnet.planning.encoder import SamWeights, choose_encoder
from sam3dnet.planning.likeness import PLANNED_LIKE
from sam3dnet.planning.methods import MethodChoice, Text
from sam3dnet.planning.plan import Plan, load_plan
from sam3dnet.planning.rules import Decision, choose_budget, choose_prompts
from sam3dnet.preprocessing import records
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.settings.function import function_of
from sam3dnet.settings.planning import PlanningSettings

DATASET, OTHER = "Dataset962_Left", "SAM3DPlans_unetr_3d_fullres"
AGAIN = f"preprocess {OTHER} again, by the --method that planned it, before it is trained"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Of which low resolution is preprocessed, and under the name of another plan once more."""
    folders = activate_folders(tmp_path)
    plan = load_plan(plan_cascade(folders, DATASET, num_cases=3))
    preprocess_dataset(DATASET, folders, configurations=[LOWRES], num_processes=0, progress=False)
    shutil.copytree(plan.path.parent / "SAM3DPlans_3d_lowres", plan.path.parent / OTHER)
    return plan


def test_cases_whose_files_changed_or_went_are_told(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tell_stale(plan, [FULLRES])
    assert not caplog.messages
    raw = tmp_path / "nnUNet_raw" / DATASET
    for file in (*raw.glob("imagesTr/case_0_*"), *raw.glob("labelsTr/case_0.*")):
        file.unlink()
    label = raw / "labelsTr" / "case_2.nii.gz"
    label.write_bytes(label.read_bytes() + b"\0")
    tell_stale(plan, [FULLRES])
    of_own, of_other = (f"Warning: 1 cases of {name} were left as they are, and" for name in (LOWRES, OTHER))
    assert caplog.messages == [
        f"{of_own} are no longer in the raw dataset: case_0; add it to -c before it is trained",
        f"{of_own} their files have changed or moved since: case_2; add it to -c before it is trained",
        f"{of_other} are no longer in the raw dataset: case_0; {AGAIN}",
        f"{of_other} their files have changed or moved since: case_2; {AGAIN}",
    ]
    caplog.clear()
    tell_stale(plan, [LOWRES])
    assert len(caplog.messages) == 2 and all(OTHER in message for message in caplog.messages)


def test_cases_that_are_not_preprocessed_yet_are_told(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_raw_dataset(tmp_path / "nnUNet_raw" / DATASET, num_cases=4)
    for file in plan.path.parent.glob("SAM3DPlans_3d_lowres/case_1*"):
        file.unlink()
    tell_stale(plan, [FULLRES])
    of_own, of_other = (f"cases of {name} have not been preprocessed:" for name in (LOWRES, OTHER))
    assert f"Warning: 2 {of_own} case_1, case_3; add it to -c before it is trained" in caplog.messages
    assert f"Warning: 1 {of_other} case_3; {AGAIN}" in caplog.messages


@pytest.mark.parametrize("noted", [True, False])
def test_cases_of_another_version_of_nnunet_are_told_apart_from_those_of_another_plan(
    plan: Plan, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    if not noted:  # as records were before
        for file in plan.path.parent.glob("*/sam3d_records/*.json"):
            record = json.loads(file.read_text())
            del record["nnunetv2"]
            file.write_text(json.dumps(record))
    tell_stale(plan, [FULLRES])
    assert not caplog.messages
    monkeypatch.setattr(records, "version", lambda _: "2.8.99")
    tell_stale(plan, [FULLRES])
    (told,) = caplog.messages
    assert "3 cases of 3d_lowres were left as they are, and are of another version of nnU-Net: case_0, case_1" in told
    caplog.clear()
    plan.content["configurations"][LOWRES]["spacing"] = [5.0, 2.0, 2.0]
    tell_stale(plan, [FULLRES])
    (told,) = caplog.messages
    assert "3 cases of 3d_lowres were left as they are, and are of another plan: case_0, case_1" in told


def test_the_line_to_type_is_that_of_the_plan(plan: Plan) -> None:
    line = f"sam3d_plan_and_preprocess -d {DATASET}"
    content = dict(plan.content)
    assert line_to_preprocess(content, FULLRES) == f"{line} --encoder tiny"
    assert line_to_preprocess(content, LOWRES) == f"{line} --encoder tiny -c {LOWRES}"
    choice = MethodChoice("3dsam-adapter", "as-published", "lora")
    content["sam3d"] = {"decisions": [vars(decision) for decision in choice.decisions()]}
    content["plans_name"] = choice.plans_name
    line += " --method 3dsam-adapter"
    assert line_to_preprocess(content, FULLRES) == f"{line} --fidelity as-published --tuning lora"
    content["sam3d"] |= {PLANNED_LIKE: "/models/of mine"}
    assert line_to_preprocess(content, FULLRES) == f"{line} --like '/models/of mine'"


def planned(choice: MethodChoice, *decisions: Decision, **block: Any) -> dict[str, Any]:
    """Give what is read of a plan."""
    said = [*choice.decisions(), *decisions, *([] if choice.prompts else [choose_prompts(False)])]
    arch_kwargs = choice.network_options(regions=False)
    return {
        "dataset_name": DATASET,
        "plans_name": choice.plans_name,
        "configurations": {FULLRES: {"spacing": [3.0, 1.0, 0.8], "architecture": {"arch_kwargs": arch_kwargs}}},
        "sam3d": {"decisions": [vars(decision) for decision in said], **block},
    }


SAMS, MEDSAMS, OWN = None, "medsam", "/weights/own.pth"


def find_weights(named: str | None) -> SamWeights:
    """Give what there is of weights that were named so."""
    own = named == OWN
    return SamWeights({"family": None if own else named or "sam", "name": "a.pth", "path": named if own else None})


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("of_encoder", [("auto", SAMS), ("small", None), ("vit_b", MEDSAMS), ("vit_l", OWN)])
@pytest.mark.parametrize("memory_gb", [None, 7.5])
def test_what_the_plan_says_of_its_options_is_typed_again(
    prompts: bool, of_encoder: tuple[str, str | None], memory_gb: float | None
) -> None:
    size, named = of_encoder
    chosen = choose_encoder(size, 1e9, lambda *_: find_weights(named), lambda *_: None)
    content = planned(
        MethodChoice("3dsam-adapter", prompts=prompts),
        choose_budget("cuda", memory_gb, 10**10)[1],
        chosen.decision,
        weights=chosen.weights,
        target_spacing_mm=[2.5, 0.75, 1.0],
    )
    asked = PlanningSettings(
        datasets=[DATASET],
        method="3dsam-adapter",
        no_prompts=not prompts,
        encoder=size,
        sam_checkpoint=named,
        gpu_memory_target=memory_gb,
        overwrite_target_spacing=[2.5, 0.75, 1.0],
    )
    assert typed(line_to_preprocess(content, FULLRES)) == asked


def typed(line: str) -> PlanningSettings:
    """Read a line as the command does."""
    asked: list[PlanningSettings] = []
    command = function_of(PlanningSettings, asked.append, "plan_and_preprocess")
    program, *words = shlex.split(line)
    assert run_command(command, program, words) == 0
    return asked[0]


def test_a_spacing_changed_by_hand_is_not_typed_over() -> None:
    content = planned(MethodChoice(), target_spacing_mm=[3.0, 1.0, 1.0])
    content["sam3d"]["as_planned"] = {f"configurations.{FULLRES}.spacing": [3.0, 1.0, 0.8]}
    asked_for = " --overwrite-target-spacing 3.0 1.0 1.0"
    assert line_to_preprocess(content, FULLRES) == f"sam3d_plan_and_preprocess -d {DATASET}{asked_for}"
    content["configurations"][FULLRES]["spacing"] = [4.0, 1.0, 0.8]
    assert line_to_preprocess(content, FULLRES) == f"sam3d_plan_and_preprocess -d {DATASET}"


def test_a_network_of_the_users_own_is_named() -> None:
    content = planned(MethodChoice("network", network="package.module:Own"))
    assert content["plans_name"] == "SAM3DPlans_Own"
    line = f"sam3d_plan_and_preprocess -d {DATASET} --method network --network package.module:Own"
    assert line_to_preprocess(content, FULLRES) == line


def test_weights_of_a_text_encoder_that_the_plan_does_not_name_are_mentioned() -> None:
    text = Text(("liver",), "ViT-L-14", [[[0.5]]])
    with_text, without = (
        planned(MethodChoice("refsam3d", text=one), text_model=one and one.model) for one in (text, None)
    )
    line = f"sam3d_plan_and_preprocess -d {DATASET} --method refsam3d"
    assert line_to_preprocess(without, FULLRES) == line
    told = f"{line} --clip-model ViT-L-14, with the --clip-weights and --phrases of its planning"
    assert line_to_preprocess(with_text, FULLRES) == told


def test_plans_that_no_options_lead_to_are_preprocessed_by_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as nnunet

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        nnunet, "preprocess", lambda *given, configurations, **_: asked.append((*given, configurations))
    )
    copied = planned(MethodChoice()) | {"plans_name": "Mine"}
    stock = {"dataset_name": DATASET, "plans_name": "nnUNetPlans", "configurations": {LOWRES: {}}}
    for content, configuration in ((copied, FULLRES), (stock, LOWRES)):
        words = shlex.split(line_to_preprocess(content, configuration))
        monkeypatch.setattr("sys.argv", words)
        assert words[0] == "nnUNetv2_preprocess"
        nnunet.preprocess_entry()
        assert asked.pop() == ([962], content["plans_name"], [configuration])
