"""Preprocessing: stock nnU-Net's arrays, each case whole or not at all, and only what is missing or stale."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from faults import disk_that_ends_after
from phantoms import ORIGIN_MM, make_raw_dataset, write_volume
from plans import make_plans

from sam3dnet.errors import DatasetError, PlanError
from sam3dnet.preprocessing import progress
from sam3dnet.preprocessing.folders import VARIABLES, Folders, write_json
from sam3dnet.preprocessing.pipeline import preprocess_dataset
from sam3dnet.preprocessing.records import RECORDS_FOLDER, file_digest

SHAPE = (5, 9, 8)
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}


class Dataset:
    """A raw dataset with a plan in folders of its own."""

    def __init__(self, root: Path, schemes: list[str], **options: Any) -> None:
        self.name = "Dataset902_Pipeline"
        self.folders = Folders(*(root / variable for variable in VARIABLES))
        self.raw = make_raw_dataset(self.folders.raw / self.name, shape=SHAPE, **options)
        self.preprocessed = self.folders.preprocessed / self.name
        self.plans = make_plans(self.name, schemes)
        self.save_plans()

    @property
    def cases_folder(self) -> Path:
        return self.preprocessed / "SAM3DPlans_3d_fullres"

    def save_plans(self) -> None:
        write_json(self.preprocessed / f"{self.plans['plans_name']}.json", self.plans)

    def preprocess(self, num_processes: int = 0, **options: Any) -> None:
        preprocess_dataset(self.name, self.folders, num_processes=num_processes, progress=False, **options)

    def times(self) -> dict[str, int]:
        """When each preprocessed case was written."""
        return {path.stem: path.stat().st_mtime_ns for path in self.cases_folder.glob("*.pkl")}

    def names_nnunet_sees(self) -> set[str]:
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        return set(infer_dataset_class(str(self.cases_folder)).get_identifiers(str(self.cases_folder)))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three cases, uncompressed, so that a file can be changed and keep its size."""
    return Dataset(tmp_path, ["CTNormalization"], num_cases=3, file_ending=".nii")


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any], list[tuple]]:
    """Read a case by nnU-Net's loader."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case(name)
    return data[:], seg[:], properties, [data.chunks, data.blocks, seg.chunks, seg.blocks]


def assert_same(expected: Any, came: Any) -> None:
    """Compare nested properties, arrays included."""
    assert type(expected) is type(came)
    if isinstance(expected, dict):
        assert list(expected) == list(came)
        for key in expected:
            assert_same(expected[key], came[key])
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(came)
        for one, other in zip(expected, came, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(expected, came)


def add_margins(dataset: Dataset) -> None:
    """Pad a case with zeros, which nnU-Net crops."""
    margins = ((1, 0), (2, 1), (0, 3))
    for folder, name in (("imagesTr", "case_1_0000"), ("imagesTr", "case_1_0001"), ("labelsTr", "case_1")):
        path = dataset.raw / folder / f"{name}.nii.gz"
        write_volume(np.pad(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), margins), path)


# Stock nnU-Net lists the files with a pool of forked processes.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_cases_equal_those_of_stock_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    schemes = ["CTNormalization", "ZScoreNormalization"]
    dataset = Dataset(
        tmp_path, schemes, num_cases=2, channel_names=("CT", "T2"), labels=REGIONS, regions_class_order=[1, 2]
    )
    add_margins(dataset)
    dataset.preprocess()
    write_json(dataset.preprocessed / "Stock.json", make_plans(dataset.name, schemes, "Stock"))
    for variable, folder in zip(VARIABLES, vars(dataset.folders).values(), strict=True):
        monkeypatch.setenv(variable, str(folder))
    DefaultPreprocessor(verbose=False).run(dataset.name, "3d_fullres", "Stock", num_processes=1)

    stock_folder = dataset.preprocessed / "Stock_3d_fullres"
    ours = {path.name for path in dataset.cases_folder.iterdir() if path.is_file()}
    assert ours == {path.name for path in stock_folder.iterdir()}
    for name in ("case_0", "case_1"):
        data, seg, properties, layout = load(dataset.cases_folder, name)
        stock_data, stock_seg, stock_properties, stock_layout = load(stock_folder, name)
        np.testing.assert_array_equal(data, stock_data, strict=True)
        np.testing.assert_array_equal(seg, stock_seg, strict=True)
        assert_same(stock_properties, properties)
        assert layout == stock_layout
    assert properties["shape_after_cropping_and_before_resampling"] != properties["shape_before_cropping"]


def test_nnunet_finds_all_it_needs(dataset: Dataset) -> None:
    dataset.preprocess()
    assert dataset.names_nnunet_sees() == {"case_0", "case_1", "case_2"}
    for case in ("case_0", "case_1", "case_2"):
        raw_label = (dataset.raw / "labelsTr" / f"{case}.nii").read_bytes()
        assert (dataset.preprocessed / "gt_segmentations" / f"{case}.nii").read_bytes() == raw_label
    assert (dataset.preprocessed / "dataset.json").read_bytes() == (dataset.raw / "dataset.json").read_bytes()


def test_processes_write_what_one_process_writes(dataset: Dataset) -> None:
    dataset.preprocess(num_processes=0)
    expected = {name: load(dataset.cases_folder, name) for name in dataset.names_nnunet_sees()}
    dataset.plans["plans_name"] = "Parallel"
    dataset.plans["configurations"]["3d_fullres"]["data_identifier"] = "parallel"
    dataset.save_plans()
    dataset.preprocess(num_processes=2, plans_name="Parallel")
    for name, case in expected.items():
        for one, other in zip(case, load(dataset.preprocessed / "parallel", name), strict=True):
            assert_same(one, other)


def test_a_rerun_writes_nothing(dataset: Dataset) -> None:
    dataset.preprocess()
    before = {path: path.stat().st_mtime_ns for path in dataset.preprocessed.rglob("*") if path.is_file()}
    dataset.preprocess()
    assert {path: path.stat().st_mtime_ns for path in dataset.preprocessed.rglob("*") if path.is_file()} == before


def test_files_that_keep_size_and_times_are_not_read_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noting(file: Path) -> str:
        read.append(file.name)
        return file_digest(file)

    monkeypatch.setattr("sam3dnet.preprocessing.records.file_digest", noting)
    dataset.preprocess()
    assert len(read) == 6
    touched = dataset.raw / "imagesTr" / "case_1_0000.nii"
    os.utime(touched)
    times = dataset.times()
    for expected in ([touched.name], []):  # the second time its new times are known
        read.clear()
        dataset.preprocess()
        assert read == expected
    assert dataset.times() == times


def test_records_of_before_files_were_known_by_their_times_are_good(dataset: Dataset) -> None:
    dataset.preprocess()
    times = dataset.times()
    for file in (dataset.cases_folder / RECORDS_FOLDER).glob("*.json"):
        record = json.loads(file.read_text())
        del record["seen"]
        file.write_text(json.dumps(record))
    dataset.preprocess()
    assert dataset.times() == times
    assert all(
        "seen" in json.loads(file.read_text()) for file in (dataset.cases_folder / RECORDS_FOLDER).glob("*.json")
    )


def replace_by_file_of_equal_size_and_time(path: Path) -> None:
    content, times = bytearray(path.read_bytes()), path.stat()
    content[-60] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


BREAKS: dict[str, Callable[[Dataset], object]] = {
    "image": lambda d: replace_by_file_of_equal_size_and_time(d.raw / "imagesTr" / "case_1_0000.nii"),
    "label": lambda d: replace_by_file_of_equal_size_and_time(d.raw / "labelsTr" / "case_1.nii"),
    "data missing": lambda d: (d.cases_folder / "case_1.b2nd").unlink(),
    "labels missing": lambda d: (d.cases_folder / "case_1_seg.b2nd").unlink(),
    "properties missing": lambda d: (d.cases_folder / "case_1.pkl").unlink(),
    "data truncated": lambda d: os.truncate(d.cases_folder / "case_1.b2nd", 100),
    "record missing": lambda d: (d.cases_folder / RECORDS_FOLDER / "case_1.json").unlink(),
    "record damaged": lambda d: (d.cases_folder / RECORDS_FOLDER / "case_1.json").write_text("{"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_rerun_makes_only_the_stale_case(dataset: Dataset, what: str) -> None:
    dataset.preprocess()
    before = dataset.times()
    BREAKS[what](dataset)
    dataset.preprocess()
    after = dataset.times()
    assert {name for name in after if after[name] != before.get(name)} == {"case_1"}
    assert dataset.names_nnunet_sees() == {"case_0", "case_1", "case_2"}
    gt_file = dataset.preprocessed / "gt_segmentations" / "case_1.nii"
    assert gt_file.read_bytes() == (dataset.raw / "labelsTr" / "case_1.nii").read_bytes()


def test_a_changed_image_gives_changed_voxels(dataset: Dataset) -> None:
    dataset.preprocess()
    before = load(dataset.cases_folder, "case_1")[0]
    image = dataset.raw / "imagesTr" / "case_1_0000.nii"
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))
    array[2, 4, 4] += 100
    write_volume(array, image)
    dataset.preprocess()
    assert not np.array_equal(before, load(dataset.cases_folder, "case_1")[0])


def test_a_changed_plan_makes_all_cases_anew(dataset: Dataset) -> None:
    dataset.preprocess()
    before = dataset.times()
    dataset.plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.4, 1.2]
    dataset.save_plans()
    dataset.preprocess()
    assert all(before[name] != time for name, time in dataset.times().items())
    assert load(dataset.cases_folder, "case_0")[0].shape == (1, 5, 6, 5)


def test_a_case_that_left_the_raw_dataset_is_removed(dataset: Dataset) -> None:
    dataset.preprocess()
    (dataset.raw / "imagesTr" / "case_1_0000.nii").unlink()
    (dataset.raw / "labelsTr" / "case_1.nii").unlink()
    dataset.preprocess()
    assert dataset.names_nnunet_sees() == {"case_0", "case_2"}
    assert not [path for path in dataset.cases_folder.rglob("case_1*")]


def test_cases_without_a_record_are_not_trusted(dataset: Dataset) -> None:
    dataset.cases_folder.mkdir(parents=True)
    (dataset.cases_folder / "case_0.b2nd").write_text("from elsewhere")
    (dataset.cases_folder / "old_case.b2nd").write_text("from elsewhere")
    dataset.preprocess()
    assert load(dataset.cases_folder, "case_0")[0].ndim == 4
    assert dataset.names_nnunet_sees() == {"case_0", "case_1", "case_2"}


def test_a_case_that_fails_costs_itself_alone(dataset: Dataset) -> None:
    image = dataset.raw / "imagesTr" / "case_1_0000.nii"
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"(?s)1 of 3 cases could not.*case 'case_1': RuntimeError.*run again"):
        dataset.preprocess()
    assert dataset.names_nnunet_sees() == {"case_0", "case_2"}
    assert not [path for path in dataset.cases_folder.rglob("*case_1*")]
    before = dataset.times()
    image.write_bytes(whole)
    dataset.preprocess()
    assert dataset.names_nnunet_sees() == {"case_0", "case_1", "case_2"}
    assert {name: dataset.times()[name] for name in before} == before


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, MemoryError])
def test_a_case_is_never_half_there(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, fatal: type[BaseException]
) -> None:
    """Stop after each file that is moved to its place in turn; nnU-Net sees the case whole or not at all."""
    dataset.preprocess()
    replace_by_file_of_equal_size_and_time(dataset.raw / "imagesTr" / "case_0_0000.nii")
    original = Path.replace
    for allowed in range(4):
        moved: list[Path] = []

        def replace(self: Path, target: Path, allowed: int = allowed, moved: list[Path] = moved) -> Path:
            if len(moved) == allowed:
                raise fatal("stopped")
            moved.append(target)
            return original(self, target)

        with monkeypatch.context() as patch, pytest.raises((DatasetError, fatal), match="stopped"):
            patch.setattr(Path, "replace", replace)
            dataset.preprocess()
        for name in dataset.names_nnunet_sees():
            data, _, properties, _ = load(dataset.cases_folder, name)
            assert data.ndim == 4
            assert "class_locations" in properties
    dataset.preprocess()
    assert dataset.names_nnunet_sees() == {"case_0", "case_1", "case_2"}


def test_left_overs_of_a_killed_run_are_removed(dataset: Dataset) -> None:
    (dataset.cases_folder / ".partial" / "case_0").mkdir(parents=True)
    (dataset.cases_folder / ".partial" / "case_0" / "case_0.b2nd").write_text("half")
    dataset.preprocess()
    assert not (dataset.cases_folder / ".partial").exists()


def test_configurations_that_share_a_folder_are_made_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset.plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres"}
    dataset.plans["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "low",
        "spacing": [4.8, 1.8, 1.6],
    }
    dataset.save_plans()
    monkeypatch.setattr(progress, "SECONDS_BEFORE_FIRST_LINE", 0.0)
    with caplog.at_level("INFO"):
        preprocess_dataset(dataset.name, dataset.folders, num_processes=0)
    assert "preprocess 3d_fullres: 3/3 cases" in caplog.text
    assert "preprocess 3d_lowres: 3/3 cases" in caplog.text
    assert "cascade" not in caplog.text
    full, low = (load(dataset.preprocessed / name, "case_0")[0] for name in ("SAM3DPlans_3d_fullres", "low"))
    assert all(n > m for n, m in zip(full.shape[1:], low.shape[1:], strict=True))


def test_only_the_configurations_asked_for_are_made(dataset: Dataset) -> None:
    dataset.plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "data_identifier": "low"}
    dataset.save_plans()
    dataset.preprocess(configurations=["3d_lowres"])
    assert not dataset.cases_folder.exists()
    assert (dataset.preprocessed / "low").is_dir()


def test_a_configuration_that_needs_cases_of_its_own_is_told(dataset: Dataset) -> None:
    mine = {"inherits_from": "3d_fullres", "spacing": [4.8, 1.8, 1.6], "use_mask_for_norm": [True]}
    dataset.plans["configurations"]["mine"] = mine
    dataset.save_plans()
    told = (
        "configuration mine has another spacing, use_mask_for_norm than 3d_fullres, whose cases it shares; give it a "
        '"data_identifier" of its own, such as "SAM3DPlans_mine"'
    )
    with pytest.raises(PlanError, match=told):
        dataset.preprocess()
    assert not dataset.cases_folder.exists()
    dataset.preprocess(configurations=["3d_fullres"])
    mine["data_identifier"] = "SAM3DPlans_mine"
    dataset.save_plans()
    dataset.preprocess(configurations=["mine"])
    assert (dataset.preprocessed / "SAM3DPlans_mine" / "case_0.pkl").is_file()


def test_properties_are_those_of_the_raw_image(dataset: Dataset) -> None:
    dataset.preprocess()
    properties = pickle.loads((dataset.cases_folder / "case_0.pkl").read_bytes())
    np.testing.assert_allclose(properties["spacing"], (3.0, 0.7, 1.1), rtol=1e-6)
    np.testing.assert_allclose(properties["sitk_stuff"]["origin"], ORIGIN_MM, rtol=1e-6)


def test_unknown_configuration_lists_what_there_is(dataset: Dataset) -> None:
    with pytest.raises(PlanError, match="SAM3DPlans: has no configuration 2d; it has 3d_fullres"):
        dataset.preprocess(configurations=["2d", "3d_fullres"])
    assert not dataset.cases_folder.exists()


def test_a_plan_leads_to_no_other_folder(dataset: Dataset, tmp_path: Path) -> None:
    dataset.plans["configurations"]["3d_fullres"]["data_identifier"] = "../../elsewhere"
    dataset.save_plans()
    with pytest.raises(PlanError, match=r"3d_fullres: \"data_identifier\" is '../../elsewhere'"):
        dataset.preprocess()
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_no_part_of_a_case(dataset: Dataset) -> None:
    with disk_that_ends_after(300), pytest.raises(DatasetError, match=r"cases could not be preprocessed"):
        dataset.preprocess()
    assert dataset.times() == {}
    dataset.preprocess()
    assert dataset.names_nnunet_sees() == {"case_0", "case_1", "case_2"}


def test_missing_plan_says_what_to_type(dataset: Dataset) -> None:
    (dataset.preprocessed / "SAM3DPlans.json").unlink()
    with pytest.raises(PlanError, match=r"SAM3DPlans.json: not found; .*sam3d_plan_and_preprocess"):
        dataset.preprocess()


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ("[]", "holds a list")])
def test_damaged_plan_is_named(dataset: Dataset, content: str, message: str) -> None:
    (dataset.preprocessed / "SAM3DPlans.json").write_text(content)
    with pytest.raises(PlanError, match=rf"SAM3DPlans.json: .*{message}"):
        dataset.preprocess()


def test_dataset_without_cases_is_refused(dataset: Dataset) -> None:
    for image in (dataset.raw / "imagesTr").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match=r"no training case with ending '.nii' in imagesTr"):
        dataset.preprocess()
