"""What `import sam3dnet` offers: these names and no others, imported when used; models from Python."""

import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fake_prompts import make_promptable_model
from tiny_models import make_model, write_image

import sam3dnet
from sam3dnet.errors import CheckpointError, DatasetError, PromptError, Sam3dError
from sam3dnet.portable.sources import model_folder, source_to_start_from

NAMES = {
    "plan_and_preprocess",
    "train",
    "predict",
    "evaluate",
    "verify",
    "load_model",
    "Model",
    "PromptSession",
    "AnnotationProject",
    "Sam3dError",
    "CheckpointError",
    "DatasetError",
    "FailedCasesError",
    "PlanError",
    "PromptError",
    "__version__",
}


def test_these_names_are_offered_and_no_others() -> None:
    assert set(sam3dnet.__all__) == NAMES
    assert set(dir(sam3dnet)) >= NAMES
    assert all(getattr(sam3dnet, name) is not None for name in NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'segment'"):
        sam3dnet.segment  # noqa: B018


def test_every_kind_of_error_is_offered() -> None:
    assert {error.__name__ for error in Sam3dError.__subclasses__() if error.__module__ == "sam3dnet.errors"} <= NAMES


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_all_that_is_offered_is_typed(name: str) -> None:
    offered = getattr(sam3dnet, name)
    if isinstance(offered, type):
        assert offered.__doc__
        return
    annotations = typing.get_type_hints(offered, localns={**vars(typing), **_types_of(offered)})
    assert "return" in annotations


def _types_of(function: object) -> dict[str, object]:
    """Give the types that are imported for type checkers alone."""
    from sam3dnet.inference.predictor import PredictionReport
    from sam3dnet.preprocessing.problems import Problem

    return {"PredictionReport": PredictionReport, "Problem": Problem}


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import sys, sam3dnet; dir(sam3dnet); sam3dnet.PlanError; print([n for n in sys.modules if '.' not in n])"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "sam3dnet" in imported
    assert not any(f"'{name}'" in imported for name in ("torch", "numpy", "nnunetv2", "SimpleITK", "pydantic"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "in" / "a_0000.nii.gz", 3)
    return tmp_path / "in" / "a_0000.nii.gz"


def test_a_model_segments_files_and_arrays_as_the_command_does(tmp_path: Path, image: Path) -> None:
    folder = make_model(tmp_path / "results")
    model = sam3dnet.load_model(folder, device="cpu")
    labels = model.segment(image)
    sam3dnet.predict(
        input_folder=image.parent, output_folder=tmp_path / "out", root=_root_of(folder, tmp_path), device="cpu"
    )
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz")))
    np.testing.assert_array_equal(labels, written)
    read = sitk.ReadImage(str(image))
    from_array = model.segment(sitk.GetArrayFromImage(read), spacing_mm=read.GetSpacing()[::-1])
    np.testing.assert_array_equal(from_array, labels)
    assert set(np.unique(labels)) <= {0, *model.labels.values()}
    assert tuple(model.labels) == model.class_names
    with pytest.raises(DatasetError, match=r"spacing_mm is None; expected three millimetres"):
        model.segment(sitk.GetArrayFromImage(read))


def _root_of(model_folder: Path, tmp_path: Path) -> Path:
    """Lay the results of a model where --root looks for them."""
    root = tmp_path / "root"
    (root / "nnUNet_results").mkdir(parents=True)
    (root / "nnUNet_results" / model_folder.parent.name).symlink_to(model_folder.parent)
    return root


def test_a_model_is_found_by_folder_zip_and_dataset(tmp_path: Path, image: Path) -> None:
    folder = make_model(tmp_path / "results")
    packed = tmp_path / "model.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(folder.parents[1]))
    expected = sam3dnet.load_model(folder, device="cpu").segment(image)
    root = _root_of(folder, tmp_path)
    for source in (str(folder), packed, 901, "901", "Dataset901_Tiny"):
        found = sam3dnet.load_model(source, device="cpu", root=root).segment(image)
        np.testing.assert_array_equal(found, expected)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "root" / "nnUNet_results")
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(CheckpointError, match=r"x\.zip: expected a zip file with a model"):
        sam3dnet.load_model(tmp_path / "x.zip", device="cpu")
    with pytest.raises(CheckpointError, match=r"expected a trained model for dataset 7; trained are Dataset901_Tiny"):
        sam3dnet.load_model(7, device="cpu", root=tmp_path / "root")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointError, match=r"empty.zip: holds no plans\.json; expected a zip file with a model"):
        sam3dnet.load_model(tmp_path / "empty.zip", device="cpu")


def test_a_folder_beside_a_model_is_told_from_it(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "root" / "nnUNet_results")
    (tmp_path / "empty").mkdir()
    for wrong, message in {
        model / "fold_0": f"fold_0: is one fold; expected the folder of the model, {model}$",
        model
        / "fold_0"
        / "checkpoint_final.pth": f"is a checkpoint; expected the folder of its model.*such as {model}$",
        model.parent: f"Dataset901_Tiny: expected the folder of a model.*; there are {model}$",
        model.parent.parent: f"nnUNet_results: expected the folder of a model.*; there are {model}$",
        tmp_path / "empty": r"empty: expected the folder of a model.*; it holds no plans\.json$",
        tmp_path / "gone": "gone: is not there; expected the folder of a model",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            sam3dnet.load_model(wrong, device="cpu")
        with pytest.raises(CheckpointError, match=message):
            sam3dnet.load_model(str(wrong), device="cpu")
        settings = {"input_folder": image.parent, "output_folder": tmp_path / "out", "device": "cpu"}
        with pytest.raises(CheckpointError, match=message):
            sam3dnet.predict(**settings, model_folder=wrong)
        with pytest.raises(CheckpointError, match=message):
            source_to_start_from(str(wrong), tmp_path / "root" / "nnUNet_results", "3d_fullres", "SAM3DPlans")
            with model_folder(str(wrong)):
                pass


def test_a_number_names_a_dataset_although_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "root" / "nnUNet_results"
    model = make_model(results)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "901").mkdir()
    assert source_to_start_from("901", results, "3d_fullres", "SAM3DPlans") == model
    with model_folder("901", tmp_path / "root") as found:
        assert found == model
    for empty in ("", " "):
        with pytest.raises(CheckpointError, match="has an empty name; name a dataset, a model folder or a zip file"):
            source_to_start_from(empty, results, "3d_fullres", "SAM3DPlans")


def test_a_model_answers_prompts_where_it_can(tmp_path: Path, image: Path) -> None:
    session = sam3dnet.load_model(make_promptable_model(tmp_path / "a"), device="cpu").session()
    assert isinstance(session, sam3dnet.PromptSession)
    session.set_image(image)
    assert session.click((3, 4, 2), class_name=session.class_names[0])[2, 4, 3]
    with pytest.raises(PromptError, match="does not answer prompts"):
        sam3dnet.load_model(make_model(tmp_path / "b"), device="cpu").session()
