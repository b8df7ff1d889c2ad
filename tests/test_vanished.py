"""Objects that are lost when cases are resampled are counted and told."""

import pickle

from sam3dnet.planning.vanished import find_vanished


def store(folder, case, **places):
    locations = {(1, 2): [0] * places["organ"], 2: [0] * places["speck"]}
    (folder / f"{case}.pkl").write_bytes(pickle.dumps({"class_locations": locations}))


def test_lost_objects_are_told_by_class(tmp_path, caplog):
    store(tmp_path, "a", organ=10, speck=0)
    store(tmp_path, "b", organ=10, speck=3)
    store(tmp_path, "c", organ=10, speck=0)
    store(tmp_path, "d", organ=10, speck=0)  # has none in its file either
    classes = {
        "organ": {"label_values": [1, 2], "cases": ["a", "b", "c", "d"], "voxels": [9, 9, 9, 9]},
        "speck": {"label_values": [2], "cases": ["a", "b", "c"], "voxels": [1, 7, 3]},
    }
    assert find_vanished(tmp_path, classes) == {"speck": ["a", "c"]}
    (message,) = caplog.messages
    assert "speck has 4 voxels in the files and none at the planned spacing in 2 of 3 cases: a, c" in message
    caplog.clear()
    store(tmp_path, "a", organ=10, speck=1)
    store(tmp_path, "c", organ=10, speck=1)
    assert find_vanished(tmp_path, classes) == {} and not caplog.messages
