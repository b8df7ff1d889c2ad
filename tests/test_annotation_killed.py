"""A project whose process is killed before any change of a file: the next one finds all whole, and goes on."""

import json
import os
import shutil
import signal
import sys

import pytest
from annotated import drawn, edit, label_in_folder, make_annotated, number_of_cases, open_project

from sam3dnet.annotation import learning
from sam3dnet.annotation import project as module
from sam3dnet.annotation.job import Result
from sam3dnet.preprocessing.folders import write_json

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed that were forked")

CHANGES = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir"}
IMAGES = {f"test_{number}" for number in range(4)}


class Asleep:
    """Stands in for what runs beside."""

    def __init__(self, module, arguments, log, record):
        self.log, self.status = log, None

    def end(self):
        pass


def kill_before_change(number, folder):
    """Have this process killed before it changes a file below a folder for the n-th time."""
    seen = []

    def is_change(event, arguments):
        return event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)

    def hook(event, arguments):
        paths = (one for one in arguments if isinstance(one, str | os.PathLike))
        if is_change(event, arguments) and any(os.fspath(path).startswith(str(folder)) for path in paths):
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def is_killed_at(number, root, do, from_the_start):
    """Do something in a process that is killed at the n-th change; tell whether there were so many."""
    child = os.fork()
    if child == 0:
        try:
            if from_the_start:
                kill_before_change(number, root)
            with open_project(root) as project:
                if not from_the_start:
                    kill_before_change(number, root)
                do(project, root)
            os._exit(0)
        except BaseException as problem:
            print(repr(problem), file=sys.stderr)
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def require_whole(root):
    """See that the folders hold what the history says, and nothing is lost or half-written."""
    with open_project(root) as project:
        labels, there = project.state.labels, {*names_of(root)}
        assert there == {"case_0", "case_1", *labels} and number_of_cases(root) == len(there)
        for case, event in labels.items():
            assert project._folders.digest(case) == event.digest
        assert {one.name for one in project.cases.all()} >= IMAGES
        assert {*project.waiting()} == IMAGES - {*labels}
    raw = root / "nnUNet_raw"
    snapshots = raw / "Dataset975_Annotated" / "sam3d_annotation" / "nnUNet_raw"  # made anew when they are needed
    assert not [file for file in raw.rglob(".partial*") if snapshots not in file.parents]


def names_of(root):
    folder = root / "nnUNet_raw" / "Dataset975_Annotated"
    names = [file.name.removesuffix(".nii.gz") for file in (folder / "labelsTr").iterdir()]
    assert sorted(f"{name}_0000.nii.gz" for name in names) == sorted(
        one.name for one in (folder / "imagesTr").iterdir()
    )
    return names


def accept(project, root, *cases, value=1):
    for case in cases:
        project.accept(case, drawn(root, case, value))


def end_training(project):
    work = project.learning.folder_of(project.state.training.training)
    write_json(work / "model" / "dataset.json", {})
    result = Result(folder=str(work / "model"), before=0.5, after=0.6)
    write_json(work / "result.json", result.model_dump())


def nothing(project, root):
    pass


def two_accepted(project, root):
    accept(project, root, "test_0", "test_1")


def one_gone_back(project, root):
    two_accepted(project, root)
    accept(project, root, "test_0", value=2)
    project.go_back(1)


def one_edited(project, root):
    two_accepted(project, root)
    edit(root, "test_0", 2)


def trained(project, root):
    two_accepted(project, root)
    project.begin_training(1.0)
    end_training(project)


def with_a_model(project, root):
    trained(project, root)
    project.conclude()


def accept_again(project, root):
    accept(project, root, "test_0", value=2)
    assert (label_in_folder(root, "test_0") == drawn(root, "test_0", 2)).all()


def go_back_and_forth(project, root):
    project.go_back(0)
    assert not project.state.labels
    project.go_back(2)
    assert {*project.state.labels} == {"test_0", "test_1"}


def train(project, root):
    begun = project.begin_training(1.0)
    assert project.learning.is_prepared(begun.training) and {*begun.cases} == {*names_of(root)} - {*begun.held_back}
    end_training(project)
    assert project.conclude().used


def has_ended(project, root):
    assert project.state.training is None and project.state.trained_on
    assert [event.kind for event in project.history.events].count("trained") == 1


def rank(project, root):
    project.rank(wait=False)
    job = json.loads((project.learning.folder / "ranking.json").read_text())
    assert {*job["pending"]} == {*project.waiting()} and job["model"] == project.state.model
    assert len([*(project.learning.folder / "automatic" / "images").iterdir()]) == len(job["pending"])


@pytest.mark.parametrize(
    ("before", "do", "then", "from_the_start"),
    [
        (nothing, lambda project, root: accept(project, root, "test_0"), accept_again, False),
        (two_accepted, accept_again, accept_again, False),
        (two_accepted, lambda project, _: project.go_back(0), go_back_and_forth, False),
        (one_gone_back, lambda project, _: project.go_back(3), go_back_and_forth, False),
        (one_edited, nothing, train, True),
        (two_accepted, lambda project, _: project.begin_training(1.0), train, False),
        (trained, nothing, has_ended, True),
        (with_a_model, lambda project, _: project.rank(wait=False), rank, False),
    ],
    ids=["accept", "accept again", "go back", "go forth", "find", "train", "conclude", "rank"],
)
def test_what_was_killed_goes_on(before, do, then, from_the_start, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "BackgroundProcess", Asleep)
    monkeypatch.setattr(module, "require_fitting", lambda *_: None)
    root, saved, number = make_annotated(tmp_path / "root"), tmp_path / "saved", 1
    with open_project(root) as project:
        before(project, root)
    shutil.copytree(root, saved)
    while is_killed_at(number, root, do, from_the_start):
        require_whole(root)
        with open_project(root) as project:
            then(project, root)
        require_whole(root)
        shutil.rmtree(root)
        shutil.copytree(saved, root)
        number += 1
    assert number > 5
    with open_project(root) as project:
        then(project, root)
