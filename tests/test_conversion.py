"""sam3d_convert: Decathlon and nnU-Net v1 become nnU-Net v2; each voxel keeps its value and its place."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from tasks import (
    AFFINE,
    DESCRIPTION,
    convert_below,
    edit,
    files_below,
    left_in,
    make_decathlon,
    make_first_version,
    write_label,
)

from sam3dnet.preprocessing.verify import verify_dataset

Convert = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def convert(root: Path) -> Convert:
    return partial(convert_below, root)


def assert_same_place_and_voxels(source: Path, converted: Path, channel: int | None) -> None:
    """Compare header and voxels with nibabel, voxels and place with ITK."""
    before, after = nibabel.load(source), nibabel.load(converted)
    pick: Any = ... if channel is None else (..., channel)
    np.testing.assert_array_equal(after.dataobj, np.asarray(before.dataobj)[pick])
    raw_before = np.asarray(before.dataobj.get_unscaled())[pick]
    np.testing.assert_array_equal(after.dataobj.get_unscaled(), raw_before)
    assert type(after) is type(before)
    assert list(after.header["dim"]) == [3, *before.shape[:3], 1, 1, 1, 1]
    assert after.get_data_dtype() == before.get_data_dtype()
    assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter)
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("qform_code", "sform_code", "descrip", "xyzt_units", "quatern_b", "qoffset_x", "srow_x"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    assert [one.get_content() for one in after.header.extensions] == [
        one.get_content() for one in before.header.extensions
    ]
    if isinstance(after, nibabel.Nifti2Image):
        return  # ITK does not open them
    by_itk, itk_before = sitk.ReadImage(str(converted)), sitk.ReadImage(str(source))
    voxels = sitk.GetArrayFromImage(itk_before)
    channel = channel if itk_before.GetDimension() == 4 else None  # of one channel, ITK makes three dimensions itself
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_itk), voxels if channel is None else voxels[channel])
    where = (2, 4, 3)
    there = itk_before.TransformIndexToPhysicalPoint(where if channel is None else (*where, channel))
    np.testing.assert_allclose(by_itk.TransformIndexToPhysicalPoint(where), there[:3], rtol=0, atol=1e-4)
    np.testing.assert_allclose(by_itk.TransformIndexToPhysicalPoint((0, 0, 0))[:2], (91.27, -17.31), rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "image"),
    [
        (None, {}),
        (1, {}),
        (2, {}),
        (4, {}),
        (None, {"dtype": np.float32}),
        (2, {"dtype": np.float32}),
        (2, {"dtype": np.uint8, "slope": (0.25, -3)}),
        (2, {"slope": (2.0, 7.5), "order": ">"}),
        (2, {"kind": nibabel.Nifti2Image}),
    ],
    ids=str,
)
def test_voxels_and_place_of_a_decathlon_task(
    tmp_path: Path, root: Path, convert: Convert, channels: int | None, image: dict[str, Any]
) -> None:
    task = make_decathlon(tmp_path / "Task05_Prostate", channels=channels, **image)
    assert convert(task) == 0
    made = root / "nnUNet_raw" / "Dataset005_Prostate"
    count = channels or 1
    expected = ["dataset.json", "imagesTs/p_03_0000.nii.gz", *(f"labelsTr/p_{i:02d}.nii.gz" for i in range(3))]
    expected += [f"imagesTs/p_03_{channel:04d}.nii.gz" for channel in range(1, count)]
    expected += [f"imagesTr/p_{i:02d}_{channel:04d}.nii.gz" for i in range(3) for channel in range(count)]
    assert files_below(made) == sorted(expected)
    assert left_in(root) == ["Dataset005_Prostate"]
    for part, name in (("Tr", "p_01"), ("Ts", "p_03")):
        for channel in range(count):
            source, target = task / f"images{part}" / f"{name}.nii.gz", made / f"images{part}"
            volume = None if channels is None else channel
            assert_same_place_and_voxels(source, target / f"{name}_{channel:04d}.nii.gz", volume)
    for file in (made / "labelsTr").iterdir():
        assert file.read_bytes() == (task / "labelsTr" / file.name).read_bytes()


@pytest.mark.parametrize("make", [make_decathlon, make_first_version])
def test_what_is_converted_is_sound_and_described(
    tmp_path: Path, root: Path, convert: Convert, make: Any, capsys: Any
) -> None:
    assert convert(make(tmp_path / "Task015_Two_Words")) == 0
    made = root / "nnUNet_raw" / "Dataset015_Two_Words"
    assert verify_dataset(made, 0, progress=False) == []
    content = json.loads((made / "dataset.json").read_text())
    assert list(content["labels"].items()) == [("background", 0), ("PZ", 1), ("TZ", 2)]
    assert content["channel_names"] == {"0": "T2", "1": "ADC"}
    assert (content["numTraining"], content["file_ending"]) == (3, ".nii.gz")
    for key in ("name", "description", "reference", "licence", "release"):
        assert content[key] == DESCRIPTION[key]
    assert not content.keys() & {"modality", "training", "test", "numTest", "tensorImageSize"}
    lines = capsys.readouterr().out.splitlines()
    kind = "Medical Segmentation Decathlon" if make is make_decathlon else "nnU-Net v1"
    assert lines[-2:] == [
        f"Dataset015_Two_Words: 3 training cases and 1 other, 2 channels, from the format of {kind}",
        f"Next: sam3d_plan_and_preprocess -d 15 --root {root}",
    ]


def test_files_of_the_first_version_stay_as_they_are(tmp_path: Path, root: Path, convert: Convert) -> None:
    task = make_first_version(tmp_path / "Task015_X")
    assert convert(task) == 0
    made = root / "nnUNet_raw" / "Dataset015_X"
    assert files_below(made) == files_below(task)
    for name in files_below(task):
        assert name == "dataset.json" or (made / name).read_bytes() == (task / name).read_bytes()


@pytest.mark.parametrize("make", [make_decathlon, make_first_version])
def test_it_agrees_with_the_converters_of_nnunet(
    tmp_path: Path, root: Path, convert: Convert, make: Any, monkeypatch: Any
) -> None:
    from nnunetv2.dataset_conversion import convert_MSD_dataset as decathlon
    from nnunetv2.dataset_conversion import convert_raw_dataset_from_old_nnunet_format as first_version

    task = make(tmp_path / "Task05_Prostate")
    theirs = tmp_path / "theirs" / "Dataset005_Prostate"
    for module in (decathlon, first_version):
        monkeypatch.setattr(module, "nnUNet_raw", str(theirs.parent))
    if make is make_decathlon:
        for part in ("imagesTr", "imagesTs", "labelsTr"):
            (theirs / part).mkdir(parents=True)
        for file in (*task.glob("imagesTr/p*"), *task.glob("imagesTs/p*")):
            decathlon.split_4d_nifti(str(file), str(theirs / file.parent.name))
        for file in (task / "labelsTr").iterdir():
            (theirs / "labelsTr" / file.name).write_bytes(file.read_bytes())
    else:
        first_version.convert(str(task), theirs.name)
    assert convert(task) == 0
    made = root / "nnUNet_raw" / theirs.name
    names = [name for name in files_below(theirs) if name.endswith(".nii.gz")]
    assert names == [name for name in files_below(made) if name.endswith(".nii.gz")]
    for name in names:
        ours, other = nibabel.load(made / name), nibabel.load(theirs / name)
        np.testing.assert_array_equal(ours.dataobj, other.dataobj)
        np.testing.assert_allclose(ours.affine, other.affine, rtol=0, atol=1e-4)
    if make is make_first_version:
        expected = json.loads((theirs / "dataset.json").read_text())
        assert json.loads((made / "dataset.json").read_text()) == expected


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"labels": {"0": "clear", "1": "a"}}, {"background": 0, "a": 1, "TZ": 2}),
        ({"labels": {"2": "b", "1": "a"}}, {"background": 0, "a": 1, "b": 2}),
        ({"labels": {"Background": 0, "b": 2, "a": 1}}, {"background": 0, "a": 1, "b": 2}),
    ],
)
def test_background_is_called_so(
    tmp_path: Path, root: Path, convert: Convert, changes: Any, labels: dict[str, int]
) -> None:
    task = make_decathlon(tmp_path / "Task05_X")
    edit(task, labels={**changes["labels"], **({"2": "TZ"} if "TZ" in labels else {})})
    assert convert(task) == 0
    content = json.loads((root / "nnUNet_raw" / "Dataset005_X" / "dataset.json").read_text())
    assert list(content["labels"].items()) == list(labels.items())


def test_ct_is_normalised_as_ct(tmp_path: Path, root: Path, convert: Convert, capsys: Any) -> None:
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    task = make_decathlon(tmp_path / "Task05_X")
    edit(task, modality={"1": "CT angiography", "0": " CT "})
    assert convert(task) == 0
    content = json.loads((root / "nnUNet_raw" / "Dataset005_X" / "dataset.json").read_text())
    assert list(content["channel_names"].items()) == [("0", "CT"), ("1", "CT angiography")]
    assert get_normalization_scheme(content["channel_names"]["0"]).__name__ == "CTNormalization"
    assert 'channel 1 is called "CT angiography"; nnU-Net takes voxels for Hounsfield' in capsys.readouterr().out


def lists_one_less(task: Path) -> None:
    edit(task, training=json.loads((task / "dataset.json").read_text())["training"][1:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lists_one_less, "2 files are left out: imagesTr/p_00.nii.gz, labelsTr/p_00.nii.gz; no line"),
        (lambda task: (task / "imagesTs" / "p_03.nii.gz").unlink(), "1 images that dataset.json lists in"),
        (lambda task: write_label(task / "labelsTs" / "q.nii.gz", 0), "1 labels have no image: labelsTs/q.nii.gz"),
    ],
)
def test_what_is_left_out_is_told(
    tmp_path: Path, root: Path, convert: Convert, spoil: Any, message: str, capsys: Any
) -> None:
    spoil(task := make_decathlon(tmp_path / "Task05_X"))
    assert convert(task) == 0
    assert f"Warning: {message}" in capsys.readouterr().out
    made = root / "nnUNet_raw" / "Dataset005_X"
    assert json.loads((made / "dataset.json").read_text())["numTraining"] == len(list((made / "labelsTr").iterdir()))


def without_listing(task: Path) -> None:
    edit(task, training=[], test=[])


def labels_called_otherwise(task: Path) -> None:
    listing = json.loads((task / "dataset.json").read_text())["training"]
    for entry in listing:
        name = entry["label"].replace("p_", "label_")
        (task / entry["label"]).rename(task / name)
        entry["label"] = name
    edit(task, training=listing)


def with_companions(task: Path) -> None:
    listing = json.loads((task / "dataset.json").read_text())["training"]
    edit(task, training=[*listing, {"image": "./imagesTr/._p_00.nii.gz", "label": "./labelsTr/._p_00.nii.gz"}])


@pytest.mark.parametrize("arrange", [without_listing, labels_called_otherwise, with_companions])
def test_other_listings(tmp_path: Path, root: Path, convert: Convert, arrange: Any) -> None:
    arrange(task := make_decathlon(tmp_path / "Task05_X"))
    assert convert(task) == 0
    made = root / "nnUNet_raw" / "Dataset005_X"
    assert sorted(path.name for path in (made / "labelsTr").iterdir()) == [f"p_0{i}.nii.gz" for i in range(3)]
    assert len(list((made / "imagesTs").iterdir())) == 2
    assert verify_dataset(made, 0, progress=False) == []


def test_what_does_not_change_may_be_linked(tmp_path: Path, root: Path, convert: Convert) -> None:
    task = make_decathlon(tmp_path / "Task05_X")
    assert convert(task, "--link") == 0
    made = root / "nnUNet_raw" / "Dataset005_X"
    links = [name for name in files_below(made) if (made / name).is_symlink()]
    assert links == [f"labelsTr/p_0{i}.nii.gz" for i in range(3)]
    assert (made / links[0]).resolve() == (task / links[0]).resolve()
    assert verify_dataset(made, 0, progress=False) == []


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path, root: Path, convert: Convert) -> None:
    task = make_decathlon(tmp_path / "Task05_X")
    left = root / "nnUNet_raw" / ".partial-Dataset005" / "Dataset005_X" / "imagesTr"
    left.mkdir(parents=True)
    (left / "p_00_0000.nii.gz").write_bytes(b"half")
    (left / "foreign.nii.gz").write_bytes(b"half")
    assert convert(task) == 0
    assert left_in(root) == ["Dataset005_X"]
    assert "imagesTr/foreign.nii.gz" not in files_below(root / "nnUNet_raw" / "Dataset005_X")


def test_processes_do_the_same(tmp_path: Path, root: Path, convert: Convert) -> None:
    task = make_decathlon(tmp_path / "Task05_X")
    assert convert(task, "-d", "500") == 0
    assert convert(task, "-d", "501", "--workers", "2") == 0
    here, there = (root / "nnUNet_raw" / f"Dataset{number}_X" for number in (500, 501))
    assert files_below(here) == files_below(there)
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in files_below(here))


def test_files_without_compression(tmp_path: Path, root: Path, convert: Convert) -> None:
    task = make_decathlon(tmp_path / "Task05_X", num_test=0)
    for file in [*task.glob("*/p_*.nii.gz")]:
        nibabel.load(file).to_filename(file.with_suffix(""))
        file.unlink()
    (task / "dataset.json").write_text((task / "dataset.json").read_text().replace(".nii.gz", ".nii"))
    assert convert(task) == 0
    made = root / "nnUNet_raw" / "Dataset005_X"
    assert json.loads((made / "dataset.json").read_text())["file_ending"] == ".nii"
    assert_same_place_and_voxels(task / "imagesTr" / "p_01.nii", made / "imagesTr" / "p_01_0001.nii", 1)
    np.testing.assert_allclose(nibabel.load(made / "imagesTr" / "p_01_0001.nii").affine, AFFINE, rtol=1e-6)
