"""What a user changes in a plans file stays when the dataset is planned again, and is told."""

import json

from sam3dnet.planning.edits import changes_by_hand, editable_values, tell_changes, with_changes


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


def network(crop, **arguments):
    """A network as a plan has it."""
    return {"network_class_name": "x", "arch_kwargs": {"patch_size": crop, "checkpointing": False, **arguments}}


def crops(content, name):
    configuration = content["configurations"][name]
    return configuration["patch_size"], configuration["architecture"]["arch_kwargs"]["patch_size"]


def test_an_edited_crop_is_that_of_the_network_too():
    planned = plan(patch_size=[8, 16, 12], architecture=network([8, 16, 12]))
    edited = written(planned)
    edited["configurations"]["3d_fullres"]["patch_size"] = [4, 8, 8]
    for _ in range(2):  # planned again, and again
        found = changes_by_hand(edited)
        assert found == {"configurations.3d_fullres.patch_size": [4, 8, 8]}
        edited = json.loads(json.dumps(with_changes(planned, found, "p.json")))
        assert crops(edited, "3d_fullres") == ([4, 8, 8], [4, 8, 8])
    edited["configurations"]["3d_fullres"]["patch_size"] = [4, 4, 8]
    edited = json.loads(json.dumps(with_changes(planned, changes_by_hand(edited), "p.json")))
    assert crops(edited, "3d_fullres") == ([4, 4, 8], [4, 4, 8])
    edited["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["patch_size"] = [2, 4, 8]
    edited = with_changes(planned, changes_by_hand(edited), "p.json")
    assert crops(edited, "3d_fullres") == ([4, 4, 8], [2, 4, 8])  # the user's, who wrote both
    assert crops(planned, "3d_fullres") == ([8, 16, 12], [8, 16, 12])


def test_a_stage_that_inherits_its_network_gets_one_of_its_own_with_its_crop():
    planned = plan(patch_size=[8, 16, 12], architecture=network([8, 16, 12]))
    planned["configurations"] = {
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        **planned["configurations"],
    }
    edited = written(planned)
    edited["configurations"]["3d_cascade_fullres"]["patch_size"] = [4, 8, 8]
    edited["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["checkpointing"] = True
    made = changes_by_hand(edited)
    for _ in range(2):
        edited = json.loads(json.dumps(with_changes(planned, changes_by_hand(edited), "p.json")))
        assert changes_by_hand(edited) == made
        assert crops(edited, "3d_cascade_fullres") == ([4, 8, 8], [4, 8, 8])
        assert crops(edited, "3d_fullres") == ([8, 16, 12], [8, 16, 12])
        stage = edited["configurations"]["3d_cascade_fullres"]
        assert stage["architecture"] == network([4, 8, 8], checkpointing=True)
        assert stage["inherits_from"] == "3d_fullres"


def test_what_is_kept_and_what_is_dropped_is_told_apart(caplog):
    changes = {
        "sam3d.mirror_axes": [0],
        "configurations.3d_fullres.batch_size": 2,  # planned just so
        "configurations.3d_fullres.kwargs.gone": 4,
        "configurations.3d_lowres.batch_size": 5,
    }
    tell_changes(with_changes(plan(), changes, "p.json"), changes, "p.json")
    assert caplog.messages == [
        "Warning: sam3d.mirror_axes of p.json is kept as changed by hand: [0]",
        "Warning: configurations.3d_fullres.kwargs.gone of p.json, changed by hand to 4, is dropped: the new plan has "
        "no configurations.3d_fullres.kwargs.gone",
        "Warning: configurations.3d_lowres.batch_size of p.json, changed by hand to 5, is dropped: the new plan has no "
        "3d_lowres",
    ]


def test_a_stage_that_was_made_to_inherit_from_itself_is_left_to_those_who_read_the_plan():
    planned = plan(patch_size=[8, 16, 12], architecture=network([8, 16, 12]))
    planned["configurations"]["stage"] = {"inherits_from": "3d_fullres"}
    edited = written(planned)
    edited["configurations"]["stage"] |= {"inherits_from": "stage", "patch_size": 8}
    again = with_changes(planned, changes_by_hand(edited), "p.json")
    assert again["configurations"]["stage"] == {"inherits_from": "stage", "patch_size": 8}
