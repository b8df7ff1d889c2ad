"""One dataset with all faults at once: none is missed, none hides another, none is invented, none ends the run."""

import gzip
import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from faults import FLIPPED, check, edit_json, image_of, label_of, make, read, rewrite, rewrite_as, set_voxels, truncate
from phantoms import LABELS, write_volume

CHANNELS = ("CT", "T2")
Break = Callable[[Path, int], object]


def repack(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change the bytes inside of a .nii.gz file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(content))


def flip_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere.nii.gz")


def stack(path: Path, join: Callable[[list[sitk.Image]], sitk.Image]) -> None:
    sitk.WriteImage(join([sitk.ReadImage(str(path))] * 2), str(path))


def flatten(path: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(path))[:, :, 0], str(path))


def all_of(folder: Path, case: int) -> list[Path]:
    return [*(image_of(folder, case, channel) for channel in range(len(CHANNELS))), label_of(folder, case)]


def change_all(folder: Path, case: int, **geometry: object) -> None:
    for path in all_of(folder, case):
        rewrite(path, **geometry)  # type: ignore[arg-type]


def remove_images(folder: Path, case: int) -> None:
    for channel in range(len(CHANNELS)):
        image_of(folder, case, channel).unlink()


def garbage(path: Path) -> None:
    path.write_text("a web page of a failed download\n" * 30)


# What is done to a case of its own, and what must be found there.
CASE_FAULTS: list[tuple[str, Break, str]] = [
    ("image cut", lambda f, i: truncate(image_of(f, i), 0.6), "truncated file"),
    ("image of no bytes", lambda f, i: truncate(image_of(f, i), 0), "truncated file"),
    (
        "image cut before it was packed",
        lambda f, i: repack(image_of(f, i), lambda c: c.__delitem__(slice(-20, None))),
        "truncated file",
    ),
    (
        "image that ends in its header",
        lambda f, i: repack(image_of(f, i), lambda c: c.__delitem__(slice(200, None))),
        "truncated file",
    ),
    ("second channel cut", lambda f, i: truncate(image_of(f, i, 1), 0.5), "truncated file"),
    ("label cut", lambda f, i: truncate(label_of(f, i), 0.6), "truncated file"),
    ("label of no bytes", lambda f, i: truncate(label_of(f, i), 0), "truncated file"),
    ("checksum of an image", lambda f, i: flip_checksum(image_of(f, i)), "damaged file"),
    ("checksum of a label", lambda f, i: flip_checksum(label_of(f, i)), "damaged file"),
    ("image that is a text", lambda f, i: garbage(image_of(f, i)), "unreadable file"),
    ("label that is a text", lambda f, i: garbage(label_of(f, i)), "unreadable file"),
    ("image that links to nowhere", lambda f, i: link_to_nowhere(image_of(f, i)), "unreadable file"),
    ("label that links to nowhere", lambda f, i: link_to_nowhere(label_of(f, i)), "unreadable file"),
    (
        "99 dimensions",
        lambda f, i: repack(image_of(f, i), lambda c: struct.pack_into("<h", c, 40, 99)),
        "unreadable file",
    ),
    ("NaN", lambda f, i: rewrite(image_of(f, i), lambda a: set_voxels(a, np.nan)), "non-finite voxels"),
    ("infinity", lambda f, i: rewrite(image_of(f, i, 1), lambda a: set_voxels(a, np.inf)), "non-finite voxels"),
    ("minus infinity", lambda f, i: rewrite(image_of(f, i), lambda a: set_voxels(a, -np.inf)), "non-finite voxels"),
    ("NaN in a label", lambda f, i: rewrite(label_of(f, i), lambda a: set_voxels(a, np.nan)), "non-finite voxels"),
    ("constant image", lambda f, i: rewrite(image_of(f, i), lambda a: np.full_like(a, 7)), "constant image"),
    ("empty image", lambda f, i: rewrite(image_of(f, i), lambda a: a * 0), "all-zero image"),
    ("empty second channel", lambda f, i: rewrite(image_of(f, i, 1), lambda a: a * 0), "all-zero image"),
    ("0/255", lambda f, i: rewrite(label_of(f, i), lambda a: (a > 0).astype(np.uint8) * 255), "label 0/255"),
    ("fractions", lambda f, i: rewrite(label_of(f, i), lambda a: a * np.float32(0.75)), "non-integer label"),
    ("undeclared value", lambda f, i: rewrite(label_of(f, i), lambda a: a * 7), "undeclared label value"),
    ("negative value", lambda f, i: rewrite(label_of(f, i), lambda a: -a.astype(np.int16)), "undeclared label value"),
    ("nothing but background", lambda f, i: rewrite(label_of(f, i), lambda a: a * 0), "empty label"),
    ("label of another shape", lambda f, i: rewrite(label_of(f, i), lambda a: a[:-1]), "shape mismatch"),
    ("label of another spacing", lambda f, i: rewrite(label_of(f, i), spacing_mm=(3.0, 0.7, 1.2)), "spacing mismatch"),
    ("label at another place", lambda f, i: rewrite(label_of(f, i), origin_mm=(0.0, 23.0, 5.0)), "origin mismatch"),
    ("label mirrored", lambda f, i: rewrite(label_of(f, i), direction=FLIPPED), "direction mismatch"),
    ("channel of another shape", lambda f, i: rewrite(image_of(f, i, 1), lambda a: a[:, 1:]), "shape mismatch"),
    (
        "channel of another spacing",
        lambda f, i: rewrite(image_of(f, i, 1), spacing_mm=(3.0, 0.8, 1.1)),
        "spacing mismatch",
    ),
    (
        "channel at another place",
        lambda f, i: rewrite(image_of(f, i, 1), origin_mm=(-11.0, 0.0, 5.0)),
        "origin mismatch",
    ),
    ("channel mirrored", lambda f, i: rewrite(image_of(f, i, 1), direction=FLIPPED), "direction mismatch"),
    ("missing channel", lambda f, i: image_of(f, i, 1).unlink(), "missing channel"),
    ("skipped channel", lambda f, i: image_of(f, i, 0).unlink(), "skipped channel"),
    (
        "one channel too many",
        lambda f, i: rewrite_as(f, image_of(f, i), f"case_{i}_0002.nii.gz"),
        "extra channel",
    ),
    ("4D image", lambda f, i: stack(image_of(f, i), sitk.JoinSeries), "dimension"),
    ("image of vectors", lambda f, i: stack(image_of(f, i), sitk.Compose), "dimension"),
    ("2D image", lambda f, i: flatten(image_of(f, i)), "dimension"),
    ("4D label", lambda f, i: stack(label_of(f, i), sitk.JoinSeries), "dimension"),
    (
        "image in two formats",
        lambda f, i: write_volume(read(image_of(f, i)), f / "imagesTr" / f"case_{i}_0000.nii"),
        "two formats",
    ),
    ("missing label", lambda f, i: label_of(f, i).unlink(), "missing label"),
    ("missing image", remove_images, "label without image"),
]
CASE_WARNINGS: list[tuple[str, Break, str]] = [
    (
        "not packed",
        lambda f, i: image_of(f, i).write_bytes(gzip.decompress(image_of(f, i).read_bytes())),
        "not compressed",
    ),
    ("outlying spacing", lambda f, i: change_all(f, i, spacing_mm=(3.0, 9.7, 1.1)), "outlying spacing"),
]


def break_cases(folder: Path) -> Counter[tuple[str, str, str]]:
    """Break a case each, beginning with case_1; give what must be found."""
    expected: Counter[tuple[str, str, str]] = Counter()
    faults = [("error", *fault) for fault in CASE_FAULTS] + [("warning", *fault) for fault in CASE_WARNINGS]
    for case, (severity, _, break_it, check_name) in enumerate(faults, start=1):
        break_it(folder, case)
        expected[severity, f"case_{case}", check_name] += 1
    return expected


def break_names(folder: Path) -> Counter[tuple[str, str, str]]:
    """Add cases that are there twice or differ only by case, and files that belong to no case."""
    for name, change in (("twin", 0), ("Case_0", 11)):
        for channel in range(len(CHANNELS)):
            image = read(image_of(folder, 0, channel)) + (change or 5 * channel)
            write_volume(image, folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        write_volume(read(label_of(folder, 0)), folder / "labelsTr" / f"{name}.nii.gz")
    write_volume(read(image_of(folder, 0)) + 13, folder / "imagesTr" / "nameless.nii.gz")
    (folder / "imagesTr" / "notes.txt").write_text("notes")
    (folder / "labelsTr" / "other.nii").write_text("another format")
    return Counter(
        {
            ("error", "case_0", "duplicate image"): 1,  # of twin, and of imagesTs/copy
            ("error", "Case_0", "names differ only by case"): 1,
            ("error", "nameless", "file name"): 1,
            ("warning", "dataset", "other files"): 2,
        }
    )


def break_test_images(folder: Path) -> Counter[tuple[str, str, str]]:
    def test_image(case: int, channel: int = 0) -> Path:
        return folder / "imagesTs" / f"test_{case}_{channel:04d}.nii.gz"

    truncate(test_image(0), 0.5)
    test_image(1, 1).unlink()
    rewrite(test_image(2), lambda image: set_voxels(image, np.nan))
    rewrite(test_image(3, 1), lambda image: image[1:])
    write_volume(read(image_of(folder, 0)), folder / "imagesTs" / "copy_0000.nii.gz")
    write_volume(read(image_of(folder, 0)) + 17, folder / "imagesTs" / "copy_0001.nii.gz")
    write_volume(read(test_image(4)), test_image(4).with_suffix(""))
    return Counter(
        {
            ("warning", "test_0", "truncated file"): 1,
            ("warning", "test_1", "missing channel"): 1,
            ("warning", "test_2", "non-finite voxels"): 1,
            ("warning", "test_3", "shape mismatch"): 1,
            ("warning", "test_4", "two formats"): 1,
        }
    )


def break_description(folder: Path) -> Counter[tuple[str, str, str]]:
    labels = {**LABELS, "cyst": 3, "ignore": 9}
    edit_json(folder, numTraining=999, labels=labels, channel_names={"0": "CT", "2": "T2"}, sam3d_accept="everything")
    return Counter(
        {
            ("error", "dataset", "numTraining"): 1,
            ("error", "dataset", "labels"): 1,
            ("error", "dataset", "dataset.json"): 2,
            ("warning", "dataset", "class never occurs"): 1,
            ("warning", "dataset", "mixed orientations"): 1,
        }
    )


def test_more_than_40_faults_in_one_dataset(tmp_path: Path) -> None:
    num_broken = len(CASE_FAULTS) + len(CASE_WARNINGS)
    folder = make(tmp_path, num_cases=num_broken + 4, num_test=6, channel_names=CHANNELS)
    assert check(folder) == []
    mirrored = num_broken + 2
    change_all(folder, mirrored, direction=FLIPPED)
    expected = break_cases(folder) + break_names(folder) + break_test_images(folder) + break_description(folder)
    assert expected.total() >= 40
    problems = check(folder)
    assert Counter((problem.severity, problem.case, problem.check) for problem in problems) == expected
    assert all(len(problem.message) > 20 for problem in problems)
    assert f"case_{mirrored} (RPS)" in next(p.message for p in problems if p.check == "mixed orientations")


def test_files_outside_of_the_dataset_are_not_read(tmp_path: Path) -> None:
    folder = make(tmp_path)
    secret = tmp_path / "secret.nii.gz"
    secret.write_bytes(image_of(folder, 0).read_bytes())
    inside = {"images": ["imagesTr/case_0_0000.nii.gz"], "label": "labelsTr/case_0.nii.gz"}
    listed = {
        "sound": inside,
        "above": inside | {"images": ["../secret.nii.gz"]},
        "absolute": inside | {"label": str(secret)},
        "roundabout": inside | {"images": ["imagesTr/../../secret.nii.gz"]},
        "../named": inside,
    }
    (folder / "dataset.json").write_text(
        json.dumps(json.loads((folder / "dataset.json").read_text()) | {"dataset": listed, "numTraining": 1})
    )
    found = {(problem.case, problem.check) for problem in check(folder)}
    assert found == {(name, "file outside") for name in listed if name != "sound"}
