"""A dataset that is annotated: the models that propose, and the order in which images come."""

import json
import shutil

import pytest
from annotated import NAME, describe, drawn, make_annotated, open_project, raw
from cascades import make_cascade_model
from fake_prompts import make_promptable_model

from sam3dnet.annotation import learning
from sam3dnet.annotation.fitting import require_fitting
from sam3dnet.annotation.history import TrainingBegun, TrainingEnded
from sam3dnet.errors import CheckpointError, DatasetError, PlanError, PromptError
from sam3dnet.inference.confidence import ENDING
from sam3dnet.preprocessing.reading import reader_named


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


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
    described, reader = json.loads(file.read_text()) | names[1], reader_named("SimpleITKIO", {})
    if are_others:
        with pytest.raises(DatasetError, match=f"channels {', '.join(theirs)}, here {', '.join(own)}; train"):
            require_fitting(model, "here", described, reader)
        return
    require_fitting(model, "here", described, reader)
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
    with pytest.raises(CheckpointError, match="nowhere: is not there; expected the folder"):
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
        (folder.parent / "ranking.json").write_text(json.dumps({"model": "another"}))
        (folder / f"test_1{ENDING}").write_text(json.dumps({"classes": {"organ": {"dice": 0.5}}}))
        assert project.unranked()
        project.rank(wait=False)
        assert asked == [[f"test_{n}_0000.nii.gz" for n in range(4)]]
        assert not project.unranked() and "damaged" in caplog.text
        assert not (folder / f"test_1{ENDING}").exists()
        assert not [*folder.glob("*.json")]  # there the spacing of TIFF files is to lie, in CASE.json
        shutil.copy(root / "pool" / "test_1_0000.nii.gz", root / "pool" / "new_0000.nii.gz")
        assert project.unranked()
