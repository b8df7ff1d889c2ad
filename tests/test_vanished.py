"""Objects that are lost when cases are resampled are counted and told."""

import json
from types import SimpleNamespace

from cascades import CASCADE, FULLRES, LOWRES, plan_cascade
from nnunetv2.training.dataloading import nnunet_dataset

from sam3dnet.planning.vanished import find_vanished, tell_vanished
from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.records import remove_case

DATASET = "Dataset961_Vanished"


def stored(**voxels):
    """Preprocessed cases, of whose classes so many voxels were drawn."""
    locations = {case: {(1, 2): [0] * organ, 2: [0] * speck} for case, (organ, speck) in voxels.items()}
    return lambda folder: (
        lambda same_folder: SimpleNamespace(
            identifiers=list(voxels), load_case=lambda case: (None, None, None, {"class_locations": locations[case]})
        )
    )


def test_lost_objects_are_told_by_class(tmp_path, caplog, monkeypatch):
    cases = stored(a=(10, 0), b=(10, 3), c=(10, 0), d=(10, 0))  # d has none in its file either
    monkeypatch.setattr(nnunet_dataset, "infer_dataset_class", cases)
    classes = {
        "organ": {"label_values": [1, 2], "cases": ["a", "b", "c", "d"], "voxels": [9, 9, 9, 9]},
        "speck": {"label_values": [2], "cases": ["a", "b", "c"], "voxels": [1, 7, 3]},
    }
    assert find_vanished(tmp_path, classes) == {"speck": ["a", "c"]}
    (message,) = caplog.messages
    assert "speck has 4 voxels in the files and none at the planned spacing in 2 of 3 cases: a, c" in message
    caplog.clear()
    monkeypatch.setattr(nnunet_dataset, "infer_dataset_class", stored(a=(10, 1), b=(10, 1), c=(10, 1), d=(10, 0)))
    assert find_vanished(tmp_path, classes) == {} and not caplog.messages


def test_cases_and_configurations_that_were_not_made_are_left_alone(tmp_path, caplog):
    folders = activate_folders(tmp_path)
    file = plan_cascade(folders, DATASET, num_cases=2)
    preprocess_dataset(DATASET, folders, configurations=[LOWRES, FULLRES], num_processes=0, progress=False)
    fingerprint = json.loads((file.parent / "dataset_fingerprint.json").read_text())
    remove_case(file.parent / "SAM3DPlans_3d_lowres", "case_1")  # as after an interruption
    classes = fingerprint["sam3d"]["classes"]
    assert any("case_1" in measures["cases"] for measures in classes.values())
    assert find_vanished(file.parent / "SAM3DPlans_3d_lowres", classes) == {}
    (file.parent / "SAM3DPlans_3d_lowres" / "case_0.b2nd").write_text("damaged")
    tell_vanished(file, [FULLRES, CASCADE])
    assert not caplog.messages
