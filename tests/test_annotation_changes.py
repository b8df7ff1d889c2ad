"""A dataset that is annotated: what others do to its folders is noticed, and cases that are not whole wait."""

import errno
import shutil
from contextlib import suppress

import pytest
from annotated import NAME, drawn, edit, label_in_folder, make_annotated, number_of_cases, open_project, raw

from sam3dnet.annotation import labelled, learning
from sam3dnet.annotation.history import TrainingBegun


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


def test_what_is_edited_in_the_folder_is_kept(root):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
    edit(root, "test_0", 2)
    with open_project(root) as project:
        assert label_in_folder(root, "test_0").max() == 2
        assert [event.kind for event in project.history.events] == ["accepted", "found"]
        project.go_back(1)
        assert label_in_folder(root, "test_0").max() == 1
        project.go_back(2)
        assert label_in_folder(root, "test_0").max() == 2


@pytest.mark.parametrize("change", ["accepted", "returned"])
def test_what_is_edited_in_the_folder_while_it_is_annotated_is_kept(root, change):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        edit(root, "test_0", 2)
        if change == "accepted":
            project.accept("test_0", drawn(root, "test_0", 0))
        else:
            project.go_back(1)
        assert label_in_folder(root, "test_0").max() == (0 if change == "accepted" else 1)
        now = project.state.labels["test_0"]
        assert now.kind == "accepted" and now.version == (3 if change == "accepted" else 1)
        found = next(event for event in project.history.events if event.kind == "found")
        project.go_back(found.number)
        assert label_in_folder(root, "test_0").max() == 2


def test_a_case_that_is_taken_out_of_the_folder_waits_again(root):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
    for part in ("imagesTr/test_0_0000", "labelsTr/test_0"):
        (raw(root) / f"{part}.nii.gz").unlink()
    with open_project(root) as project:
        assert "test_0" in project.waiting() and not project.state.labels


def test_an_image_without_its_label_map_waits_and_is_not_trained_on(root, not_run, caplog):
    (raw(root) / "labelsTr" / "case_1.nii.gz").unlink()
    with open_project(root) as project:
        assert project.num_labelled == 1 and project.waiting("name")[0] == "case_1"
        assert project.begin_training(1.0).cases == ("case_0",)
        assert "an image or the label map is missing: case_1" in caplog.text
        project.accept("case_1", drawn(root, "case_1"))
        assert project.num_labelled == 2 and label_in_folder(root, "case_1").any()


def test_a_label_map_that_was_deleted_lets_its_image_wait_again(root):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
    (raw(root) / "labelsTr" / "test_0.nii.gz").unlink()
    with open_project(root) as project:
        assert "test_0" in project.waiting() and project.history.events[-1].kind == "removed"


def test_a_training_whose_cases_are_gone_ends_and_another_begins(root, not_run):
    with open_project(root) as project:
        gone = TrainingBegun(training=1, cases=("case_0", "gone"), held_back=(), start=None, minutes=1.0)
        project.history.add(gone)
        begun = project.begin_training(1.0)
        ended = project.history.events[-2]
        assert ended.kind == "trained" and not ended.used and "gone is no longer there" in ended.why
        assert begun.training == 2 and begun.cases == ("case_0", "case_1") and project.state.training == begun


def test_a_training_that_cannot_be_prepared_has_not_begun(root, not_run, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_project(root) as project:
        monkeypatch.setattr(learning, "_link", fail)
        with pytest.raises(OSError, match="No space left"):
            project.begin_training(1.0)
        assert project.state.training is None and not project.history.events


def test_folders_of_a_history_that_is_gone_are_not_taken_for_new_trainings(root, not_run):
    (root / "nnUNet_results" / NAME / "sam3d_annotation" / "0004").mkdir(parents=True)
    with open_project(root) as project:
        assert project.begin_training(1.0).training == 5


def test_going_back_leaves_out_a_case_whose_image_is_gone(root, caplog):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
        project.accept("test_1", drawn(root, "test_1"))
        project.go_back(0)
        for folder in (root / "pool", raw(root) / "sam3d_annotation" / "images"):
            (folder / "test_0_0000.nii.gz").unlink()
        project.go_back(2)
        assert list(project.state.labels) == ["test_1"] and "the image of test_0 is no more" in caplog.text
        assert label_in_folder(root, "test_1").any()
    with open_project(root) as project:
        assert list(project.state.labels) == ["test_1"]


def test_what_could_not_be_written_is_caught_up_with(root, monkeypatch):
    done = labelled.copy_whole

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_project(root) as project:
        monkeypatch.setattr(labelled, "copy_whole", fail)
        with pytest.raises(OSError, match="No space left"):
            project.accept("test_0", drawn(root, "test_0"))
        assert project.is_behind and number_of_cases(root) == 2
        with pytest.raises(OSError, match="No space left"):
            project.accept("test_1", drawn(root, "test_1"))
        assert [event.kind for event in project.history.events] == ["accepted"]
        monkeypatch.setattr(labelled, "copy_whole", done)
        project.accept("test_1", drawn(root, "test_1"))
        assert not project.is_behind and number_of_cases(root) == 4
        assert label_in_folder(root, "test_0").any() and label_in_folder(root, "test_1").any()


def test_a_case_that_judges_models_goes_on_to_when_its_label_map_is_edited(root, not_run):
    with open_project(root) as project:
        assert [project.accept(f"test_{n}", drawn(root, f"test_{n}")).held_back for n in range(2)] == [False, True]
    edit(root, "test_1", 2)
    with open_project(root) as project:
        assert project.state.labels["test_1"].kind == "found" and project.state.held_back == ("test_1",)
        begun = project.begin_training(1.0)
        assert begun.held_back == ("test_1",) and "test_1" not in begun.cases
        assert project.accept("test_1", drawn(root, "test_1")).held_back


@pytest.mark.parametrize("noticed", ["at the start", "while it is annotated"])
def test_an_earlier_version_that_is_put_back_by_hand_stays(root, noticed):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        project.accept("test_0", drawn(root, "test_0", 2))
        number = len(project.history.events)
        label = raw(root) / "labelsTr" / "test_0.nii.gz"
        shutil.copy(project._versions.file("test_0", 1), label)
        if noticed == "while it is annotated":
            project.go_back(number)
            assert label_in_folder(root, "test_0").max() == 2
            project.go_back(number + 1)
    with open_project(root) as project:
        assert project.state.labels["test_0"].version == 1 and label_in_folder(root, "test_0").max() == 1
        project.accept("test_1", drawn(root, "test_1"))
        project.go_back(len(project.history.events))
        assert label_in_folder(root, "test_0").max() == 1
        assert project.accept("test_0", drawn(root, "test_0", 0)).version == 3


def put_back(project, root, case, version=1):
    """Copy an earlier version, and the image, into the dataset by hand."""
    shutil.copy(project._versions.file(case, version), raw(root) / "labelsTr" / f"{case}.nii.gz")
    shutil.copy(root / "pool" / f"{case}_0000.nii.gz", raw(root) / "imagesTr")


def take_out_by_hand(root, case):
    (raw(root) / "labelsTr" / f"{case}.nii.gz").unlink()


@pytest.mark.parametrize("noticed", ["at a start", "before going back", "by a training"])
def test_a_label_map_of_a_case_that_was_gone_back_from_counts_again(root, not_run, noticed, caplog):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 2))
        project.go_back(0)
        put_back(project, root, "test_0")
        if noticed == "before going back":
            project.go_back(0)
            assert "test_0" in project.waiting() and not project.state.labels
            project.go_back(3)  # after it was found
        elif noticed == "by a training":
            assert "test_0" in project.begin_training(1.0).cases and "test_0" in project.state.labels
    with open_project(root) as project:
        assert "put a label map of test_0 into the folder again" in caplog.text
        assert project.history.events[2].kind == "found" and project.state.labels["test_0"].version == 1
        project.accept("test_1", drawn(root, "test_1"))
        project.go_back(len(project.history.events))
        assert label_in_folder(root, "test_0").max() == 2 and number_of_cases(root) == 4


def test_a_label_map_that_was_put_back_stays_when_something_else_is_cut_off(root, monkeypatch):
    done = labelled.copy_whole

    def fail(*_):
        raise KeyboardInterrupt

    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 2))
    take_out_by_hand(root, "test_0")
    with open_project(root) as project:
        assert "test_0" in project.waiting()
        put_back(project, root, "test_0")
        monkeypatch.setattr(labelled, "copy_whole", fail)
        with suppress(KeyboardInterrupt):
            project.accept("test_1", drawn(root, "test_1"))
        monkeypatch.setattr(labelled, "copy_whole", done)
    with open_project(root) as project:
        assert sorted(project.state.labels) == ["test_0", "test_1"]
        assert label_in_folder(root, "test_0").max() == 2 and label_in_folder(root, "test_1").any()


def test_a_case_that_judged_models_judges_again_when_its_label_map_is_put_back(root, not_run):
    with open_project(root) as project:
        assert [project.accept(f"test_{n}", drawn(root, f"test_{n}")).held_back for n in range(2)] == [False, True]
    take_out_by_hand(root, "test_1")
    with open_project(root) as project:
        assert project.state.held_back == ()
        put_back(project, root, "test_1")
        begun = project.begin_training(1.0)
        assert begun.held_back == ("test_1",) and "test_1" not in begun.cases


def test_a_case_that_was_learned_from_meanwhile_does_not_judge_again(root):
    with open_project(root) as project:
        assert [project.accept(f"test_{n}", drawn(root, f"test_{n}")).held_back for n in range(2)] == [False, True]
    take_out_by_hand(root, "test_1")
    with open_project(root) as project:
        project.history.add(TrainingBegun(training=1, cases=("test_1",), held_back=(), start=None, minutes=1.0))
        put_back(project, root, "test_1")
    with open_project(root) as project:
        assert "test_1" in project.state.labels and project.state.held_back == ()


def test_going_back_lists_the_dataset_as_often_however_many_cases_stay(root, monkeypatch):
    as_it_is, listed, counts = labelled.LabelledDataset.cases, [], []
    monkeypatch.setattr(labelled.LabelledDataset, "cases", lambda self: listed.append(0) or as_it_is(self))
    with open_project(root) as project:
        for names in (("test_0", "test_1"), ("test_2", "test_3")):
            for name in names:
                before = len(project.history.events)
                project.accept(name, drawn(root, name))
            listed.clear()
            project.go_back(before)
            counts.append(len(listed))
            assert names[1] in project.waiting() and names[0] not in project.waiting()
            project.go_back(before + 1)
    assert counts[0] == counts[1]
