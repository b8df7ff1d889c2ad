"""What a user changes in a plans file stays when the dataset is planned again, and is told."""

import json

from sam3dnet.planning.edits import changes_by_hand, editable_values, with_changes


def plan(**changes):
    """A plan as it is read back from its file."""
    content = {
        "plans_name": "SAM3DPlans",
        "configurations": {"3d_fullres": {"spacing": [2.0, 1.0, 1.0], "batch_size": 2, "kwargs": {"order": 3}}},
        "sam3d": {"mirror_axes": [2], "decisions": []},
    }
    content["configurations"]["3d_fullres"].update(changes)
    return content


def written(content):
    return json.loads(json.dumps(with_changes(content, {}, "SAM3DPlans.json")))


def test_values_are_named_by_their_path():
    assert editable_values(plan()) == {
        "configurations.3d_fullres.spacing": [2.0, 1.0, 1.0],
        "configurations.3d_fullres.batch_size": 2,
        "configurations.3d_fullres.kwargs.order": 3,
        "sam3d.mirror_axes": [2],
    }


def test_changes_are_found_and_kept():
    edited = written(plan())
    assert changes_by_hand(edited) == {}
    edited["sam3d"]["mirror_axes"] = [0, 1]
    edited["configurations"]["3d_fullres"]["spacing"] = [4.0, 2.0, 2.0]
    found = changes_by_hand(edited)
    assert found == {"sam3d.mirror_axes": [0, 1], "configurations.3d_fullres.spacing": [4.0, 2.0, 2.0]}
    again = with_changes(plan(batch_size=3), found, "SAM3DPlans.json")  # planned otherwise in the meantime
    assert again["sam3d"]["mirror_axes"] == [0, 1]
    assert (
        again["configurations"]["3d_fullres"]
        == plan(batch_size=3, spacing=[4.0, 2.0, 2.0])["configurations"]["3d_fullres"]
    )
    told = {decision["name"]: decision for decision in again["sam3d"]["decisions"]}
    assert told.keys() == found.keys()
    assert "planned was [2]" in told["sam3d.mirror_axes"]["reason"]
    assert changes_by_hand(json.loads(json.dumps(again))) == found  # and so for ever


def test_changes_of_what_is_no_longer_planned_are_left_out():
    again = with_changes(plan(), {"configurations.3d_lowres.batch_size": 5}, "SAM3DPlans.json")
    assert again["configurations"].keys() == {"3d_fullres"}
    assert not again["sam3d"]["decisions"]


def test_a_plan_that_does_not_say_what_was_planned_has_no_changes():
    assert changes_by_hand(plan()) == changes_by_hand({}) == {}
