"""sam3d_verify: problems as text and as JSON, and the exit status."""

import json
from pathlib import Path

import pytest
from faults import image_of, make, rewrite, truncate

from sam3dnet.cli.verify import main
from sam3dnet.preprocessing import folders

NAME = "Dataset904_Verify"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with a test image, and the three folders, which nnU-Net may have been imported with."""
    there = folders.Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    monkeypatch.setattr(folders, "activate_folders", lambda root: there)
    return make(there.raw, num_test=1)


def test_a_sound_dataset(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "904", "--workers", "0", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{NAME}: 0 errors, 0 warnings\n"


def test_problems_are_text_and_json_errors_first(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(image_of(raw, 2), lambda image: image * 0)
    truncate(raw / "imagesTs" / "test_0_0000.nii.gz", 0.5)
    report = raw.parents[1] / "reports" / "problems.json"
    assert main(["-d", "904", "--workers", "0", "--json", str(report)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error: case_2: all-zero image: ")
    assert lines[1].startswith("warning: test_0: truncated file: ")
    assert lines[2:] == [f"{NAME}: 1 errors, 1 warnings"]
    problems = json.loads(report.read_text())[NAME]
    found = {(problem["severity"], problem["case"], problem["check"]) for problem in problems}
    assert found == {("error", "case_2", "all-zero image"), ("warning", "test_0", "truncated file")}
    assert all(problem["message"] for problem in problems)


def test_warnings_alone_end_with_status_0(raw: Path) -> None:
    (raw / "imagesTs" / "test_0_0000.nii.gz").write_bytes(b"")
    assert main(["-d", "904", "--workers", "0"]) == 0


def test_an_unknown_dataset(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "905"]) == 2
    assert f"there are: {NAME}" in capsys.readouterr().err
