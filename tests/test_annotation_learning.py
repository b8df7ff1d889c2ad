"""Training beside the annotation: it gives way, goes on where it was cut off, and its model is used if no worse."""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from phantoms import make_raw_dataset

from sam3dnet.annotation import learning, trainings
from sam3dnet.annotation.background import NICENESS, BackgroundProcess, end_left
from sam3dnet.annotation.history import Accepted, ModelChosen, State, TrainingBegun, TrainingEnded, in_words
from sam3dnet.annotation.job import Job, Result, _judged, rank, train
from sam3dnet.annotation.judges import is_judge, kept_to_judge
from sam3dnet.annotation.judging import agreement, dice_by_class, is_no_worse, mean_of
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import DatasetError
from sam3dnet.inference.confidence import ENDING
from sam3dnet.inference.postprocessing import Measured, write_postprocessing_of_fold
from sam3dnet.preprocessing.folders import Folders, write_json

NAME = "Dataset974_Learned"
SECONDS = 300.0


def until(condition):
    """Wait until something is so."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it has never become so"
        time.sleep(0.01)


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def beside(tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    process = BackgroundProcess(
        "left_alone", [str(tmp_path / "count")], tmp_path / "log", tmp_path / "record.json", environment
    )
    until((tmp_path / "count").exists)
    yield process
    process.end()


def counts(folder):
    """Tell whether the process beside goes on."""
    before = (folder / "count").read_text()
    time.sleep(0.2)
    return (folder / "count").read_text() != before


def test_what_runs_beside_rests_while_something_is_urgent(beside, tmp_path):
    assert psutil.Process(beside._process.pid).nice() >= NICENESS
    with beside.paused():
        with beside.paused():
            assert not counts(tmp_path)
        assert not counts(tmp_path)  # the outer block is not at its end
    until(lambda: counts(tmp_path))
    assert beside.status is None and "begun" in beside.last_lines()
    beside.end()
    assert beside.status is not None and not (tmp_path / "record.json").exists()


def test_what_is_left_while_it_rests_is_ended_the_next_time(beside, tmp_path):
    with beside.paused():
        end_left(tmp_path / "record.json")
        until(lambda: beside.status is not None)
    write_json(tmp_path / "record.json", {"pid": os.getpid(), "created": 0.0})  # the number is another process's now
    end_left(tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    line = (
        "import sys, time; from pathlib import Path; from sam3dnet.annotation.background import BackgroundProcess;"
        "folder = Path(sys.argv[1]);"
        "one = BackgroundProcess('left_alone', [str(folder / 'count')], folder / 'log', folder / 'record.json');"
        "print(one._process.pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, "-c", line, str(tmp_path)], env=environment, stdout=subprocess.PIPE)
    try:
        pid = int(parent.stdout.readline())
        until((tmp_path / "count").exists)
        assert is_alive(pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    until(lambda: not is_alive(pid))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "MODULE", "unhurried_job")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    make_raw_dataset(tmp_path / "nnUNet_raw" / NAME, num_cases=4, num_test=5)
    raw = tmp_path / "nnUNet_raw" / NAME
    (raw / "imagesTs").rename(tmp_path / "pool")
    return tmp_path


def open_project(root):
    return AnnotationProject(974, root / "pool", root=root, device="cpu")


def accept(project, root, *names):
    for name in names:
        image = sitk.ReadImage(str(project.cases.named(name).files[0]))
        labels = np.zeros(sitk.GetArrayViewFromImage(image).shape, np.uint8)
        labels[2:6, 4:9, 3:12] = 1
        labels[4:6, 5:7, 8:11] = 2
        project.accept(name, labels)


@pytest.mark.timeout(900)
def test_the_loop(root):
    with open_project(root) as project:
        ended = project.train(0.05)
        assert ended.used and ended.before is None and "nothing to compare" in ended.why
        first = project.state.model
        assert Path(first, "fold_all", "checkpoint_final.pth").is_file()
        accept(project, root, *(f"test_{n}" for n in range(4)))
        project.session("test_4")  # the model segments and listens
        accept(project, root, "test_4")
        assert project.accepted_since_training == 5 and project.state.held_back == ("test_1",)
        begun = project.begin_training(0.05)
        assert begun.start == first and begun.held_back == ("test_1",) and "test_1" not in begun.cases
        assert project.accepted_since_training == 0
        shutil.copy(root / "pool" / "test_0_0000.nii.gz", root / "pool" / "more_0000.nii.gz")
        accept(project, root, "more")  # while it trains, it sees what there was
        project.learning.wait()
        ended = project.conclude()
        assert ended.before is not None and ended.after is not None
        assert project.conclude() is None
        shutil.copy(root / "pool" / "test_0_0000.nii.gz", root / "pool" / "last_0000.nii.gz")
        project.rank()
        images = {case.name: case for case in project.cases.all() if case.name in ("last", "more")}
        known = project.learning.expected_dice(project.state.model, images)
        assert list(known) == ["last"] and 0 <= known["last"] <= 1
        project.go_back(begun.number - 1)
        assert project.state.model == first and project.state.trained_on == {f"case_{n}" for n in range(4)}
        assert "more" in project.waiting() and project.state.training is None


@pytest.mark.timeout(900)
def test_a_training_that_was_cut_off_goes_on(root):
    with open_project(root) as project:
        begun = project.begin_training(0.2)
        checkpoints = project.learning.folder_of(1) / NAME
        until(lambda: any(checkpoints.glob("*/*/checkpoint_latest.pth")))
        assert project.learning.trains
    with open_project(root) as project:  # ended as if by kill -9, so there is no result
        assert project.state.training == begun and project.conclude() is None
        assert project.begin_training(99.0) == begun
        project.learning.wait()
        ended = project.conclude()
        assert ended.used and project.state.model == ended.folder
    log = next(checkpoints.rglob("training_log*.txt")).parent
    assert len(list(log.glob("training_log*.txt"))) == 2  # the second went on in the same folder


def test_a_training_that_fails_is_told(root):
    with open_project(root) as project:
        for file in (root / "nnUNet_raw" / NAME / "labelsTr").iterdir():
            file.write_bytes(b"no image")
        ended = project.train(0.05)
        assert not ended.used and ended.folder is None and "case_0" in ended.why
        assert project.state.model is None and project.state.training is None


def test_a_worse_model_is_left_out(root, monkeypatch):
    with open_project(root) as project:
        accept(project, root, "test_0")
        begun = TrainingBegun(training=1, cases=("case_0",), held_back=("test_0",), start=None, minutes=1.0)
        project.history.add(begun)
        folder = project.learning.folder_of(1) / NAME
        folder.mkdir(parents=True)
        result = Result(folder=str(folder / "model"), before=0.8, after=0.7)
        write_json(project.learning.folder_of(1) / "result.json", result.model_dump())
        ended = project.conclude()
        assert (
            not ended.used and ended.why == "left out: agrees to 0.700 with 1 cases that were held back, before 0.800"
        )
        assert not folder.exists() and project.state.model is None


@pytest.mark.parametrize(
    ("result", "used", "why"),
    [
        (Result(folder="model", before=0.0, after=1.0), True, "used: agrees to 1.000 with 1 cases"),
        (Result(folder="model", before=None, after=0.5), True, "used; there is nothing to compare it with yet"),
        (Result(folder="model", before=0.5, after=None), False, "left out: there is no model, or nothing is known"),
        (Result(before=None, after=None), False, "left out: there is no model, or nothing is known"),
    ],
)
def test_why_says_whether_a_model_is_used(root, result, used, why):
    with open_project(root) as project:
        begun = TrainingBegun(training=1, cases=("case_0",), held_back=("case_1",), start=None, minutes=1.0)
        project.history.add(begun)
        write_json(project.learning.folder_of(1) / "result.json", result.model_dump())
        ended = project.conclude()
        assert ended.used == used and ended.why.startswith(why)


def test_a_case_that_is_rightly_empty_speaks_for_a_model(root):
    raw = root / "nnUNet_raw" / NAME
    for name in ("case_0", "case_1"):
        label = sitk.ReadImage(str(raw / "labelsTr" / f"{name}.nii.gz"))
        sitk.WriteImage(label * 0, str(raw / "labelsTr" / f"{name}.nii.gz"))
    (root / "validation").mkdir()
    shutil.copy(raw / "labelsTr" / "case_0.nii.gz", root / "validation")
    shutil.copy(raw / "labelsTr" / "case_1.nii.gz", root / "validation")
    folders = Folders(raw.parent, root / "nnUNet_preprocessed", root / "nnUNet_results")
    job = Job(kind="train", dataset=NAME, folders=("", "", ""), model=None, work="", held_back=("case_0", "case_1"))
    assert _judged(job, job.held_back, folders, root)[1] == 1


def test_a_new_model_is_judged_after_its_post_processing(root):
    raw, fold = root / "nnUNet_raw" / NAME, root / "model" / "fold_0"
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    image = sitk.ReadImage(str(raw / "labelsTr" / "case_0.nii.gz"))
    truth = np.zeros(sitk.GetArrayViewFromImage(image).shape, np.uint8)
    truth[2:7, 3:12, 4:13] = 1
    proposed = truth.copy()
    proposed[9:11, 15:18, 2:9] = 1  # another object, which post-processing takes out
    (fold / "validation").mkdir(parents=True)
    for array, file in ((truth, raw / "labelsTr" / "case_0.nii.gz"), (proposed, fold / "validation" / "case_0.nii.gz")):
        written = sitk.GetImageFromArray(array)
        written.CopyInformation(image)
        sitk.WriteImage(written, str(file))
    folders = Folders(raw.parent, root / "nnUNet_preprocessed", root / "nnUNet_results")
    job = Job(kind="train", dataset=NAME, folders=("", "", ""), model=None, work="", held_back=("case_0",))
    assert _judged(job, job.held_back, folders, fold)[1] == pytest.approx(2 * 405 / (2 * 405 + 42))
    measured = Measured(keep_largest=(1,), cases=1, dice_before=0.9, dice_after=1.0)
    write_postprocessing_of_fold(fold, [measured], {"labels": labels})
    assert _judged(job, job.held_back, folders, fold)[1] == 1


def test_images_are_put_in_order_by_an_exported_model(tmp_path, images, model):
    exported = Path(shutil.make_archive(str(tmp_path / "exported"), "zip", model.parents[1]))
    work = tmp_path / "work"
    job = Job(
        kind="rank",
        dataset=NAME,
        folders=("", "", ""),
        model=str(exported),
        work=str(work),
        device="cpu",
        images=str(images),
        pending=("a", "c"),
    )
    rank(job)
    assert sorted(file.name for file in work.glob(f"*{ENDING}")) == [f"a{ENDING}", f"c{ENDING}"]


def test_there_must_be_something_to_train_on(tmp_path):
    raw = make_raw_dataset(tmp_path / "nnUNet_raw" / NAME, num_cases=0, num_test=1)
    (raw / "imagesTs").rename(tmp_path / "pool")
    with open_project(tmp_path) as project, pytest.raises(DatasetError, match="has no case to train on"):
        project.begin_training(1.0)


def test_no_worse_is_more_than_chance():
    assert is_no_worse(0.80, 0.785, 1) and not is_no_worse(0.80, 0.785, 4)
    assert is_no_worse(None, 0.1, 3) and not is_no_worse(0.5, None, 3)
    assert mean_of([None, 0.5, 1.0]) == 0.75 and mean_of([None]) is None


def ball(radius, centre=(9, 10, 11)):
    grid = np.mgrid[:20, :20, :24] - np.reshape(centre, (3, 1, 1, 1))
    return (np.sqrt((grid**2).sum(0)) <= radius).astype(np.uint8)


def test_agreement_passes_by_the_outline_and_sees_what_is_missing_made_up_or_moved():
    described = {"labels": {"background": 0, "organ": 1, "lesion": 2}}
    accepted = ball(6)
    accepted[2, 2, 2] = 2  # a lesion of one voxel

    def of(proposed, spacing_mm=(1.0, 0.9, 1.1)):
        return agreement(proposed, accepted, described, spacing_mm)

    for radius in (5.2, 6.9):
        outline = ball(radius)
        outline[2, 2, 2:4] = 2
        assert of(accepted) == of(outline) == 1
    assert of(ball(6)) == 0.5  # without the lesion
    assert of(np.where(ball(2, (2, 17, 20)) > 0, 1, accepted)) < 0.995
    assert of(np.where(ball(4) > 0, accepted, 2 * (accepted == 2))) < 0.95
    assert of(np.roll(accepted, 4, 2)) < 0.5
    assert of(np.roll(accepted, 1, 0)) > of(np.roll(accepted, 1, 0), (5.0, 1.0, 1.0))  # a slice is no outline
    assert agreement(0 * accepted, 0 * accepted, described, (1.0, 1.0, 1.0)) == 1  # rightly nothing


def test_dice_of_what_is_there():
    one, other = np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 2, 2]]])
    labels = {"labels": {"background": 0, "organ": 1, "lesion": 2, "cyst": 3}}
    found = dice_by_class(one, other, labels)
    assert found == {"organ": pytest.approx(2 / 3), "lesion": pytest.approx(2 / 3), "cyst": None}


def test_a_training_has_the_plan_and_method_of_the_model_that_it_starts_from(tmp_path, monkeypatch):
    """A model that was tuned has plans of another name."""
    import sam3dnet
    from sam3dnet.annotation import job as module
    from sam3dnet.training import run

    planned, trained = [], []
    plans_file = tmp_path / "SAM3DPlans_lora.json"
    monkeypatch.setattr(sam3dnet, "plan_and_preprocess", lambda **given: planned.append(given) or [plans_file])
    monkeypatch.setattr(module, "activate_folders", lambda _: Folders(tmp_path, tmp_path, tmp_path))
    monkeypatch.setattr(
        run, "train_fold", lambda settings, *_, **__: trained.append(settings) or tmp_path / "m" / "fold"
    )
    monkeypatch.setattr(module, "_method_of", lambda model: f"method of {model}")
    work = {"folders": ("a", "b", "c"), "work": str(tmp_path), "cases": ("x",), "minutes": 1.0}
    made = train(Job(kind="train", dataset=NAME, model="m", **work))
    assert made.folder == str(tmp_path / "m")
    assert (planned[0]["like"], planned[0]["method"]) == ("m", "method of m")
    assert (trained[0].plans, trained[0].fold, trained[0].from_model) == ("SAM3DPlans_lora", "all", "m")


def say_what_was_found(project, model, expected):
    """Put label maps with a confidence where the order of the images leaves them; None: it has found nothing."""
    work = project.learning.folder / learning.AUTOMATIC
    work.mkdir(parents=True, exist_ok=True)
    seen = project.learning._seen_of({name: project.cases.named(name) for name in expected})
    write_json(work.parent / learning.RANKING, {"model": model, "weights": learning._weights_of(model), "seen": seen})
    for name, dice in expected.items():
        classes = dice if isinstance(dice, dict) else {"organ": dice}
        write_json(work / f"{name}{ENDING}", {"classes": {one: {"dice": value} for one, value in classes.items()}})
        image = sitk.ReadImage(str(project.cases.named(name).files[0]))
        labels = np.zeros(image.GetSize()[::-1], np.uint8)
        labels[2:6, 4:9, 3:12] = dice is not None
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        sitk.WriteImage(made, str(work / f"{name}.nii.gz"))


def test_a_class_that_is_missing_counts_as_far_as_others_have_it(root):
    with open_project(root) as project:
        project.train(0.05)
        model, images = project.state.model, project.images_waiting()
        both = {"organ": 0.8, "lesion": 0.8}
        found = {"test_0": both, "test_1": {"organ": 0.9, "lesion": None}, "test_2": both, "test_3": both}
        say_what_was_found(project, model, found)
        known = project.learning.expected_dice(model, images)
        assert known == pytest.approx({"test_0": 0.8, "test_1": 0.9 / 1.75, "test_2": 0.8, "test_3": 0.8})
        assert project.waiting()[0] == "test_1" and project.waiting("sure")[-1] == "test_1"
        rare = {"organ": 0.8, "lesion": None}
        say_what_was_found(project, model, {**dict.fromkeys(found, rare), "test_1": {"organ": None, "lesion": None}})
        known = project.learning.expected_dice(model, images)
        assert known == pytest.approx({"test_0": 0.8, "test_1": 0, "test_2": 0.8, "test_3": 0.8})


def test_a_training_learns_from_what_the_model_found_in_images_that_wait(root, monkeypatch):
    from sam3dnet.training import run

    monkeypatch.setattr(learning, "MOST_PSEUDO_LABELLED", 2)
    with open_project(root) as project:
        project.train(0.05)
        model = project.state.model
        found = {"test_0": 0.7, "test_1": None, "test_2": 0.9, "test_3": 0.8}
        say_what_was_found(project, model, found)
        monkeypatch.setattr(project.learning, "begin_training", lambda begun: None)
        begun = project.begin_training(0.05)
        assert begun.start == model and begun.pseudo_labelled == (
            "test_3",
            "test_0",
        )
        job = Job.model_validate_json((project.learning.folder_of(2) / learning.JOB).read_text())
        seen, folder = [], root / "m" / "f"
        monkeypatch.setattr(run, "train_fold", lambda *_, **given: seen.append(given["pseudo_labelled"]) or folder)
        monkeypatch.setattr("sam3dnet.plan_and_preprocess", lambda **_: [root / "SAM3DPlans.json"])
        train(job)
        assert [case.name for case in seen[0]] == ["test_0", "test_3"]
        for case in seen[0]:
            assert case.images[0].read_bytes() == (root / "pool" / f"{case.name}_0000.nii.gz").read_bytes()
            assert sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))).any()
        assert not project.learning.pseudo_labelled("another model", project.images_waiting())
        assert not project.learning.pseudo_labelled(None, project.images_waiting())


def test_a_training_prepared_anew_leaves_out_what_no_longer_waits(root):
    with open_project(root) as project:
        say_what_was_found(project, "model", {"test_0": 0.7, "test_2": 0.9})
        begun = TrainingBegun(
            training=1,
            cases=("case_0",),
            held_back=(),
            start="model",
            minutes=1.0,
            pseudo_labelled=("test_0", "test_2", "gone"),
        )
        accept(project, root, "test_2")
        project._trainings.prepare(begun, project._dataset.labelled())
        job = Job.model_validate_json((project.learning.folder_of(1) / learning.JOB).read_text())
        assert sorted(file.name for file in Path(job.pseudo_labelled, "labelsTr").iterdir()) == ["test_0.nii.gz"]


@pytest.mark.parametrize(
    ("labelled", "found", "few", "teach"),
    [
        (4, {"test_0": 0.7, "test_1": 0.8, "test_2": 0.5, "test_3": 0.6, "test_4": 0.9}, 20, True),
        (4, {"test_0": 0.7, "test_1": 0.8, "test_2": 0.5, "test_3": 0.6, "test_4": 0.9}, 3, False),
        (4, {"test_0": 0.7, "test_1": 0.8, "test_2": 0.5, "test_3": None, "test_4": None}, 20, False),
        (4, {"test_0": 0.7, "test_1": 0.8, "test_2": 0.5, "test_3": 0.6}, 20, False),  # it has not looked at all
        (0, {"test_0": 0.7, "test_1": 0.8, "test_2": 0.5, "test_3": 0.6, "test_4": 0.9}, 20, False),
    ],
)
def test_few_labels_and_many_images_teach_once(root, monkeypatch, labelled, found, few, teach):
    monkeypatch.setattr(trainings, "FEW_LABELLED", few)
    raw = root / "nnUNet_raw" / NAME
    for file in sorted(raw.glob("*/case_*"))[labelled * 2 :]:
        file.unlink()
    with open_project(root) as project:
        project.history.add(ModelChosen(folder="model"))
        say_what_was_found(project, "model", found)
        assert not project.images_teach()  # a model from elsewhere is kept until something judges
        said = {"cases": ("case_0",), "held_back": (), "start": None, "minutes": 1.0}
        project.history.add(TrainingBegun(training=1, **said))
        end = {"folder": "trained", "used": True, "before": None, "after": None, "why": ""}
        project.history.add(TrainingEnded(training=1, **end))
        say_what_was_found(project, "trained", found)
        assert project.images_teach() == teach
        begun = TrainingBegun(training=2, **said, pseudo_labelled=("test_0",))
        project.history.add(begun)
        assert not project.images_teach()
        assert "on 1 cases and 1 images without labels, 1 minutes" in in_words(begun)


def test_what_a_model_found_in_an_image_that_is_another_one_by_now_is_forgotten(root):
    with open_project(root) as project:
        model = root / "model"
        (model / "fold_0").mkdir(parents=True)
        (model / "fold_0" / "checkpoint_final.pth").write_text("weights")
        say_what_was_found(project, str(model), {"test_0": 0.7, "test_2": 0.9})

        def known():
            return project.learning.expected_dice(str(model), project.images_waiting())

        assert known() == {"test_0": 0.7, "test_2": 0.9}
        shutil.copyfile(root / "pool" / "test_1_0000.nii.gz", root / "pool" / "test_0_0000.nii.gz")
        assert known() == {"test_2": 0.9}
        (model / "fold_0" / "checkpoint_final.pth").write_text("trained for longer")
        assert known() == {}


def test_images_that_a_model_has_learned_from_do_not_judge_and_some_are_kept_to(root):
    with open_project(root) as project:
        to_learn_from = project._trainings.images_to_learn_from()
        assert "test_2" not in to_learn_from and {"test_0", "test_1", "test_3"} <= {*to_learn_from}
        said = {"training": 1, "cases": ("case_0",), "held_back": (), "start": None, "minutes": 1.0}
        project.history.add(TrainingBegun(**said, pseudo_labelled=("test_1", "test_3")))
        accept(project, root, "test_0", "test_1")
        assert not project.state.held_back  # the second that was corrected would judge, had no training begun with it
        accept(project, root, "test_2")
        assert project.state.held_back == ("test_2",)
        end = {"folder": "model", "used": True, "before": None, "after": None, "why": ""}
        project.history.add(TrainingEnded(training=1, **end))
        assert project.state.pseudo_labelled == {"test_1", "test_3"}
        assert not is_judge("test_3", True, project.state, ["test_3"], [])
        project.history.add(ModelChosen(folder="another"))
        assert not project.state.pseudo_labelled


def test_images_of_a_patient_who_judges_teach_nothing(root):
    for n, name in enumerate(("p01_a", "p01_b", "p02_a", "p02_b", "p03_a")):
        (root / "pool" / f"test_{n}_0000.nii.gz").rename(root / "pool" / f"{name}_0000.nii.gz")
    with open_project(root) as project:
        accept(project, root, "p03_a", "p01_a")
        assert project.state.held_back == ("p01_a",)
        assert "p01_b" not in project._trainings.images_to_learn_from()


def test_one_image_at_least_is_kept_to_judge_and_always_the_same():
    kept = kept_to_judge
    assert kept({"test_0", "test_1", "test_3"}, False) == {min(("test_0", "test_1", "test_3"), key=number_of)}
    assert not kept({"test_0", "test_1", "test_3"}, True) and not kept(set(), False)
    many = {f"case_{n:03}" for n in range(200)}
    assert 25 <= len(kept(many, True)) <= 55 and kept(many, True) >= kept({*list(many)[:100]}, True)


def number_of(name):
    return zlib.crc32(name.encode())


def test_a_model_that_is_gone_back_to_is_asked_again(root, monkeypatch):
    class Ended:
        status, log = 0, Path("log")

        def __init__(self, *_):
            pass

        def end(self):
            pass

    monkeypatch.setattr(learning, "BackgroundProcess", Ended)
    with open_project(root) as project:
        images = project.images_waiting()
        for model in ("first", "second", "first"):
            assert not project.learning.tried(model, images)
            project.learning.begin_ranking(model, images)
            assert {*project.learning.tried(model, images)} == {*images}
        (root / "pool" / "test_0_0000.nii.gz").write_bytes((root / "pool" / "test_1_0000.nii.gz").read_bytes())
        assert {*project.learning.tried("first", images)} == {*images} - {"test_0"}


def test_judges_do_not_follow_each_other():
    names = [f"case_{n}" for n in range(12)]
    labels = {name: Accepted(case=name, version=1, digest="") for name in names}
    asked = ("new", True, State(labels=labels), [*names, "new"], names)
    assert is_judge(*asked)
    assert is_judge(*asked[:2], State(labels=labels, held_back=("case_10",)), *asked[3:])
    assert not is_judge(*asked[:2], State(labels=labels, held_back=("case_11",)), *asked[3:])
    assert not is_judge(*asked[:2], State(labels=labels, held_back=("case_1", "case_5", "case_8")), *asked[3:])
