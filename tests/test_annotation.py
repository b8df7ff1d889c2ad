"""A dataset that is annotated: what is accepted is in its folders, whole; nothing is lost, all can be gone back to."""

import json
import shutil
from contextlib import suppress

import nibabel
import numpy as np
import pytest
import readers
import SimpleITK as sitk
import trained_models
from annotated import NAME, drawn, label_in_folder, make_annotated, names_in, number_of_cases, open_project, raw
from tiny_models import make_dataset_json, truncate

from sam3dnet.annotation import labelled
from sam3dnet.annotation.history import History
from sam3dnet.annotation.learning import _weights_of
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import CheckpointError, DatasetError
from sam3dnet.inference.confidence import ENDING
from sam3dnet.preprocessing.verify import verify_dataset


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


def test_what_is_accepted_is_a_case_of_the_dataset(root):
    with open_project(root) as project:
        assert project.waiting() == [f"test_{n}" for n in range(4)]
        event = project.accept("test_1", drawn(root, "test_1"), prompts={"organ": {"points": 2}}, seconds=7.5, by="me")
        assert (event.case, event.version, event.by, event.prompts) == ("test_1", 1, "me", {"organ": {"points": 2}})
        assert project.waiting() == ["test_0", "test_2", "test_3"] and event.model is None and event.corrected
    assert names_in(raw(root) / "imagesTr") == ["case_0_0000", "case_1_0000", "test_1_0000"]
    assert (label_in_folder(root, "test_1") == drawn(root, "test_1")).all()
    image = sitk.ReadImage(str(raw(root) / "imagesTr" / "test_1_0000.nii.gz"))
    label = sitk.ReadImage(str(raw(root) / "labelsTr" / "test_1.nii.gz"))
    assert np.allclose(image.GetOrigin(), label.GetOrigin()) and np.allclose(image.GetSpacing(), label.GetSpacing())
    assert number_of_cases(root) == 3
    assert not [problem for problem in verify_dataset(raw(root), 0) if problem.severity == "error"]


def test_a_label_map_that_is_accepted_anew_has_versions(root):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        project.accept("test_0", drawn(root, "test_0", 2))
        assert label_in_folder(root, "test_0").max() == 2
        project.go_back(1)
        assert label_in_folder(root, "test_0").max() == 1
        project.go_back(2)
        assert label_in_folder(root, "test_0").max() == 2 and number_of_cases(root) == 3
        project.go_back(0)
        assert names_in(raw(root) / "labelsTr") == ["case_0", "case_1"] and number_of_cases(root) == 2
        assert "test_0" in project.waiting()
        project.go_back(4)
        assert label_in_folder(root, "test_0").max() == 2
        with pytest.raises(DatasetError, match="event 9: the history of Dataset975_Annotated has 0 to 6"):
            project.go_back(9)


def test_images_that_are_gone_from_their_folder_are_kept(root):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
        shutil.rmtree(root / "pool")
        shutil.copytree(raw(root) / "imagesTr", root / "pool")  # whatever it is now
        for file in (root / "pool").iterdir():
            file.rename(file.with_name(f"other_{file.name}"))
        project.go_back(0)
        assert "test_0" in project.waiting()
        project.go_back(1)
        assert label_in_folder(root, "test_0").any()


def test_labels_of_before_can_be_corrected_and_gone_back_to(root):
    before = label_in_folder(root, "case_0")
    shutil.copy(raw(root) / "imagesTr" / "case_0_0000.nii.gz", root / "pool")
    with open_project(root) as project:
        assert "case_0" not in project.waiting()
        assert project.accept("case_0", drawn(root, "case_0", 2)).version == 2
        project.go_back(0)
    assert (label_in_folder(root, "case_0") == before).all()
    assert names_in(raw(root) / "imagesTr") == ["case_0_0000", "case_1_0000"]


@pytest.mark.parametrize("step", ["copy_whole", "write_json"])
def test_what_was_cut_off_is_finished_the_next_time(root, monkeypatch, step):
    """As if the process had been killed once the event was written, before each thing that follows from it."""
    done = getattr(labelled, step)
    for fails_at in range(4):
        case, calls = f"test_{fails_at}", []

        def fail(*arguments, calls=calls, fails_at=fails_at):
            if len(calls) == fails_at:
                raise KeyboardInterrupt
            calls.append(None)
            done(*arguments)

        with open_project(root) as project:
            monkeypatch.setattr(labelled, step, fail)
            with suppress(KeyboardInterrupt):
                project.accept(case, drawn(root, case))
            monkeypatch.setattr(labelled, step, done)
        with open_project(root) as project:
            assert case not in project.waiting()
            assert (label_in_folder(root, case) == drawn(root, case)).all()
            assert number_of_cases(root) == 3 + fails_at == len(names_in(raw(root) / "imagesTr"))


def test_a_line_that_was_never_finished_has_not_happened(root):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
        file = project.history.file
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"kind": "accepted", "case": "test_1", "ver')
    with open_project(root) as project:
        assert "test_1" in project.waiting() and file.read_bytes() == whole
        project.skip("test_1")
    assert [event.kind for event in History(file.parent).events] == ["accepted", "skipped"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", r"line 1: event.*, not|line 1: event"),
        (b"no", r"line 1: expected an object of JSON"),
        (b'{"kind": "skipped", "number": 7, "case": "a"}', "expected event 1"),
        (b'{"kind": "returned", "number": 1, "to": 1}', "expected event 1"),
        (b'{"kind": "accepted", "number": 1}', r"case is missing"),
    ],
)
def test_a_damaged_history_is_refused(tmp_path, line, message):
    (tmp_path / "history.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DatasetError, match=message):
        History(tmp_path)


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    from sam3dnet.annotation import history

    events = History(tmp_path)
    events.add(history.Skipped(case="a"))

    def fail(_):
        raise OSError("full")

    monkeypatch.setattr(history.os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        events.add(history.Skipped(case="b"))
    monkeypatch.undo()
    events.add(history.Skipped(case="c"))
    assert [event.case for event in History(tmp_path).events] == ["a", "c"]


def test_one_process_annotates_a_dataset(root):
    with open_project(root), pytest.raises(DatasetError, match="somebody annotates this dataset already"):
        open_project(root)
    open_project(root).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels[1:], r"has shape \(\d+, \d+, 18\); expected that of the image"),
        (lambda labels: labels * 7, r"has the labels 7; dataset.json names 0, 1, 2"),
        (lambda labels: labels * 0.5, r"has the labels 0.5"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(root, change, message):
    with open_project(root) as project:
        with pytest.raises(DatasetError, match=message):
            project.accept("test_0", change(drawn(root, "test_0")))
        with pytest.raises(DatasetError, match=r"no such image in .*did you mean test_0"):
            project.accept("tset_0", drawn(root, "test_0"))
        assert not project.history.events and "test_0" in project.waiting()


def write_label(root, file, case, direction=None, moved_mm=0.0):
    """Write a label map as another program does, where its image lies or elsewhere."""
    image = sitk.ReadImage(str(root / "pool" / f"{case}_0000.nii.gz"))
    label = sitk.GetImageFromArray(drawn(root, case))
    label.CopyInformation(image)
    label.SetDirection(direction or image.GetDirection())
    label.SetOrigin([value + moved_mm for value in image.GetOrigin()])
    sitk.WriteImage(label, str(file))
    return file


@pytest.mark.parametrize("kind", [str, lambda file: file], ids=["name", "path"])
def test_the_file_of_a_label_map_is_accepted(root, kind):
    file = write_label(root, root / "mask.nii.gz", "test_1")
    with open_project(root) as project:
        assert project.accept("test_1", kind(file)).prompts == {}
    assert (label_in_folder(root, "test_1") == drawn(root, "test_1")).all()


@pytest.mark.parametrize(
    "elsewhere",
    [{"moved_mm": 5.0}, {"direction": (-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}],
    ids=["another origin", "mirrored"],
)
def test_the_file_of_a_label_map_that_lies_elsewhere_is_refused(root, elsewhere):
    file = write_label(root, root / "mask.nii.gz", "test_1", **elsewhere)
    with open_project(root) as project:
        with pytest.raises(DatasetError, match=r"mask.nii.gz: has the image's shape, but another origin"):
            project.accept("test_1", file)
        assert not project.history.events and "test_1" in project.waiting()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), r"mask.nii.gz: is not there; expected the file of a label map"),
        (lambda file: (file.unlink(), file.mkdir()), r"mask.nii.gz: is a folder; expected the file"),
        (truncate, r"mask.nii.gz: the compressed data end too early"),
        (lambda file: file.write_text("no image"), r"mask.nii.gz: .*; (export it again|get the file anew)"),
    ],
    ids=["missing", "a folder", "half", "no image"],
)
def test_the_file_of_a_label_map_that_cannot_be_read_is_told(root, spoil, message):
    file = write_label(root, root / "mask.nii.gz", "test_1")
    spoil(file)
    with open_project(root) as project:
        with pytest.raises(DatasetError, match=message):
            project.accept("test_1", str(file))
        assert not project.history.events


@pytest.mark.parametrize("reorients", [True, False])
def test_the_file_of_a_label_map_along_other_axes(tmp_path, reorients):
    reader_name = "NibabelIOWithReorient" if reorients else "NibabelIO"
    kind = readers.Kind(reader_name, ".nii.gz", "flipped and oblique")
    folder = readers.make_dataset(kind, tmp_path / "nnUNet_raw" / NAME)
    cases, reader = readers.cases_of(folder)
    truth = reader.read_seg(cases[2].label)[0][0]
    (tmp_path / "pool").mkdir()
    cases[2].images[0].rename(tmp_path / "pool" / cases[2].images[0].name)
    mirrored = nibabel.load(cases[2].label).as_reoriented([[0, -1], [1, 1], [2, 1]])
    cases[2].label.unlink()
    nibabel.save(mirrored, tmp_path / "mask.nii.gz")
    with AnnotationProject(975, tmp_path / "pool", root=tmp_path, device="cpu") as project:
        if reorients:
            project.accept("c", tmp_path / "mask.nii.gz")
            assert (reader.read_seg(cases[2].label)[0][0] == truth).all() and truth.any()
        else:
            with pytest.raises(DatasetError, match="another origin, spacing or direction"):
                project.accept("c", tmp_path / "mask.nii.gz")


def test_files_of_other_formats_beside_the_images_are_told_once(root, caplog):
    (root / "pool" / "screen.png").write_bytes(b"picture")
    with open_project(root) as project:
        project.waiting()
        assert caplog.text.count("files ending in .png are left out") == 1
        (root / "pool" / "other.dcm").write_bytes(b"dicom")
        project.waiting()
        project.images_waiting()
    assert caplog.text.count("are left out") == 2 and caplog.text.count(".dcm, .png are left out") == 1


def test_another_image_of_the_same_name_is_refused(root):
    shutil.copy(root / "pool" / "test_0_0000.nii.gz", root / "pool" / "case_1_0000.nii.gz")
    with open_project(root) as project, pytest.raises(DatasetError, match="the dataset has another image of this name"):
        project.accept("case_1", drawn(root / "pool", "case_1"))


def test_a_dataset_that_lists_its_cases_lists_new_ones(root):
    file = raw(root) / "dataset.json"
    listed = {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"}
        for name in ("case_0", "case_1")
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset": listed}))
    with open_project(root) as project:
        project.accept("test_2", drawn(root, "test_2"))
        new = json.loads(file.read_text())
        assert new["dataset"] == listed | {
            "test_2": {"images": ["imagesTr/test_2_0000.nii.gz"], "label": "labelsTr/test_2.nii.gz"}
        }
        assert new["numTraining"] == 3
        project.go_back(0)
        assert json.loads(file.read_text())["dataset"] == listed


@pytest.mark.parametrize("kind", readers.kinds(), ids=str)
def test_every_reader_reads_what_is_accepted(tmp_path, kind):
    folder = readers.make_dataset(kind, tmp_path / "nnUNet_raw" / "Dataset975_Annotated")
    cases, reader = readers.cases_of(folder)
    moved = cases[-1]
    (tmp_path / "pool").mkdir()
    truth = reader.read_seg(moved.label)[0][0]
    for file in reader.files_of(moved.images):
        file.rename(tmp_path / "pool" / file.name)
    for file in reader.files_of((), moved.label):
        file.unlink()
    with AnnotationProject(975, tmp_path / "pool", root=tmp_path, device="cpu") as project:
        project.accept(moved.name, truth)
        accepted = readers.cases_of(folder)[0]
        assert [case.name for case in accepted] == [case.name for case in cases]
        assert (reader.read_seg(moved.label)[0][0] == truth).all()
        assert not [problem for problem in verify_dataset(folder, 0) if problem.severity == "error"]
        project.go_back(0)
        assert not moved.label.exists() and not any(file.exists() for file in reader.files_of(moved.images))


def test_some_of_what_is_corrected_by_hand_is_held_back(root):
    with open_project(root) as project:
        events = [project.accept(f"test_{n}", drawn(root, f"test_{n}"), corrected=n != 1) for n in range(4)]
        assert [event.held_back for event in events] == [False, False, True, False]  # the second that was corrected
    for number in range(4, 8):
        shutil.copy(root / "pool" / "test_0_0000.nii.gz", root / "pool" / f"test_{number}_0000.nii.gz")
    with open_project(root) as project:
        for number in range(4, 8):
            held = project.accept(f"test_{number}", drawn(root, f"test_{number}")).held_back
            assert held == (number == 7)  # the seventh
        assert project.state.held_back == ("test_2", "test_7")
        again = project.accept("test_7", drawn(root, "test_7", 2), corrected=False)
        assert again.held_back  # it goes on


def test_all_cases_of_a_patient_judge_or_none_does(root):
    for case in ("p1_a", "p1_b", "p2_a", "p2_b", "p3_a"):
        shutil.copy(root / "pool" / "test_0_0000.nii.gz", root / "pool" / f"{case}_0000.nii.gz")
    for file in (root / "pool").glob("test_*"):
        file.unlink()
    with open_project(root) as project:
        in_dataset = drawn(root, "p1_a")
        held_back = {case: project.accept(case, in_dataset).held_back for case in ("p1_a", "p2_a", "p1_b", "p2_b")}
        assert held_back == {"p1_a": False, "p2_a": True, "p1_b": False, "p2_b": True}
        assert project.state.held_back == ("p2_a", "p2_b")


def test_skipped_cases_come_last(root):
    with open_project(root) as project:
        project.skip("test_1")
        project.skip("test_0")
        assert project.waiting() == ["test_2", "test_3", "test_1", "test_0"]
        assert project.waiting("random", seed=1) != project.waiting("random", seed=2)
        assert project.waiting("name")[-2:] == ["test_1", "test_0"]


def test_without_a_model_it_is_said(root):
    with open_project(root) as project, pytest.raises(CheckpointError, match="no model yet"):
        project.session("test_0")


@pytest.fixture
def promptable(tmp_path, monkeypatch):
    """A model of two classes that answers prompts, of random weights."""
    monkeypatch.setattr(trained_models, "STEPS", 0)
    folder = trained_models.make_trained_model(tmp_path / "models")
    (folder / "dataset.json").write_text(json.dumps(make_dataset_json(1, {"background": 0, "lesion": 1})))
    return folder


def test_a_session_is_accepted_with_all_that_is_known_of_it(root, promptable):
    description = raw(root) / "dataset.json"
    labels = {"background": 0, "lesion": 1}
    description.write_text(json.dumps(json.loads(description.read_text()) | {"labels": labels}))
    with open_project(root, model=promptable) as project:
        session = project.session("test_0")
        session.click((5, 6, 4), class_name="lesion")
        session.click((0, 0, 0), positive=False, class_name="lesion")
        event = project.accept("test_0", session)
        assert event.prompts == {"lesion": {"points": 2}} and event.model == str(promptable)
        assert set(event.dice) == {"lesion"} and event.seconds is not None
        assert (label_in_folder(root, "test_0") == session.label_map()).all()
        session = project.session("test_1")
        event = project.accept("test_1", session)
        assert not event.corrected and event.dice["lesion"] in (1.0, None)
    with open_project(root) as project:
        assert project.state.model == str(promptable)  # of the last time


def test_the_least_sure_comes_first(root, model):
    with open_project(root, model=model) as project:
        folder = project.learning.folder / "automatic"
        folder.mkdir(parents=True)
        expected = {"test_0": 0.9, "test_2": 0.5, "test_3": None}
        seen = project.learning._seen_of({name: project.cases.named(name) for name in expected})
        job = {"model": str(model), "weights": _weights_of(str(model)), "seen": seen}
        (folder.parent / "ranking.json").write_text(json.dumps(job))
        for name, dice in expected.items():
            (folder / f"{name}{ENDING}").write_text(json.dumps({"classes": {"organ": {"dice": dice}}}))
        assert project.waiting() == ["test_3", "test_1", "test_2", "test_0"]  # nothing is known of test_1
        assert project.waiting("sure") == ["test_0", "test_1", "test_2", "test_3"]
        (folder.parent / "ranking.json").write_text(json.dumps({"model": "another"}))
        assert project.waiting() == ["test_0", "test_1", "test_2", "test_3"]
