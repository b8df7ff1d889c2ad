"""--overwrite-target-spacing: nnU-Net's meaning and axes, told in the plan, and gone with the next planning."""

import json

import pytest
from phantoms import make_raw_dataset

from sam3dnet.errors import PlanError
from sam3dnet.network.cost import training_cost, training_seconds
from sam3dnet.planning.planner import plan_dataset
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.settings.planning import PlanningSettings

DATASET = "Dataset963_Spacing"


@pytest.fixture
def folders(tmp_path):
    found = activate_folders(tmp_path)
    make_raw_dataset(found.raw / DATASET, num_cases=2, shape=(20, 18, 12), spacing_mm=(0.7, 1.1, 3.0))
    return found


def plan(folders, spacing_mm=None):
    file = plan_dataset(
        DATASET,
        folders,
        cost=training_cost,
        seconds=training_seconds,
        encoder="tiny",
        progress=False,
        target_spacing_mm=spacing_mm,
    )
    return file, json.loads(file.read_text())


def spacing_of(content):
    return content["configurations"]["3d_fullres"]["spacing"]


def test_it_is_given_as_the_reader_gives_images_told_and_changes_back(folders, caplog):
    _, planned = plan(folders)
    assert planned["transpose_forward"] == [2, 0, 1]
    assert spacing_of(planned) == pytest.approx([3.0, 0.7, 1.1])
    _, asked = plan(folders, [1.0, 2, 5.0])
    assert asked["transpose_forward"] == [2, 0, 1]
    assert spacing_of(asked) == [5.0, 1.0, 2.0]
    told = next(d for d in asked["sam3d"]["decisions"] if d["name"] == "spacing")
    assert (told["value"], told["source"]) == ([1.0, 2.0, 5.0], "user")
    assert "for this planning alone; the median over the cases is 0.7 x 1.1 x 3" in told["reason"]
    assert not caplog.text
    _, again = plan(folders)
    assert again == planned
    assert "SAM3DPlans.json is no longer 1 x 2 x 5 mm, which --overwrite-target-spacing asked for" in caplog.text
    caplog.clear()
    plan(folders)
    assert not caplog.text


def test_it_wins_over_a_change_by_hand(folders, caplog):
    file, planned = plan(folders)
    planned["configurations"]["3d_fullres"]["spacing"] = [4.0, 1.0, 1.0]
    file.write_text(json.dumps(planned))
    _, asked = plan(folders, [1.0, 2.0, 5.0])
    assert spacing_of(asked) == [5.0, 1.0, 2.0]
    assert "changed by hand, gives way to --overwrite-target-spacing" in caplog.text
    file.write_text(
        json.dumps(
            asked
            | {"configurations": {"3d_fullres": asked["configurations"]["3d_fullres"] | {"spacing": [6.0, 1.0, 1.0]}}}
        )
    )
    caplog.clear()
    _, kept = plan(folders)
    assert spacing_of(kept) == [6.0, 1.0, 1.0]
    assert "kept as changed by hand: [6.0, 1.0, 1.0]" in caplog.text
    assert "no longer" not in caplog.text


@pytest.mark.parametrize(
    "spacing_mm", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0], [1.0, 1.0, float("inf")]]
)
def test_what_is_no_spacing_is_refused(spacing_mm):
    with pytest.raises(PlanError, match="expected three millimetres above 0, Z Y X"):
        PlanningSettings(datasets=[1], overwrite_target_spacing=spacing_mm)
