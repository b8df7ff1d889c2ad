"""What reads a dataset, and what it says of its files: headers, voxels, what lies beside them."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from phantoms import make_raw_dataset

from sam3dnet.errors import DatasetError
from sam3dnet.evaluation.folder import evaluate_folder
from sam3dnet.preprocessing.cases import list_training_cases, read_dataset_json
from sam3dnet.preprocessing.reading import DatasetReader, dataset_reader, reader_named, reader_of_cases
from sam3dnet.preprocessing.records import make_record
from sam3dnet.preprocessing.verify import verify_dataset
from sam3dnet.settings.evaluation import ScoringSettings

SHEARED = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


STRAIGHT = np.eye(4)


def write_nifti(file: Path, affine: np.ndarray = STRAIGHT, shape: tuple[int, ...] = (6, 5, 4)) -> Path:
    rng = np.random.default_rng(0)
    nibabel.Nifti1Image(rng.integers(0, 3, shape).astype(np.int16), affine).to_filename(file)
    return file


def found(folder: Path) -> dict[str, str]:
    return {problem.check: problem.message for problem in verify_dataset(folder, 0, progress=False)}


def make(tmp_path: Path, ending: str, **more_keys: Any) -> Path:
    return make_raw_dataset(tmp_path / "Dataset906_Reading", num_cases=2, file_ending=ending, **more_keys)


def as_tiff(folder: Path, spacing: tuple[float, ...] = (4, 0.5, 0.5)) -> Path:
    """Turn a dataset's files into TIFF, with the images' spacing beside them."""
    for file in sorted(folder.glob("*/*.mha")):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        tifffile.imwrite(file.with_suffix(".tif"), array, photometric="minisblack")
        file.unlink()
        if file.parent.name.startswith("images"):
            file.with_name(f"{file.stem[:-5]}.json").write_text(json.dumps({"spacing": spacing}))
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    return folder


@pytest.mark.parametrize(
    ("ending", "affine", "more", "reader"),
    [
        (".nii.gz", np.eye(4), {}, "SimpleITKIO"),
        (".nii", np.eye(4), {}, "NibabelIO"),
        (".nii.gz", SHEARED, {}, "NibabelIO"),
        (".nii.gz", np.eye(4), {"overwrite_image_reader_writer": "NibabelIOWithReorient"}, "NibabelIOWithReorient"),
        (".nii.gz", np.eye(4), {"overwrite_image_reader_writer": "None"}, "SimpleITKIO"),
    ],
)
def test_the_reader_is_nnunets(tmp_path, ending, affine, more, reader, capfd):
    file = write_nifti(tmp_path / f"a_0000{ending}", affine)
    assert dataset_reader({"file_ending": ending, **more}, file).name == reader
    assert capfd.readouterr() == ("", "")  # neither nnU-Net's lines nor its tracebacks


def test_a_reader_that_there_is_not_is_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match="\"overwrite_image_reader_writer\" is 'Foo', which nnU-Net does not have"):
        dataset_reader({"file_ending": ".nii", "overwrite_image_reader_writer": "Foo"}, None)
    (tmp_path / "a_0000.nii").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"a_0000.nii: nnU-Net has no reader that opens it; export it again"):
        dataset_reader({"file_ending": ".nii"}, tmp_path / "a_0000.nii")


def test_pictures_of_two_dimensions_are_left_to_stock_nnunet(tmp_path):
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((20, 24), np.uint8))
    with pytest.raises(DatasetError, match=r"is a picture in two dimensions; .* use stock nnU-Net \(2d\)"):
        dataset_reader({"file_ending": ".tif"}, tmp_path / "a_0000.tif")


def test_four_dimensions_are_refused_by_the_reader_that_does_not_take_them(tmp_path):
    for ending, name, is_right in ((".nii", "NibabelIO", False), (".nii.gz", "SimpleITKIO", True)):
        file = write_nifti(tmp_path / f"a_0000{ending}", shape=(6, 5, 4, 1))
        grid, problems = DatasetReader(name).read_grid("a", file)
        assert (grid is not None) == is_right
        assert [p.check for p in problems] == ([] if is_right else ["dimension"])
    folder = make(tmp_path, ".nii")
    first = sorted((folder / "imagesTr").iterdir())[0]
    image = nibabel.load(first)
    nibabel.Nifti1Image(np.array(np.asarray(image.dataobj))[..., None], image.affine).to_filename(first)
    problems = found(folder)
    assert "drop the axes of length 1" in problems["dimension"]
    assert "no reader" not in problems


def test_a_file_that_itk_cannot_open_names_the_reader_that_can(tmp_path):
    file = write_nifti(tmp_path / "a_0000.nii.gz", SHEARED)
    (problem,) = DatasetReader("SimpleITKIO").read_grid("a", file)[1]
    assert 'have nibabel read the dataset: "overwrite_image_reader_writer": "NibabelIO"' in problem.message
    grid, _ = DatasetReader("NibabelIO").read_grid("a", file)
    assert grid is not None and grid.shape == (4, 5, 6)


def test_accepted_voxels_that_are_not_finite_are_0_in_every_format(tmp_path):
    for ending, name in ((".nii", "NibabelIO"), (".nii.gz", "SimpleITKIO"), (".mha", "SimpleITKIO")):
        array = np.ones((4, 5, 6), np.float32)
        array[1, 2, 3], array[1, 2, 4] = np.nan, np.inf
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{ending}"))
        reader = reader_named(name, {"sam3d_accept": ["non-finite voxels"]})
        image = reader.read_images([tmp_path / f"a{ending}"])[0]
        assert (image[0, 1, 2, 3], image[0, 1, 2, 4]) == (0, 0)
        assert image.sum() == array.size - 2


def test_a_dataset_of_tiff_is_sound_and_its_spacing_counts(tmp_path):
    folder = as_tiff(make(tmp_path, ".mha"))
    assert found(folder) == {}
    cases = list_training_cases(folder, read_dataset_json(folder))
    reader = reader_of_cases(read_dataset_json(folder), cases)
    assert reader.name == "Tiff3DIO"
    for file, is_label in ((cases[0].images[0], False), (cases[0].label, True)):
        grid, _ = reader.read_grid("a", file, is_label)
        assert grid is not None and grid.spacing_mm == (4, 0.5, 0.5)
    before = make_record(cases[0], "", reader)
    sidecar = folder / "imagesTr" / f"{cases[0].name}.json"
    sidecar.write_text('{"spacing": [8, 0.5, 0.5]}')
    assert make_record(cases[0], "", reader) != before
    for content, message in (("{", "ends in"), ('{"spacing": [1, 0, 1]}', "three numbers above 0"), ("[]", "spacing")):
        sidecar.write_text(content)
        assert message in found(folder)["unreadable file"]


def test_scores_of_tiff_follow_the_spacing_beside_the_images(tmp_path):
    folder = as_tiff(make(tmp_path, ".mha"))
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    for file in (folder / "labelsTr").glob("*.tif"):
        tifffile.imwrite(shifted / file.name, np.roll(tifffile.imread(file), 1, 0), photometric="minisblack")
    settings = ScoringSettings(dataset_json=folder / "dataset.json", num_processes=0)
    result = evaluate_folder(shifted, folder / "labelsTr", settings, progress=False)
    for case in result.cases.values():
        assert case.scores["organ"].hd95_mm == pytest.approx(4)  # one slice
        assert case.scores["organ"].truth_ml == pytest.approx(
            np.count_nonzero(np.isin(tifffile.imread(case.files.truth), (1,))) * 4 * 0.5 * 0.5 / 1000
        )


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_tiff_of_any_type_is_read(tmp_path, dtype):
    folder = as_tiff(make(tmp_path, ".mha"))
    for file in folder.glob("*/*.tif"):
        tifffile.imwrite(file, tifffile.imread(file).astype(dtype), photometric="minisblack")
    assert found(folder) == {}


def test_headers_that_say_two_places_are_told_once(tmp_path):
    folder = make(tmp_path, ".nii.gz")
    assert "two places" not in found(folder)
    for file in folder.glob("*/*.nii.gz"):
        image = nibabel.load(file)
        shift = np.eye(4)
        shift[0, 3] = 7
        image.set_sform(shift @ image.affine, 2)
        image.set_qform(image.affine if image.get_qform() is None else image.get_qform(), 1)
        nibabel.save(image, tmp_path / "x.nii.gz")
        (tmp_path / "x.nii.gz").replace(file)
    assert "the headers of 2 images say two places" in found(folder)["two places"]


def test_numbers_beyond_float32_are_no_sound_image(tmp_path):
    folder = make(tmp_path, ".mha")
    file = sorted((folder / "imagesTr").iterdir())[0]
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image).astype(np.float64)
    array[0, 0, 0] = 1e300
    written = sitk.GetImageFromArray(array)
    written.CopyInformation(image)
    sitk.WriteImage(written, str(file))
    assert "1 voxels are NaN or infinite in float32" in found(folder)["non-finite voxels"]
