"""The situations of `../shared/faults`, each run by its own script, and what must come out of them.

The scripts type what users typed in public problem reports. What they print of each command is read here: its status,
tracebacks, and lines; the files that it left are looked at with other libraries.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

FAULTS = Path(__file__).resolve().parents[2] / "shared" / "faults"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FAULTS.is_dir(), reason=f"the shared scripts {FAULTS} are not there"),
]
TODAYS = {  # what the scripts call by the name that it had when they were written
    "from sam3dnet.inference.session import PromptSession": (
        "import sam3dnet\n"
        "def PromptSession(folder, device, mirror=True):\n"
        "    return sam3dnet.load_model(folder, device=device, mirror=mirror).session()"
    ),
    'r.write_report(activate_folders(root), "601", output=root / "again.html", num_processes=0)': (
        "from sam3dnet.settings.report import ReportSettings\n"
        'r.write_report(ReportSettings(dataset="601", output=root / "again.html", num_processes=0),'
        " activate_folders(root))"
    ),
}
SHORT = {"sam3d_plan_and_preprocess": "plan"}


@dataclass(frozen=True)
class Step:
    """One command of a script."""

    variant: str
    command: str
    status: int
    out: str
    err: str

    @property
    def name(self) -> str:
        """The command without its prefix, "python" for a script's own."""
        first = Path(self.command.split()[0]).name
        return SHORT.get(first, first.removeprefix("sam3d_"))

    @property
    def said(self) -> str:
        """All that it printed, without line breaks."""
        return " ".join(f"{self.out} {self.err}".split())


class Run:
    """What a script did, in a folder of its own."""

    def __init__(self, case: str, folder: Path):
        self.folder = folder / case
        scripts = _todays_scripts(folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        line = ["bash", str(scripts / f"{case}.sh"), str(self.folder)]
        finished = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, cwd=folder)
        self.printed = finished.stdout
        self.steps = list(self._steps())

    def _steps(self) -> Any:
        variant, command = "", ""
        for line in self.printed.splitlines():
            if line.startswith("# ---- variant "):
                variant = line.removeprefix("# ---- variant ").strip()
            elif line.startswith("+ "):
                command = line[2:]
            elif ended := re.match(r"  rc=(\d+) secs=\d+ traceback=\d+ log=(\d+)", line):
                log = self.folder / variant / "log" / ended[2]
                out, err = (log.with_suffix(end).read_text(errors="replace") for end in (".out", ".err"))
                yield Step(variant, command, int(ended[1]), out, err)

    def of(self, name: str, variant: str = "") -> list[Step]:
        """Give the steps of a command, in their order."""
        return [step for step in self.steps if step.name == name and step.variant == variant]

    def statuses(self, variant: str = "") -> str:
        """Say how each command of ours ended."""
        ours = [step for step in self.steps if step.variant == variant and step.command.startswith("sam3d_")]
        return " ".join(f"{step.name}={step.status}" for step in ours)

    def dataset(self, variant: str = "") -> Path:
        return self.folder / variant / "nnUNet_raw" / "Dataset601_X"

    def preprocessed(self, variant: str = "") -> Path:
        return self.folder / variant / "nnUNet_preprocessed" / "Dataset601_X"

    def json(self, name: str, variant: str = "") -> Any:
        return json.loads((self.preprocessed(variant) / name).read_text())


def _todays_scripts(folder: Path) -> Path:
    scripts = folder / "scripts"
    if not scripts.is_dir():
        scripts.mkdir()
        for file in FAULTS.iterdir():
            if file.is_file():
                text = file.read_text(encoding="utf-8")
                for before, now in TODAYS.items():
                    text = text.replace(before, now)
                (scripts / file.name).write_text(text, encoding="utf-8")
        (scripts / "manycores").symlink_to(FAULTS / "manycores")
    return scripts


@pytest.fixture(scope="module")
def run_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    folder = tmp_path_factory.mktemp("faults")

    def run(case: str) -> Run:
        run = Run(case, folder)
        tracebacks = [step.command for step in run.steps if step.name != "python" and "Traceback" in step.err]
        assert not tracebacks, run.printed
        return run

    return run


ALL = "verify=0 plan=0 train=0 predict=0"


def assert_same_place(image: Path, mask: Path) -> None:
    one, other = (sitk.ReadImage(str(file)) for file in (image, mask))
    for where in ((0, 0, 0), (3, 7, 2)):
        expected = one.TransformIndexToPhysicalPoint(where)
        np.testing.assert_allclose(other.TransformIndexToPhysicalPoint(where), expected, atol=1e-6)
    np.testing.assert_array_equal(nibabel.load(image).affine, nibabel.load(mask).affine)


def test_01_masks_lie_where_their_images_lie_for_itk_and_nibabel(run_case: Any) -> None:
    run = run_case("case01")
    for variant in ("nii", "gz", "nii_s1"):
        assert run.statuses(variant) == f"{ALL} evaluate=0 predict=0 report=0"
        ending = ".nii.gz" if variant == "gz" else ".nii"
        images, masks = run.dataset(variant) / "imagesTs", run.folder / variant / "preds"
        for name in ("test_0", "test_1"):
            assert_same_place(images / f"{name}_0000{ending}", masks / f"{name}{ending}")


def test_03_a_fourth_axis_is_named_with_the_cure(run_case: Any) -> None:
    run = run_case("case03")
    for variant in ("all.nii", "first.nii", "middle.nii"):
        assert run.statuses(variant) == "verify=1 plan=2"
        assert "expected 3 dimensions (x, y, z), came 4 (24, 20, 12, 1)" in run.of("plan", variant)[0].said
    assert run.statuses("test.nii") == "verify=0 plan=0 train=0 predict=1"
    (predicted,) = run.of("predict", "test.nii")
    assert "case test_0 failed" in predicted.said
    assert "1 written, 0 there already, 1 failed" in predicted.said
    assert run.statuses("all.nii.gz") == ALL


def test_04_modality_is_as_good_as_channel_names(run_case: Any) -> None:
    run = run_case("case04")
    assert run.statuses() == f"{ALL} evaluate=0 report=0 info=0"
    (session,) = run.of("python")[1:]
    assert session.status == 0 and int(session.out) > 0


def test_05_few_cases_have_fewer_folds(run_case: Any) -> None:
    run = run_case("case05")
    assert run.statuses("n1") == "verify=0 plan=0 train=2"
    assert 'the dataset has one case, and so no folds; train on it with "all"' in run.of("train", "n1")[0].said
    for number in (2, 4):
        assert run.statuses(f"n{number}") == "verify=0 plan=0 train=0"
        assert len(run.json("splits_final.json", f"n{number}")) == number
    assert run.statuses("n3") == "verify=0 plan=0 train=0 train=0 predict=0 report=0 evaluate=0"


def test_06_splits_by_hand_are_right_or_one_sentence(run_case: Any) -> None:
    run = run_case("case06")
    kinds = 12
    trained = run.of("train")
    damaged = [step for number, step in enumerate(trained[:kinds]) if number != 8]  # 8: a case in both halves
    assert trained[8].status == 0
    for step in damaged:
        assert step.status == 2
        assert "splits_final.json: " in step.err and "delete the file, and new folds are made" in step.err
    assert [step.status for step in trained[kinds:]] == [0, 0, 0, 0, 2]
    _, with_new, with_lost = run.of("plan")
    assert "2 new cases join the training part of each fold: case_06, case_07" in with_new.said
    assert "1 cases are gone, and leave their folds: case_00" in with_lost.said
    assert "fold 2 has no validation case any more" in with_lost.said
    splits = run.json("splits_final.json")
    assert all({"case_06", "case_07"} <= set(fold["train"]) for fold in splits)
    assert not any("case_00" in fold[part] for fold in splits for part in ("train", "val"))


def test_07_curves_are_called_what_they_show(run_case: Any) -> None:
    run = run_case("case07")
    assert run.statuses() == "plan=0 train=0 predict=0 evaluate=0 report=0 evaluate=0"
    log = next(run.folder.glob("nnUNet_results/*/*/fold_0/training_log.jsonl")).read_text().splitlines()
    organ, lesion = json.loads(log[-1])["pseudo_dice"]  # label 1, label 2
    printed = run.of("python")[1].out
    curves = {name: float(last) for name, last in re.findall(r"curve \('', '(\w+)', \[.*?([\d.]+)\]\)", printed)}
    assert curves["organ"] == pytest.approx(organ, abs=1e-3)
    assert curves["lesion"] == pytest.approx(lesion, abs=1e-3)


def test_08_the_spacing_of_tiff_is_that_of_its_sidecar(run_case: Any) -> None:
    run = run_case("case08")
    assert run.statuses("plain") == f"{ALL} evaluate=0 report=0 evaluate=0 plan=0 predict=0"
    shifted = run.of("evaluate", "plain")[1].said
    assert re.search(r"organ HD95 \[mm\] 4\.000", shifted) and re.search(r"lesion HD95 \[mm\] 4\.000", shifted)
    again, predicted = run.of("plan", "plain")[1], run.of("predict", "plain")[1]
    assert "6 cases preprocessed, 0 kept" in again.said
    assert run.json("dataset_fingerprint.json", "plain")["spacings"][0] == [8.0, 0.5, 0.5]
    assert "2 written, 0 there already" in predicted.said
    for variant in ("float64", "int64", "oneslice", "tiff"):
        assert run.statuses(variant) == ALL
    assert "would overwrite dataset.json; rename the image" in run.of("predict", "dataset_name")[0].said
    assert "labels" in json.loads((run.folder / "dataset_name" / "preds" / "dataset.json").read_text())


@pytest.mark.parametrize("which", ["none_all", "NibabelIOWithReorient_all", "SimpleITKIOWithReorient_all"])
def test_09_left_and_right_are_those_of_the_array(which: str, run_case: Any) -> None:
    run = _once(run_case, "case09")
    assert set(run.statuses(which).split()) == {"verify=0", "plan=0", "train=0", "predict=0", "evaluate=0"}
    assert "rotated or mirrored" not in run.of("verify", which)[0].said
    plan = run.json("SAM3DPlans.json", which)
    forward = plan["transpose_forward"]
    stored = 0 if which == "none_all" else 2  # ASR: left-right is the last file axis, the first of ITK's arrays
    assert [forward[axis] for axis in plan["sam3d"]["mirror_axes"]] == [stored]


_DONE: dict[str, Run] = {}


def _once(run_case: Callable[[str], Run], case: str) -> Run:
    if case not in _DONE:
        _DONE[case] = run_case(case)
    return _DONE[case]


def test_10_sizes_follow_the_spacing(run_case: Any) -> None:
    run = run_case("case10")
    for variant in ("mm", "um1", "um0.2", "nm20", "metre", "big", "huge"):
        steps = {step.name: step for step in run.steps if step.variant == variant}
        assert steps["plan"].status == 0
        told = "spacing" in steps["verify"].said
        assert told == (variant != "mm")
    for variant in ("um1", "huge"):
        assert {step.status for step in run.steps if step.variant == variant} == {0}
        shifted = re.search(r"organ NSD (0\.\d+)", run.of("evaluate", variant)[1].said)
        assert shifted is not None and float(shifted[1]) < 1  # by three voxels
    assert run.printed.count("voxel clicked has label 1") == 2


def test_12_regions_that_are_painted_wrongly_are_refused(run_case: Any) -> None:
    run = run_case("case12")
    assert run.statuses("good") == f"{ALL} evaluate=0 predict=0"
    for variant in ("strings", "absent", "twice", "swapped", "names"):
        assert run.statuses(variant).startswith("verify=1 plan=2")
        assert '"regions_class_order" is [' in run.of("plan", variant)[0].said


def test_13_names_in_seg_are_refused(run_case: Any) -> None:
    run = run_case("case13")
    assert run.statuses().startswith("verify=1 plan=2 plan=2 plan=2 train=2")
    assert (
        "p1_seg: ends in _seg, as the file in which nnU-Net stores the labels of p1; rename" in run.of("plan")[0].said
    )
    assert not (run.preprocessed() / "SAM3DPlans_3d_fullres").exists()


@pytest.mark.parametrize("case", ["case14", "case14b"])
def test_14_empty_validation_leaves_logs_that_are_json(case: str, run_case: Any) -> None:
    run = run_case(case)
    assert {step.status for step in run.steps} == {0}

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for log in run.folder.glob("nnUNet_results/*/*/fold_*/training_log.jsonl"):
        assert [json.loads(line, parse_constant=refuse) for line in log.read_text().splitlines()]


def test_15_accepted_voxels_are_zero_in_every_format(run_case: Any) -> None:
    run = run_case("case15")
    for variant in ("x.nii", "x.nii.gz", "x.mha", "x.nrrd"):
        assert run.statuses(variant) == ALL
    assert run.printed.count("preprocessed NaN voxels 0 of") == 4


def test_17_what_is_no_file_is_named_as_failed(run_case: Any) -> None:
    run = run_case("case17")
    first, only = run.of("predict")
    for name in ("b", "c", "e2"):
        assert f"case {name} failed" in first.said
    assert first.status == 1 and "3 written, 0 there already, 3 failed" in first.said
    assert only.status in (1, 2) and "b_0000.nii.gz" in only.said
    assert "no prediction" not in run.of("evaluate")[0].said


def test_19_the_cores_of_the_job_count(run_case: Any) -> None:
    run = run_case("case19")
    trained = run.steps[-1]
    assert trained.command.startswith("taskset") and trained.status == 0
    assert "nnUNet_n_proc_DA 0 nnUNet_def_n_proc 1" in trained.said


def test_20_two_at_a_time_lose_nothing(run_case: Any) -> None:
    run = run_case("case20")
    ended = re.findall(r"^rc \w[\d.]* (\d+)$", run.printed, re.MULTILINE)
    assert ended and set(ended) == {"0"}
    counts = re.findall(r"^(\d+)$", run.printed, re.MULTILINE)
    assert counts == ["24"] * 6
    assert "disk" not in run.printed and "sam3d_unfinished" not in run.printed


def test_26_arrays_are_right_or_one_sentence(run_case: Any) -> None:
    run = run_case("case26")
    (asked,) = run.of("python")[1:]
    assert asked.status == 0
    right = ("zyx float32", "float64", "big-endian float32", "fortran", "read-only", "negative stride", "CZYX", "torch")
    lines = {line[:28].strip(): line[28:].strip() for line in asked.out.splitlines()}
    for name in right:
        assert lines[name].endswith("as file: 0"), name
    for name in ("spacing 0", "spacing negative", "spacing nan", "2D", "empty", "nan", "inf", "float64 huge"):
        assert lines[name].startswith("DatasetError "), name
    assert "caller's array changed: 0" in asked.out
    for kept in ("label_map is a copy: 2", "mask is a copy: True"):
        assert kept in asked.out or kept.replace("2", "1") in asked.out


def test_27_companions_of_macos_are_no_cases(run_case: Any) -> None:
    run = run_case("case27")
    assert run.statuses() == "plan=0 train=0 predict=0 evaluate=0 evaluate=0 verify=0 plan=0 verify=0 verify=0"
    assert all("._" not in step.said for step in run.of("evaluate"))


def test_33_thin_images_go_through(run_case: Any) -> None:
    run = run_case("case33")
    for variant in ("z1", "x1", "mixed", "z2", "spacing0", "spacing1000"):
        assert {step.status for step in run.steps if step.variant == variant} == {0}
        assert "2 there already" in run.of("predict", variant)[-1].said
    planar = run.of("predict", "file2d")
    assert planar and all(step.status == 1 and "dimension" in step.said for step in planar)
    one_file = run_case("case33b")
    assert {step.status for step in one_file.steps} == {0}
    assert one_file.of("verify")[0].said.count("its header says 0 for the size of a voxel") == 3


def test_36_stored_types_are_right_or_refused(run_case: Any) -> None:
    run = run_case("case36")
    right = ("labint64", "labuint64", "labfloat", "labbe", "labnegzero", "imgint8", "imguint16", "imgint32", "img64")
    for variant in (*right, "slopenan", "slope0", "mha", "nrrd", "nrrdraw"):
        assert run.statuses(variant).startswith("verify=0 plan=0")
    assert run.printed.count("labels and images as they should be") == len(right) + 5
    for variant in ("lab255", "labslope", "labminus", "labundeclared", "imageaslabel", "imghuge"):
        assert run.statuses(variant) == "verify=1 plan=2"


def test_37_what_was_changed_by_hand_is_kept_or_asked_for(run_case: Any) -> None:
    run = run_case("case37")
    stale = [step for step in run.of("train") if "were preprocessed by another plan" in step.said]
    assert len(stale) == 1 and stale[0].status == 2 and "run sam3d_plan_and_preprocess -d" in stale[0].said
    assert run.json("SAM3DPlans.json")["configurations"]["3d_fullres"]["spacing"] == [3.0, 1.5, 1.5]
    odd = run.of("train")[-1]
    assert odd.status == 2 and "patch_size" in odd.said


def test_39_objects_that_vanish_are_counted(run_case: Any) -> None:
    run = run_case("case39")
    assert all(step.status == 0 for step in run.steps)
    told = "speck has 8 voxels in the files and none at the planned spacing in 2 of 6 cases: case_01, case_03;"
    assert [told in step.said for step in run.of("plan")] == [True, True]


def test_40_files_that_dataset_json_names(run_case: Any) -> None:
    run = run_case("case40")
    for variant in ("absolute", "var", "link", "labels2"):
        assert run.statuses(variant) == "verify=0 plan=0 train=0 report=0 evaluate=0"
    assert run.statuses("dotdot") == "verify=1 plan=2"
    assert "no file ending in" not in run.printed


def test_every_script_has_a_test() -> None:
    written = "".join(Path(__file__).read_text(encoding="utf-8"))
    continued = {"case14c"}  # goes on where case14b ended
    scripts = {file.stem for file in FAULTS.glob("case*.sh")}
    assert [case for case in sorted(scripts - continued) if f'"{case}"' not in written] == []
