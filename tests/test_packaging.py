"""The wheel: what is in it, and that its commands run from an environment that knows nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGED = ("sam3dnet", "planning", "preprocessing")
SOURCES = (*PACKAGED, "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
COMMANDS = (
    "sam3d_convert",
    "sam3d_plan_and_preprocess",
    "sam3d_train",
    "sam3d_predict",
    "sam3d_dicom",
    "sam3d_export",
    "sam3d_evaluate",
    "sam3d_report",
    "sam3d_annotate",
    "sam3d_serve",
    "sam3d_find_best",
    "sam3d_verify",
    "sam3d_info",
    "sam3d_demo",
    "sam3d_check",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that nothing left over in the checkout gets into it."""
    copy, dist = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty environment, and give that our dependencies but not our editable install."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files, such as an editable install's, are not read.
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies), encoding="utf-8")
    return folder


def run_in(environment: Path, folder: Path, *command: str, **variables: str) -> str:
    """Run a program of the environment from a folder; give its standard output."""
    program = environment / "bin" / command[0]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet_", "PYTHON", "COV_"))}
    run = subprocess.run(
        [str(program), *command[1:]], cwd=folder, env=kept | variables, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_wheel_holds_every_module_under_its_installed_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"sam3dnet"}
    for folder in PACKAGED:
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT).as_posix()
            assert (inside if folder == "sam3dnet" else f"sam3dnet/{inside}") in names
    assert "sam3dnet/py.typed" in names
    pages = {f"sam3dnet/serving/page/{path.name}" for path in (ROOT / "sam3dnet" / "serving" / "page").iterdir()}
    assert pages <= set(names) and "sam3dnet/serving/page/index.html" in pages
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if "dist-info/licenses/" in name}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_runs_outside_the_checkout(command: str, environment: Path, tmp_path: Path) -> None:
    assert run_in(environment, tmp_path, command, "--help").startswith(f"usage: {command}")


def test_installed_modules_are_those_of_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = "import sam3dnet.planning, sam3dnet.preprocessing as p; print(sam3dnet.planning.__file__); print(p.__file__)"
    for path in run_in(environment, tmp_path, "python", "-c", code).splitlines():
        assert Path(path).is_relative_to(environment)


def test_stock_nnunet_finds_our_trainer(environment: Path, tmp_path: Path) -> None:
    """nnU-Net imports every module of the folder that sam3d_info names: one, which names our trainer."""
    folder = Path(run_in(environment, tmp_path, "sam3d_info", "--ext-trainer").strip())
    assert folder.is_relative_to(environment)
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["nnUNetTrainerSAM3D.py"]
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "print(find('nnUNetTrainerSAM3D').__module__)"
    )
    found = run_in(environment, tmp_path, "python", "-c", code, nnUNet_extTrainer=str(folder))
    assert found.splitlines()[-1] == "sam3dnet.training.trainer"
