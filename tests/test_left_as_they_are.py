"""Cases of configurations that were not preprocessed again are told where they are not what they would be now."""

import shutil
from pathlib import Path

import pytest
from cascades import FULLRES, LOWRES, plan_cascade
from phantoms import make_raw_dataset

from sam3dnet.planning.asked import line_to_preprocess, tell_stale
from sam3dnet.planning.likeness import PLANNED_LIKE
from sam3dnet.planning.methods import MethodChoice
from sam3dnet.planning.plan import Plan, load_plan
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset

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


def test_the_line_to_type_is_that_of_the_plan(plan: Plan) -> None:
    line = f"sam3d_plan_and_preprocess -d {DATASET}"
    content = dict(plan.content)
    assert line_to_preprocess(content, FULLRES) == line
    assert line_to_preprocess(content, LOWRES) == f"{line} -c {LOWRES}"
    choice = MethodChoice("3dsam-adapter", "as-published", "lora")
    content["sam3d"] = {"decisions": [vars(decision) for decision in choice.decisions()]}
    line += " --method 3dsam-adapter"
    assert line_to_preprocess(content, FULLRES) == f"{line} --fidelity as-published --tuning lora"
    content["sam3d"] |= {PLANNED_LIKE: "/models/of mine"}
    assert line_to_preprocess(content, FULLRES) == f"{line} --like '/models/of mine'"
    del content["sam3d"]
    assert line_to_preprocess(content, FULLRES) == (
        f"nnUNetv2_preprocess -d {DATASET} -plans_name SAM3DPlans -c {FULLRES}"
    )
