"""Objects that are lost when cases are resampled are counted and told."""

from types import SimpleNamespace

from nnunetv2.training.dataloading import nnunet_dataset

from sam3dnet.planning.vanished import find_vanished


def stored(**voxels):
    """Preprocessed cases, of whose classes so many voxels were drawn."""
    locations = {case: {(1, 2): [0] * organ, 2: [0] * speck} for case, (organ, speck) in voxels.items()}
    return lambda folder: (
        lambda same_folder: SimpleNamespace(
            load_case=lambda case: (None, None, None, {"class_locations": locations[case]})
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
