"""A dataset that is annotated: what is wrong with one case, one line or one call stops nothing else."""

import json
import math
import resource
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from annotated import drawn, make_annotated, open_project, raw
from phantoms import make_raw_dataset

from sam3dnet.annotation import learning
from sam3dnet.annotation import project as project_module
from sam3dnet.annotation.history import History, Skipped, TrainingBegun, TrainingEnded
from sam3dnet.annotation.job import LEFT_OUT, Result, _of_sound_cases
from sam3dnet.annotation.trainings import _left_out
from sam3dnet.cli.annotate import annotate
from sam3dnet.errors import CheckpointError, DatasetError, Sam3dError
from sam3dnet.inference.images import find_cases
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.verify import require_sound, verify_dataset


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


@pytest.fixture
def asleep(monkeypatch):
    """Trainings that are begun, and never end by themselves."""

    class Asleep:
        def __init__(self, module, arguments, log, record):
            self.log, self.status = log, None

        def end(self):
            pass

    monkeypatch.setattr(learning, "BackgroundProcess", Asleep)
    monkeypatch.setattr(project_module, "require_fitting", lambda *_: None)


@pytest.fixture
def history(tmp_path):
    events = History(tmp_path)
    events.add(Skipped(case="a"))
    return events


def rewrite(file, change):
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image).astype(np.float32)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_the_lines_before(history, tmp_path):
    whole = history.file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 40, limits[1]))
    try:
        with pytest.raises(OSError):
            history.add(Skipped(case="b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert history.file.read_bytes() == whole
    history.add(Skipped(case="c"))
    assert [event.case for event in History(tmp_path).events] == ["a", "c"]


def test_a_last_line_without_its_end_and_empty_lines_are_read(history, tmp_path):
    history.add(Skipped(case="b"))
    history.file.write_bytes(b"\n" + history.file.read_bytes().rstrip(b"\n"))
    again = History(tmp_path)
    again.add(Skipped(case="c"))
    assert [event.case for event in History(tmp_path).events] == ["a", "b", "c"]


@pytest.mark.parametrize("at", ["", "28.11.2026", "2026-11-28T09:00:00"])
def test_a_line_whose_time_says_nothing_is_named(history, tmp_path, at):
    line = json.loads(history.file.read_text()) | {"at": at}
    history.file.write_text(json.dumps(line) + "\n")
    with pytest.raises(DatasetError, match=rf'history.jsonl: line 1: "at": expected a time with its zone, .*{at}'):
        History(tmp_path)


@pytest.mark.parametrize("change", ["another line", "gone"])
def test_a_history_that_somebody_else_has_changed_is_left_alone(history, change):
    if change == "gone":
        history.file.unlink()
    else:
        history.file.write_bytes(history.file.read_bytes() * 2)
    there = history.file.read_bytes() if history.file.exists() else None
    with pytest.raises(DatasetError, match="another program has changed or moved it, so nothing is added"):
        history.add(Skipped(case="b"))
    assert (history.file.read_bytes() if history.file.exists() else None) == there


def test_a_project_that_was_closed_changes_nothing(root):
    with open_project(root) as closed:
        pass
    with open_project(root) as project:
        with pytest.raises(DatasetError, match="this project was closed; open it again"):
            closed.accept("test_0", drawn(root, "test_0"))
        project.accept("test_1", drawn(root, "test_1"))
    with open_project(root) as project:
        assert list(project.state.labels) == ["test_1"]


@pytest.mark.parametrize("minutes", [math.inf, math.nan, 0.0, -1.0])
def test_a_training_needs_a_time(root, minutes):
    with open_project(root) as project:
        with pytest.raises(DatasetError, match="expected a number above 0"):
            project.begin_training(minutes)
        assert not project.history.events
    with pytest.raises(Sam3dError, match=r"--minutes .*: expected a (finite )?number"):
        annotate(975, images=root / "pool", minutes=minutes, root=root)


def test_a_label_map_with_thousands_of_values_is_told_in_a_line(root):
    with open_project(root) as project:
        labels = np.arange(drawn(root, "test_0").size, dtype=np.float32).reshape(drawn(root, "test_0").shape)
        with pytest.raises(
            DatasetError, match=r"has the labels 3, 4, .* and \d+ more; dataset.json names 0, 1, 2"
        ) as told:
            project.accept("test_0", labels)
        assert len(str(told.value)) < 200
        with pytest.raises(DatasetError, match=r"is an array of <U1; expected numbers"):
            project.accept("test_0", np.full(labels.shape, "1"))
        assert project.accept("test_0", drawn(root, "test_0").tolist()).version == 1


def test_a_model_that_is_gone_is_named(root, model):
    with open_project(root, model=model):
        pass
    model.rename(model.with_name("elsewhere"))
    with open_project(root) as project, pytest.raises(CheckpointError, match=r"no longer there; .*\(-m MODEL\)"):
        project.session("test_0")


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_a_training_that_was_cut_off_goes_on_where_its_project_is(root, asleep, moved, tmp_path):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
        project.begin_training(1.0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "pool"):
        shutil.move(root / name, elsewhere / name) if moved else shutil.copytree(root / name, elsewhere / name)
    with open_project(elsewhere) as project:
        assert project.begin_training(1.0).training == 1
        job = json.loads((project.learning.folder_of(1) / learning.JOB).read_text())
    for place in (*job["folders"], job["work"]):
        assert place.startswith(str(elsewhere)) and Path(place).is_dir()


def test_a_training_that_ends_without_a_word_has_failed(root, asleep):
    with open_project(root) as project:
        project.begin_training(1.0)
        assert project.conclude() is None
        project.learning._process.status = 0
        ended = project.conclude()
        assert not ended.used and "the training failed; its log" in ended.why and project.state.training is None


def test_what_has_ended_is_concluded_before_all_goes_back(root, asleep, model):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
        begun = project.begin_training(1.0)
        result = Result(folder=str(model), before=None, after=None)
        write_json(project.learning.folder_of(begun.training) / "result.json", result.model_dump())
        project.go_back(1)
        assert project.state.model is None
        project.go_back(3)
        assert project.state.model == str(model)


def test_a_folder_that_became_empty_does_not_lock_a_project_out(root, caplog):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0"))
        project.go_back(0)
    for file in (root / "pool").iterdir():
        file.unlink()
    with open_project(root) as project:
        assert "holds no image" in caplog.text and project.waiting() == ["test_0"]
        project.go_back(1)
        assert project.waiting() == []
    shutil.rmtree(raw(root) / "sam3d_annotation")
    with pytest.raises(DatasetError, match="holds no image"):
        open_project(root)


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda _: b"", lambda _: b"no image"])
def test_a_damaged_image_is_not_accepted(root, damage):
    image = root / "pool" / "test_0_0000.nii.gz"
    labels = drawn(root, "test_0")
    image.write_bytes(damage(image.read_bytes()))
    with open_project(root) as project:
        with pytest.raises(DatasetError, match="test_0"):
            project.accept("test_0", labels)
        assert not project.history.events and not (raw(root) / "imagesTr" / image.name).exists()


@pytest.mark.parametrize(
    "said",
    [
        {"prompts": {"organ": 3}},
        {"prompts": [1]},
        {"prompts": {"organ": {"points": "x"}}},
        {"seconds": "abc"},
        {"by": 3},
    ],
)
def test_what_is_wrongly_said_of_a_case_is_told_before_anything_is_written(root, said):
    with open_project(root) as project:
        with pytest.raises(DatasetError, match=r"what is said of test_0: .* must be .*; see AnnotationProject.accept"):
            project.accept("test_0", drawn(root, "test_0"), **said)
        assert not (project.folder / "labels").exists() and not project.history.events
        with pytest.raises(DatasetError, match="order is 'foo'; expected 'unsure', 'sure', 'name', 'random'"):
            project.waiting("foo")
    with pytest.raises(Sam3dError, match="gpu"):
        open_project(root, device="gpu")


class Session:
    """What a session gives to be accepted."""

    def __init__(self, labels_ZYX):
        self._labels_ZYX = labels_ZYX

    def set_image(self, files):
        self.properties = sitk_properties(files[0])
        return self._labels_ZYX

    def labels(self):
        return self._labels_ZYX

    def prompt_counts(self):
        return {}


def sitk_properties(file):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    return SimpleITKIO().read_images([str(file)])[1]


def test_each_session_is_accepted_for_its_own_case_with_what_it_proposed(root):
    class First:
        def session(self):
            return Session(drawn(root, "test_0"))

    with open_project(root) as project:
        project._first = First()
        one, other = project.first_session("test_0"), project.first_session("test_1")
        with pytest.raises(DatasetError, match="this session was opened for test_1; give the one of test_0"):
            project.accept("test_0", other)
        event = project.accept("test_0", one)
        assert not event.corrected and event.dice and event.seconds is not None


def test_an_image_that_is_replaced_while_it_is_open_is_not_accepted(root):
    class First:
        def session(self):
            return Session(drawn(root, "test_0"))

    with open_project(root) as project:
        project._first = First()
        session = project.first_session("test_0")
        rewrite(root / "pool" / "test_0_0000.nii.gz", lambda voxels: voxels + 7)
        for labels in (session, drawn(root, "test_0")):
            with pytest.raises(DatasetError, match=r"test_0_0000.nii.gz: was written anew since test_0 was opened"):
                project.accept("test_0", labels)
        assert project.accept("test_0", project.first_session("test_0")).version == 1


def test_a_version_that_is_gone_lets_its_image_wait_again(root, caplog):
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        project.accept("test_0", drawn(root, "test_0", 2))
        version = project._versions.file("test_0", 1)
        version.unlink()
        project.go_back(1)
        assert f"{version} is gone, a version of the label map of test_0, so that waits again" in caplog.text
        assert "test_0" in project.waiting()
        project.go_back(2)
        assert "test_0" not in project.waiting()
    open_project(root).close()


def test_a_file_in_place_of_a_folder_of_images_is_told(tmp_path):
    file = tmp_path / "a_0000.nii.gz"
    file.touch()
    with pytest.raises(DatasetError, match=rf"input folder {file} is no folder; give a folder with images"):
        find_cases(file, ".nii.gz", 1)


# Cases that cannot be trained on


@pytest.fixture
def faulty(tmp_path):
    """A dataset of six cases: 0 and 1 sound, 2 not finite, 3 a copy of 0, 4 without contrast, 5 labelled as empty."""
    folder = make_raw_dataset(tmp_path / "nnUNet_raw" / "Dataset986_Faulty", num_cases=6)
    images, labels = folder / "imagesTr", folder / "labelsTr"
    rewrite(images / "case_2_0000.nii.gz", lambda voxels: np.where(voxels == voxels.max(), np.nan, voxels))
    for part, name in ((images, "case_{}_0000.nii.gz"), (labels, "case_{}.nii.gz")):
        (part / name.format(3)).write_bytes((part / name.format(0)).read_bytes())
    rewrite(images / "case_4_0000.nii.gz", np.zeros_like)
    rewrite(labels / "case_5.nii.gz", np.zeros_like)
    described = json.loads((folder / "dataset.json").read_text()) | {"sam3d_accept": ["empty label"]}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def plan_of(folder, planned):
    require_sound(verify_dataset(folder, 0, progress=False))
    planned.append(sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir()))
    return []


def test_cases_that_cannot_be_trained_on_do_not_stop_the_others(faulty, tmp_path):
    planned, known = [], tmp_path / LEFT_OUT
    for _ in range(2):  # cut off in between
        _, left_out = _of_sound_cases(partial(plan_of, faulty, planned), faulty, known)
        copies = {*left_out} & {"case_0", "case_3"}
        assert len(copies) == 1 and {*left_out} == {"case_2", "case_4"} | copies
        assert left_out["case_2"] == "non-finite voxels" and left_out["case_4"] == "all-zero image"
    assert len(planned[0]) == 3 and planned[0] == planned[1] and "case_5" in planned[0]
    assert json.loads((faulty / "dataset.json").read_text())["numTraining"] == 3


def test_what_is_wrong_with_all_cases_or_with_none_is_told_as_it_is(faulty, tmp_path):
    for number in range(6):
        rewrite(faulty / "imagesTr" / f"case_{number}_0000.nii.gz", np.zeros_like)
    with pytest.raises(DatasetError, match=r"(?s)the dataset has 6 problems; .*all-zero image"):
        _of_sound_cases(partial(plan_of, faulty, []), faulty, tmp_path / LEFT_OUT)

    def fail():
        raise DatasetError("something else")

    sound = make_raw_dataset(tmp_path / "nnUNet_raw" / "Dataset987_Sound", num_cases=2)
    with pytest.raises(DatasetError, match="something else"):
        _of_sound_cases(fail, sound, tmp_path / "sound.json")


def test_what_was_left_out_of_a_training_was_not_learned_from(root):
    with open_project(root) as project:
        project.history.add(TrainingBegun(training=1, cases=("a", "b"), held_back=(), start=None, minutes=1.0))
        ended = {"training": 1, "folder": "model", "used": True, "before": None, "after": None, "why": "used"}
        project.history.add(TrainingEnded(**ended, left_out=("b",)))
        assert project.state.trained_on == {"a"}
    assert _left_out(Result(left_out={"b": "all-zero image"})) == (
        "; without b (all-zero image), which cannot be trained on"
    )


def test_trainings_do_not_object_to_empty_label_maps(root):
    file = raw(root) / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sam3d_accept": ["constant image"]}))
    with open_project(root) as project:
        assert project._dataset.to_train_on()["sam3d_accept"] == ["constant image", "empty label"]
