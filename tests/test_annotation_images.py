"""A dataset that is annotated: images that are replaced by others of their name stay with their label maps."""

import json
import shutil

import pytest
import SimpleITK as sitk
from annotated import drawn, label_in_folder, make_annotated, open_project, raw, replace_image

from sam3dnet.annotation import followed, labelled
from sam3dnet.errors import DatasetError


@pytest.fixture
def root(tmp_path):
    return make_annotated(tmp_path)


def test_a_label_map_that_is_gone_back_to_lies_on_its_own_image(root):
    image = raw(root) / "imagesTr" / "test_0_0000.nii.gz"
    with open_project(root) as project:
        project.accept("test_0", drawn(root, "test_0", 1))
        first = image.read_bytes()
        second = replace_image(root, "test_0")
        project.go_back(0)
        assert project.cases.named("test_0").files[0].read_bytes() == second  # what waits
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
        assert project.cases.named("test_0").files[0].read_bytes() == second and not image.exists()
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
            shutil.copy(project.cases.named("test_0").files[0], root / "pool" / image.name)
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
        assert project.cases.named("test_0").files[0].read_bytes() == waiting_image[1]


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
