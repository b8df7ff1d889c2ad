"""Which cases judge models: none that a model has learned from, nor whose patient trains; and what is judged."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from annotated import NAME, describe, drawn, edit, make_annotated, open_project, raw
from tiny_models import make_checkpoint, make_model, make_weights

from sam3dnet.annotation.fitting import require_fitting
from sam3dnet.annotation.judging import agreement, dice_by_class
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.reading import reader_named

DESCRIBED = {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


def make_learned(folder, **learned):
    """Make a model of the annotated dataset whose checkpoint says what it has learned from."""
    model = make_model(folder)
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(plans | {"dataset_name": NAME}))
    torch.save(make_checkpoint(make_weights(0), sam3d=learned), model / "fold_0" / "checkpoint_final.pth")
    return model


def test_what_a_chosen_model_has_learned_from_does_not_judge(root):
    learned = {"training_cases": ["case_0"], "started_from": ["case_1"], "pseudo_labelled": {"test_1": "digest"}}
    with open_project(root, model=make_learned(root / "learned", **learned)) as project:
        assert project.state.trained_on == {"case_0", "case_1"} and project.state.pseudo_labelled == {"test_1"}
        project.accept("test_0", drawn(root, "test_0"))  # the first trains
        assert not project.accept("test_1", drawn(root, "test_1")).held_back
        assert project.accept("test_2", drawn(root, "test_2")).held_back
        assert not project.images_teach()  # it was not trained here
    with open_project(root, model=make_model(root / "other")) as project:  # of another dataset, where names say nothing
        assert not project.state.learned_from


def test_a_further_case_of_a_patient_who_judges_judges_too(root, not_run):
    images, labels = raw(root) / "imagesTr", raw(root) / "labelsTr"
    for number, name in enumerate(("p01_a", "p01_b", "p02_a", "p03_a")):
        (root / "pool" / f"test_{number}_0000.nii.gz").rename(root / "pool" / f"{name}_0000.nii.gz")
    with open_project(root) as project:
        project.accept("p02_a", drawn(root, "p02_a"))
        assert project.accept("p01_a", drawn(root, "p01_a")).held_back
        (root / "pool" / "p01_b_0000.nii.gz").rename(images / "p01_b_0000.nii.gz")  # a colleague has labelled it
        made = sitk.GetImageFromArray(drawn(root, "p01_b"))
        made.CopyInformation(sitk.ReadImage(str(images / "p01_b_0000.nii.gz")))
        sitk.WriteImage(made, str(labels / "p01_b.nii.gz"))
        begun = project.begin_training(1.0)
        assert begun.held_back == ("p01_a", "p01_b") and begun.cases == ("case_0", "case_1", "p02_a")


def test_voxels_to_be_ignored_do_not_judge():
    truth = np.zeros((10, 24, 24), np.uint8)
    truth[2:8, 6:16, 6:16] = 1
    sparse = np.full_like(truth, 3)
    sparse[5] = truth[5]
    in_slice = np.where(np.arange(10)[:, None, None] == 5, truth, 0)
    for proposed in (truth, in_slice):
        assert agreement(proposed, sparse, DESCRIBED, (1.0, 1.0, 1.0)) == 1
        assert dice_by_class(proposed, sparse, DESCRIBED) == {"organ": 1, "lesion": None}
    missed = np.where(np.arange(24) < 12, truth, 0)
    assert agreement(missed, sparse, DESCRIBED, (1.0, 1.0, 1.0)) < 0.9
    assert agreement(0 * truth, sparse, DESCRIBED, (1.0, 1.0, 1.0)) < 0.7
    assert dice_by_class(0 * truth, sparse, DESCRIBED)["organ"] == 0


def test_a_model_that_reads_other_axes_is_refused(root):
    model = make_model(root / "model")
    described = json.loads((model / "dataset.json").read_text())
    with pytest.raises(DatasetError, match=r"reads images by SimpleITKIO, here is read by NibabelIOWithReorient.*axes"):
        require_fitting(model, "here", described, reader_named("NibabelIOWithReorient", {}))
    require_fitting(model, "here", described, reader_named("NibabelIO", {}))
    describe(root, overwrite_image_reader_writer="SimpleITKIOWithReorient")
    with pytest.raises(DatasetError, match=r'write "overwrite_image_reader_writer": "SimpleITKIO" into'):
        open_project(root, model=model)


def test_what_was_gone_back_from_and_a_case_that_was_accepted_twice_do_not_hasten_a_training(root):
    with open_project(root) as project:
        for name in ("test_0", "test_1", "test_1", "test_2"):
            project.accept(name, drawn(root, name))
        assert project.accepted_since_training == 3
        project.go_back(3)
        assert project.accepted_since_training == 2
        project.go_back(0)
        assert project.accepted_since_training == 0
        project.go_back(4)
        assert project.accepted_since_training == 3
        edit(root, "test_0", 2)
        project.take_notice("test_0")
        assert project.accepted_since_training == 2
