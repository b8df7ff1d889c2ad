"""A dataset that is annotated whose files are called anything, lie behind links or cannot be reached."""

import json
import os
import shutil

import pytest
import readers
import SimpleITK as sitk
from annotated import NAME, describe, drawn, label_in_folder, make_annotated, number_of_cases, open_project, raw

from sam3dnet.annotation import labelled, learning
from sam3dnet.annotation.learning import take_snapshot
from sam3dnet.annotation.project import AnnotationProject
from sam3dnet.errors import DatasetError


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


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
            found = reader.read_images(project.cases.named(truth).files)
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
