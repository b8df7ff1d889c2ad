"""A dataset that is annotated: what is accepted is in its folders, whole; nothing is lost, all can be gone back to."""

import errno
import json
import os
import shutil
from contextlib import suppress

import nibabel
import numpy as np
import pytest
import readers
import SimpleITK as sitk
import trained_models
from cascades import make_cascade_model
from fake_prompts import make_promptable_model
from phantoms import make_raw_dataset
from tiny_models import make_dataset_json, truncate

from sam3dnet.annotation import followed, labelled, learning
from sam3dnet.annotation.fitting import require_fitting
from sam3dnet.annotation.history import History, TrainingBegun, TrainingEnded
from sam3dnet.annotation.learning import _weights_of, take_snapshot
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import CheckpointError, DatasetError, PlanError, PromptError
from sam3dnet.inference.confidence import ENDING
from sam3dnet.preprocessing.verify import verify_dataset

NAME = "Dataset975_Annotated"


@pytest.fixture
def root(tmp_path):
    make_raw_dataset(tmp_path / "nnUNet_raw" / NAME, num_cases=2, num_test=4, channel_names=("MRI",))
    (tmp_path / "nnUNet_raw" / NAME / "imagesTs").rename(tmp_path / "pool")
    return tmp_path


def open_project(root, **options):
    """Open the project; most models here answer no prompts."""
    return AnnotationProject(975, root / "pool", root=root, device="cpu", **{"needs_prompts": False, **options})


def raw(root):
    return root / "nnUNet_raw" / NAME


def drawn(root, case, value=1):
    """Draw a label map on the grid of an image."""
    image = sitk.ReadImage(str(next(root.rglob(f"{case}_0000.nii.gz"))))
    labels = np.zeros(sitk.GetArrayViewFromImage(image).shape, np.uint8)
    labels[3:6, 4:9, 5:11] = value
    return labels


def label_in_folder(root, case):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(raw(root) / "labelsTr" / f"{case}.nii.gz")))


def names_in(folder):
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))


def number_of_cases(root):
    return json.loads((raw(root) / "dataset.json").read_text())["numTraining"]


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


def edit(root, case, value):
    """Change a label map as another program does."""
    label = raw(root) / "labelsTr" / f"{case}.nii.gz"
    edited = sitk.GetImageFromArray(np.where(drawn(root, case), value, 0).astype(np.uint8))
    edited.CopyInformation(sitk.ReadImage(str(label)))
    sitk.WriteImage(edited, str(label))


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
        seen = project.learning._seen_of({name: project._image(name) for name in expected})
        job = {"model": str(model), "weights": _weights_of(str(model)), "seen": seen}
        (folder / "job.json").write_text(json.dumps(job))
        for name, dice in expected.items():
            (folder / f"{name}{ENDING}").write_text(json.dumps({"classes": {"organ": {"dice": dice}}}))
        assert project.waiting() == ["test_3", "test_1", "test_2", "test_0"]  # nothing is known of test_1
        assert project.waiting("sure") == ["test_0", "test_1", "test_2", "test_3"]
        (folder / "job.json").write_text(json.dumps({"model": "another"}))
        assert project.waiting() == ["test_0", "test_1", "test_2", "test_3"]


def describe(root, **changes):
    """Change dataset.json as somebody does by hand."""
    file = raw(root) / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Files whose names say nothing


def make_listed(kind, folder):
    """A dataset whose files are called alike in a folder of each case, which dataset.json lists."""
    readers.make_dataset(kind, folder)
    listed = {}
    for name in "abc":
        (folder / name).mkdir()
        (folder / "imagesTr" / f"{name}_0000{kind.ending}").rename(folder / name / f"ct_0000{kind.ending}")
        (folder / "labelsTr" / f"{name}{kind.ending}").rename(folder / name / f"seg{kind.ending}")
        if (sidecar := folder / "imagesTr" / f"{name}.json").exists():
            sidecar.rename(folder / name / "ct.json")
        listed[name] = {"images": [f"{name}/ct_0000{kind.ending}"], "label": f"{name}/seg{kind.ending}"}
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"dataset": listed}))
    return readers.cases_of(folder)


LISTED = [readers.Kind("SimpleITKIO", ".nii.gz", "steep"), readers.Kind("Tiff3DIO", ".tif", "a sidecar")]


@pytest.mark.parametrize("kind", LISTED, ids=str)
def test_a_snapshot_names_files_by_their_cases_and_leaves_the_dataset_alone(tmp_path, kind):
    cases, reader = make_listed(kind, tmp_path / "raw")
    files = [file for case in cases for file in reader.files_of(case.images, case.label)]
    before = [file.read_bytes() for file in files]
    content = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    take_snapshot({case.name: case for case in cases}, tmp_path / "snapshot", content, reader)
    assert [file.read_bytes() for file in files] == before
    seen, own_reader = readers.cases_of(tmp_path / "snapshot")
    assert [case.name for case in seen] == ["a", "b", "c"] and own_reader == reader
    for own, case in zip(seen, cases, strict=True):
        (values, where), (expected, place) = reader.read_images(own.images), reader.read_images(case.images)
        assert (values == expected).all() and where["spacing"] == place["spacing"]
        assert (reader.read_seg(own.label)[0] == reader.read_seg(case.label)[0]).all()


def test_nothing_is_written_through_a_link(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
    learning._link(tmp_path / "one", tmp_path / "link")
    with pytest.raises(FileExistsError, match="link"):
        learning._link(tmp_path / "other", tmp_path / "link")
    assert (tmp_path / "one").read_text() == "one"


@pytest.mark.parametrize("kind", LISTED, ids=str)
def test_what_is_taken_out_is_named_by_its_case(tmp_path, kind):
    folder = tmp_path / "nnUNet_raw" / NAME
    cases, reader = make_listed(kind, folder)
    expected = [reader.read_images(case.images) for case in cases]
    dataset = labelled.LabelledDataset(folder)
    for name in "ab":
        dataset.take_out(name, tmp_path / "out", reader)
    listed = json.loads((folder / "dataset.json").read_text())
    assert list(listed["dataset"]) == ["c"] and listed["numTraining"] == 1
    (tmp_path / "pool").mkdir()
    shutil.copy(cases[2].images[0], tmp_path / "pool" / f"c_0000{kind.ending}")
    (folder / "sam3d_annotation").mkdir()
    (tmp_path / "out").rename(folder / "sam3d_annotation" / "images")
    with AnnotationProject(975, tmp_path / "pool", root=tmp_path, device="cpu") as project:
        assert project.waiting() == ["a", "b"]
        for case, (values, where), truth in zip(cases, expected[:2], "ab", strict=False):
            found = reader.read_images(project._image(truth).files)
            assert case.name == truth and (found[0] == values).all() and found[1]["spacing"] == where["spacing"]


def test_what_belongs_to_an_image_is_copied_where_it_is_missing(tmp_path):
    kind = LISTED[1]
    folder = readers.make_dataset(kind, tmp_path / "nnUNet_raw" / NAME)
    cases, reader = readers.cases_of(folder)
    pool = tmp_path / "pool"
    pool.mkdir()
    for file in reader.files_of(cases[0].images):
        shutil.copy(file, pool)
    (folder / "imagesTr" / "a.json").unlink()  # as if it had been cut off just there
    labelled.LabelledDataset(folder).put("a", [pool / "a_0000.tif"], [cases[0].label], reader)
    assert (folder / "imagesTr" / "a.json").read_bytes() == (pool / "a.json").read_bytes()


def test_somebody_else_loses_nothing_by_one_who_is_refused(root):
    with open_project(root):
        unfinished = raw(root) / "labelsTr" / ".partial-x-test_0.nii.gz"
        unfinished.write_bytes(b"half")
        with pytest.raises(DatasetError, match="somebody annotates"):
            open_project(root)
        assert unfinished.exists()
    open_project(root).close()
    assert not unfinished.exists()


def test_what_is_edited_in_dataset_json_stays(root):
    with open_project(root) as project:
        describe(root, description="by hand", numTraining=7)
        project.accept("test_0", drawn(root, "test_0"))
        content = json.loads((raw(root) / "dataset.json").read_text())
        assert content["description"] == "by hand" and content["numTraining"] == 3
        (raw(root) / "dataset.json").write_text("{")
        with pytest.raises(DatasetError, match="ends in the middle"):
            project.accept("test_1", drawn(root, "test_1"))
        (raw(root) / "dataset.json").write_text(json.dumps(content))
        project.catch_up()
        assert number_of_cases(root) == 4 and label_in_folder(root, "test_1").any()


def test_a_case_on_a_disk_that_is_not_there_now_stays_in_the_history(root, tmp_path, caplog):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    away = shutil.move(image, root / "away.nii.gz")
    image.symlink_to(root / "disk" / "away.nii.gz")
    with open_project(root) as project:
        assert "files of test_0 cannot be reached now" in caplog.text
        assert "test_0" in project.state.labels
    (root / "disk").mkdir()
    shutil.move(away, root / "disk" / "away.nii.gz")
    with open_project(root) as project:
        assert "test_0" in project.state.labels and project.num_labelled == 3


def test_a_label_map_from_elsewhere_that_lies_elsewhere_is_not_copied_to_be_worked_on(root, tmp_path):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
    file = raw(root) / "labelsTr" / "test_0.nii.gz"
    moved = sitk.ReadImage(str(file))
    moved.SetOrigin([value + 30 for value in moved.GetOrigin()])
    sitk.WriteImage(moved, str(file))
    with open_project(root) as project:
        with pytest.raises(DatasetError, match=r"labelsTr.test_0.nii.gz: has the image's shape, but another origin"):
            project.copy_label("test_0", tmp_path / "drafts")
        assert not (tmp_path / "drafts").exists()


def test_links_that_are_there_stay_as_they_are(tmp_path):
    files = {name: tmp_path / f"file_{name}" for name in "ab"}
    for file in files.values():
        file.write_text(file.name)
    learning.link_all(tmp_path / "links", files)
    known = {name: file.stat().st_ctime_ns for name, file in files.items()}
    learning.link_all(tmp_path / "links", files)
    assert {name: file.stat().st_ctime_ns for name, file in files.items()} == known
    learning.link_all(tmp_path / "links", {"a": files["b"]})
    assert [(path.name, path.read_text()) for path in (tmp_path / "links").iterdir()] == [("a", "file_b")]


def test_copies_in_place_of_links_stay_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    (tmp_path / "file").write_text("image")
    learning.link_all(tmp_path / "links", {"a": tmp_path / "file"})
    monkeypatch.setattr(learning, "copy_whole", refuse)
    learning.link_all(tmp_path / "links", {"a": tmp_path / "file"})
    assert (tmp_path / "links" / "a").read_text() == "image"


# Images that are replaced by others of their name


def replace_image(root, case):
    """Put another image of this name in its place."""
    file = root / "pool" / f"{case}_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image + 7, str(file))
    return file.read_bytes()


def test_a_label_map_that_is_gone_back_to_lies_on_its_own_image(root):
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        first = image.read_bytes()
        second = replace_image(root, "test_0")
        project.go_back(0)
        assert project._image("test_0").files[0].read_bytes() == second  # what waits
        project.go_back(1)
        assert image.read_bytes() == first
        project.go_back(0)
        new = project.accept("test_0", drawn(root, "test_0", 2)).number
        assert image.read_bytes() == second
        (root / "pool" / image.name).unlink()
        for number, content, value in ((1, first, 1), (new, second, 2), (1, first, 1)):
            project.go_back(0)
            assert not image.exists()
            project.go_back(number)
            assert image.read_bytes() == content and label_in_folder(root, "test_0").max() == value
        project.go_back(new)
        assert image.read_bytes() == second


def test_a_label_map_on_the_image_of_before_goes_with_it(root):
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        first = image.read_bytes()
        second = replace_image(root, "test_0")
        project.go_back(0)
        new = project.accept("test_0", drawn(root, "test_0", 2)).number
        project.go_back(1)
        with pytest.raises(DatasetError, match="the dataset has another image of this name"):
            project.accept("test_0", drawn(root, "test_0", 2))
        (root / "pool" / image.name).unlink()
        third = project.accept("test_0", drawn(root, "test_0", 0)).number
        project.go_back(new)
        assert image.read_bytes() == second
        project.go_back(third)
        assert image.read_bytes() == first and not label_in_folder(root, "test_0").any()


def other_image(root, case, added=7):
    """Make the bytes of another image on the grid of one that waits."""
    file = root / "other.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(root / "pool" / f"{case}_0000.nii.gz")) + added, str(file))
    return file.read_bytes()


def images_anywhere(root, case):
    return {file.read_bytes() for file in root.rglob(f"{case}_0000.nii.gz")}


def forget_images(root):
    """Leave out of the history which image each label map lies on, as it was written before."""
    file = raw(root) / "sam3d_annotation" / "history.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    lines = (json.dumps({key: value for key, value in event.items() if key != "image"}) for event in events)
    file.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(params=["known", "of before"])
def waiting_image(root, request):
    """test_0 was labelled and gone back from, and another image of its name waits in imagesTr: first and second."""
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        first, second = image.read_bytes(), other_image(root, "test_0")
        project.go_back(0)
    (root / "pool" / image.name).unlink()
    image.write_bytes(second)
    if request.param == "of before":
        forget_images(root)
    return first, second


def test_an_image_that_waits_in_the_dataset_stays_when_something_is_gone_back_to(root, waiting_image):
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.go_back(0)
        assert image.read_bytes() == waiting_image[1] and images_anywhere(root, "test_0") == {*waiting_image}
        assert "test_0" in project.waiting()


def test_an_image_that_waits_in_the_dataset_makes_way_for_that_of_a_label_map(root, waiting_image):
    first, second = waiting_image
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.go_back(1)
        assert image.read_bytes() == first and label_in_folder(root, "test_0").max() == 1
    with open_project(root) as project:
        assert image.read_bytes() == first
        project.go_back(0)
        assert project._image("test_0").files[0].read_bytes() == second and not image.exists()
        new = project.accept("test_0", drawn(raw(root), "test_0", 2)).number
        for number, content, value in ((1, first, 1), (new, second, 2), (1, first, 1)):
            project.go_back(number)
            assert image.read_bytes() == content and label_in_folder(root, "test_0").max() == value
    assert images_anywhere(root, "test_0") == {first, second}


def test_all_images_of_a_name_are_kept(root, waiting_image):
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        expected = {*waiting_image}
        for added in (11, 12):
            project.go_back(1)
            project.go_back(0)
            shutil.copy(project._image("test_0").files[0], root / "pool" / image.name)
            image.write_bytes(other_image(root, "test_0", added))
            (root / "pool" / image.name).unlink()
            expected.add(image.read_bytes())
        project.go_back(1)
        assert image.read_bytes() == waiting_image[0] and len(expected) == 4
        assert images_anywhere(root, "test_0") == expected


def test_the_kept_image_of_a_project_of_before_belongs_to_the_earlier_label_maps(root):
    """One label map on the first image, two on the second, of which nothing was said in the history."""
    annotation, image = raw(root) / "sam3d_annotation", raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        first = image.read_bytes()
        second = replace_image(root, "test_0")
        project.go_back(0)
        numbers = [project.accept("test_0", drawn(root, "test_0", value)).number for value in (2, 0)]
    shutil.move(annotation / "labels" / "test_0" / "0001" / "image" / image.name, annotation / "images")
    (annotation / "labels" / "test_0" / "0001" / "image").rmdir()
    forget_images(root)
    (root / "pool" / image.name).unlink()
    with open_project(root) as project:
        numbers.append(project.accept("test_0", drawn(raw(root), "test_0", 1)).number)
        values = dict(zip(numbers, (2, 0, 1), strict=True)) | {1: 1}
        for number in (numbers[0], 1, numbers[1], 1, numbers[2]):
            project.go_back(number)
            assert image.read_bytes() == (first if number == 1 else second)
            assert label_in_folder(root, "test_0").max() == values[number]


@pytest.mark.parametrize("noticed", ["at a start", "by a training", "before going back", "when accepted"])
@pytest.mark.parametrize("named", [True, False], ids=["known", "of before"])
def test_an_earlier_version_that_is_copied_back_goes_with_its_image(root, not_run, noticed, named):
    image, label = raw(root) / "imagesTr" / "test_0_0000.nii.gz", raw(root) / "labelsTr" / "test_0.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        first = image.read_bytes()
        second = replace_image(root, "test_0")
        project.go_back(0)
        project.accept("test_0", drawn(root, "test_0", 2))
        earlier = project._versions.file("test_0", 1)
    if not named:
        forget_images(root)
    if noticed == "at a start":
        shutil.copy(earlier, label)
    with open_project(root) as project:
        shutil.copy(earlier, label)
        if noticed == "by a training":
            assert "test_0" in project.begin_training(1.0).cases
        elif noticed == "before going back":
            project.go_back(len(project.history.events))
            assert (image.read_bytes(), label_in_folder(root, "test_0").max()) == (second, 2)
            project.go_back(project.history.events[-1].number - 1)
        elif noticed == "when accepted":
            assert project.accept("test_0", drawn(root, "test_0", 0)).version == 3
            assert (image.read_bytes(), label_in_folder(root, "test_0").max()) == (second, 0)
            project.go_back(next(event.number for event in project.history.events if event.kind == "found"))
        assert project.state.labels["test_0"].version == 1
        assert image.read_bytes() == first and label_in_folder(root, "test_0").max() == 1
        assert images_anywhere(root, "test_0") == {first, second}


def test_a_label_map_whose_image_is_gone_is_not_given_another(root, caplog):
    image, label = raw(root) / "imagesTr" / "test_0_0000.nii.gz", raw(root) / "labelsTr" / "test_0.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        second = replace_image(root, "test_0")
    image.unlink()
    label.unlink()
    with open_project(root) as project:
        new = project.accept("test_0", drawn(root, "test_0", 2)).number
        project.go_back(1)
        assert "the image of test_0 is no more" in caplog.text and "test_0" in project.waiting()
        assert not image.exists() and not label.exists()
        project.go_back(new)
        assert image.read_bytes() == second and label_in_folder(root, "test_0").max() == 2
        shutil.copy(project._versions.file("test_0", 1), label)  # by hand
    with open_project(root) as project:
        assert "test_0" in project.waiting() and not label.exists() and not project.state.labels
        assert images_anywhere(root, "test_0") == {second}


def test_equal_label_maps_of_different_images_go_with_their_own(root):
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        one = project.accept("test_0", drawn(root, "test_0", 0))
        first = image.read_bytes()
        second = replace_image(root, "test_0")
        project.go_back(0)
        other = project.accept("test_0", drawn(root, "test_0", 0))
        for event, content in ((one, first), (other, second), (one, first)):
            project.go_back(event.number)
            assert image.read_bytes() == content
        project.go_back(0)
        image.write_bytes(first)
        shutil.copy(project._versions.file("test_0", 2), raw(root) / "labelsTr" / "test_0.nii.gz")  # or of version 1
    with open_project(root) as project:
        assert project.state.labels["test_0"].version == 1 and image.read_bytes() == first


@pytest.mark.parametrize("fails_at", range(4))
def test_making_way_that_is_cut_off_is_finished_the_next_time(root, monkeypatch, waiting_image, fails_at):
    done, calls = labelled.copy_whole, []
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"

    def fail(*arguments):
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        calls.append(None)
        done(*arguments)

    with open_project(root) as project:
        monkeypatch.setattr(labelled, "copy_whole", fail)
        with pytest.raises(KeyboardInterrupt):
            project.go_back(1)
        monkeypatch.setattr(labelled, "copy_whole", done)
    with open_project(root) as project:
        assert image.read_bytes() == waiting_image[0] and label_in_folder(root, "test_0").max() == 1
        project.go_back(0)
        assert project._image("test_0").files[0].read_bytes() == waiting_image[1]


def test_images_are_read_only_where_a_case_changes(root, monkeypatch):
    with open_project(root) as project:
        for n in range(2):
            project.accept(f"test_{n}", drawn(root, f"test_{n}"))
        read, digest = [], labelled.digest_of

        def reading(files):
            files = [*files]
            read.extend(file.name for file in files)
            return digest(files)

        monkeypatch.setattr(followed, "digest_of", reading)
        project.go_back(1)
        project.go_back(2)
        project.skip("test_2")
        project.images_waiting()
    assert {name for name in read if name.endswith("_0000.nii.gz")} == {"test_1_0000.nii.gz"}


# Models


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "organ": 2, "lesion": 1}}, r"classes organ \(1\), lesion \(2\), .*organ \(2\)"),
        ({"labels": {"background": 0, "organ": 1}}, r"classes organ \(1\), lesion \(2\), Dataset975\S+ organ \(1\);"),
        ({"channel_names": {"0": "CT"}}, r"channels MRI, Dataset975\S+ CT; .*--like .*--from"),
        (
            {"labels": {"background": 0, "organ": [1, 2], "lesion": [2]}, "regions_class_order": [1, 2]},
            r"lesion \(2\), .* organ \(\[1, 2\] drawn as 1\)",
        ),
    ],
)
def test_a_model_of_other_classes_or_channels_is_refused(root, model, changes, message):
    describe(root, **changes)
    with pytest.raises(DatasetError, match=message):
        open_project(root, model=model)
    assert not (raw(root) / "sam3d_annotation" / "history.jsonl").exists()


@pytest.mark.parametrize(
    ("theirs", "own", "are_others"),
    [
        (["MRI"], ["T1"], False),
        (["T1", "T2"], ["T2", "T1"], True),
        (["T1", "T2"], ["T1w", "T2w"], False),
        (["CT", "PET"], ["ct", "SUV"], False),
        (["CT", "PET"], ["PET", "CT"], True),
        (["MRI"], ["MRI", "MRI"], True),
    ],
)
def test_channels_under_other_names_are_told(root, model, caplog, theirs, own, are_others):
    names = [{"channel_names": dict(enumerate(names))} for names in (theirs, own)]
    file = model / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | names[0]))
    described = json.loads(file.read_text()) | names[1]
    if are_others:
        with pytest.raises(DatasetError, match=f"channels {', '.join(theirs)}, here {', '.join(own)}; train"):
            require_fitting(model, "here", described)
        return
    require_fitting(model, "here", described)
    assert f"calls its channels {', '.join(theirs)}, here calls them {', '.join(own)}" in caplog.text


def test_models_of_the_last_time_and_of_the_results_are_looked_at_too(root, model):
    with open_project(root, model=model) as project:
        assert project.state.model == str(model)
    describe(root, labels={"background": 0, "lesion": 1, "organ": 2})
    with pytest.raises(DatasetError, match="choose another one with -m"):
        open_project(root)
    shutil.rmtree(raw(root) / "sam3d_annotation")
    shutil.copytree(model, root / "nnUNet_results" / NAME / model.name)
    with pytest.raises(DatasetError, match=r"nnUNet_results.*the model has the classes"):
        open_project(root)


def test_a_model_without_prompts_is_taken_only_where_none_are_needed(root, model):
    with pytest.raises(PromptError, match=r"does not answer prompts.*without --no-prompts, or choose another one"):
        open_project(root, model=model, needs_prompts=True)
    assert not (raw(root) / "sam3d_annotation" / "history.jsonl").exists()
    with open_project(root, model=model) as project:
        assert project.state.model == str(model)
    with pytest.raises(PromptError, match="choose another one with -m"):
        open_project(root, needs_prompts=True)
    answering = make_promptable_model(root / "answering")
    with open_project(root, model=answering, needs_prompts=True) as project:
        assert project.state.model == str(answering)
        with pytest.raises(PromptError, match="does not answer prompts"):
            project.go_back(1)
        assert project.state.model == str(answering)


def test_a_cascade_is_taken_and_what_trainings_make_of_it_is_told(root, caplog):
    cascade = make_cascade_model(root / "models")
    with open_project(root, model=cascade) as project:
        assert project.state.model == str(cascade)
    assert "of the configuration 3d_cascade_fullres, but trainings here are of 3d_fullres, one stage" in caplog.text


def test_a_model_that_will_not_be_loaded_is_not_remembered(root, model):
    cascade = make_cascade_model(root / "models", first_folds=())
    with pytest.raises(CheckpointError, match="needs a trained first stage"):
        open_project(root, model=cascade)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] |= {"patch_size": [8, 6]}
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(PlanError, match=r"is for slices \(3d_fullres\)"):
        open_project(root, model=model)
    shutil.rmtree(model / "fold_0")
    with pytest.raises(CheckpointError, match="no fold has a checkpoint"):
        open_project(root, model=model)
    assert not (raw(root) / "sam3d_annotation" / "history.jsonl").exists()


def test_a_model_that_is_not_there_is_not_remembered(root):
    with pytest.raises(CheckpointError, match="expected a model folder"):
        open_project(root, model=root / "nowhere")
    with open_project(root) as project:
        assert project.state.model is None


def test_the_model_to_begin_with_does_not_take_the_place_of_what_was_trained_from_it(root, model, caplog):
    trained, other = (shutil.copytree(model, root / name) for name in ("trained", "other"))
    with open_project(root, model=model) as project:
        project.history.add(TrainingBegun(training=1, cases=("case_0",), held_back=(), start=str(model), minutes=1.0))
        project.history.add(
            TrainingEnded(training=1, folder=str(trained), used=True, before=None, after=None, why="used")
        )
    with open_project(root, model=model) as project:
        assert project.state.model == str(trained) and "goes on" in caplog.text
    with open_project(root, model=other) as project:
        assert project.state.model == str(other) and "takes the place" in caplog.text


# Cases that are not whole


@pytest.fixture
def not_run(monkeypatch):
    """Trainings that are prepared, but do not run."""
    monkeypatch.setattr(learning.Learning, "begin_training", lambda self, begun: None)


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


# Edited by hand


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


# In order


@pytest.fixture
def asked(monkeypatch):
    """Of each search for an order, the images that it was given; it ends at once, without having found anything."""
    found = []

    class Ended:
        status = 1

        def __init__(self, module, arguments, log, record):
            self.log = log
            found.append(sorted(path.name for path in (log.parent / "images").iterdir()))

        def wait(self):
            pass

        def end(self):
            pass

        def last_lines(self):
            return "damaged"

    monkeypatch.setattr(learning, "BackgroundProcess", Ended)
    return found


def test_images_that_cannot_be_put_in_order_are_asked_about_once(root, model, asked, caplog):
    with open_project(root, model=model) as project:
        project.accept("test_0", drawn(root, "test_0"))
        (root / "pool" / "test_0_0000.nii.gz").unlink()
        project.go_back(0)  # it waits again, in another folder than the others
        project.go_back(1)
        folder = project.learning.folder / "automatic"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"model": "another"}))
        (folder / f"test_1{ENDING}").write_text(json.dumps({"classes": {"organ": {"dice": 0.5}}}))
        assert project.unranked()
        project.rank(wait=False)
        assert asked == [[f"test_{n}_0000.nii.gz" for n in range(4)]]
        assert not project.unranked() and "damaged" in caplog.text
        assert not (folder / f"test_1{ENDING}").exists()
        shutil.copy(root / "pool" / "test_1_0000.nii.gz", root / "pool" / "new_0000.nii.gz")
        assert project.unranked()
