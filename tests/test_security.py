"""Nothing that a user gets from elsewhere is run, and nothing is unpacked to where it wants to be."""

import ast
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import make_checkpoint, make_model

from sam3dnet.errors import CheckpointError, DatasetError, PlanError
from sam3dnet.inference.models import load_checkpoint, load_model
from sam3dnet.network.sam_weights import load_sam_weights
from sam3dnet.preprocessing.cases import list_training_cases
from sam3dnet.preprocessing.folders import is_plain_name
from sam3dnet.training.checkpoint import load_safely

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("preprocessing", "planning", "sam3dnet") for path in (ROOT / folder).rglob("*.py"))
# They run what they read, or write where an archive says.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "zipfile", "tarfile"}
# They write plain names below a folder, or numbers as names, or nothing; the last reads numbers and names alone.
ALLOWED = {
    ROOT / "sam3dnet" / "portable" / "sources.py": {"zipfile"},
    ROOT / "sam3dnet" / "portable" / "export.py": {"zipfile"},
    ROOT / "sam3dnet" / "dicom" / "files.py": {"zipfile"},
    ROOT / "sam3dnet" / "evaluation" / "plain_pickles.py": {"pickle"},
}
UNSAFE_METHODS = {"system", "popen", "extract", "extractall", "unpack_archive", "load_pickle"}


def calls_in(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path: Path) -> None:
    for name, call in calls_in(path):
        options = {option.arg: ast.unparse(option.value) for option in call.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        assert options.get("allow_pickle", "False") == "False"
        assert name not in {"eval", "exec"}
        assert name.rpartition(".")[2] not in UNSAFE_METHODS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_imported_that_runs_or_unpacks_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        unsafe = {name.partition(".")[0] for name in names} & UNSAFE_MODULES
        assert unsafe <= ALLOWED.get(path, set())


def test_a_zip_file_with_a_model_writes_nothing_elsewhere(tmp_path: Path) -> None:
    from sam3dnet.model import load_model as load_any

    folder = make_model(tmp_path / "results")
    (tmp_path / "here" / "deep").mkdir(parents=True)
    packed = tmp_path / "here" / "deep" / "model.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(folder.parents[1]))
        for name in ("../evil.json", f"{tmp_path}/evil.json", "a/../../../evil.json", "a\\..\\evil.json"):
            archive.writestr(name, "{}")
    before = sorted(tmp_path.rglob("*"))
    load_any(packed, device="cpu")
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.rglob("*evil*"))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def read_sam_weights(path: Path) -> None:
    load_sam_weights(torch.nn.Identity(), path)


@pytest.mark.parametrize("read", [load_safely, load_checkpoint, read_sam_weights])
@pytest.mark.parametrize("old_format", [True, False])
def test_a_payload_is_refused_and_not_run(tmp_path: Path, read: object, old_format: bool) -> None:
    made = tmp_path / "made_by_the_payload"
    content = make_checkpoint({"image_encoder.x": torch.zeros(2), "payload": Payload(made)})
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        read(tmp_path / "evil.pth")  # type: ignore[operator]
    assert not made.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert made.exists(), "the payload does nothing, so this test tests nothing"


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.dict", "torch.nn.functional.relu"])
def test_a_plan_can_name_nothing_but_a_network(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"] |= {"network_class_name": name, "arch_kwargs": {}}
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(PlanError, match=rf"{name} cannot be built \(not a network\)"):
        load_model(model)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "..\\a", "C:a", "a\0b", 7, None])
def test_names_that_lead_elsewhere_are_no_plain_names(name: object) -> None:
    assert not is_plain_name(name)
    assert is_plain_name("SAM3DPlans_3d_fullres")
    assert is_plain_name(".nii.gz")


@pytest.mark.parametrize(
    "content",
    [
        {"file_ending": ".nii.gz", "dataset": {"a": {"images": ["../../secret.nii.gz"], "label": "b.nii.gz"}}},
        {"file_ending": ".nii.gz", "dataset": {"a": {"images": ["a.nii.gz"], "label": "/etc/passwd"}}},
        {"file_ending": ".nii.gz", "dataset": {"../../a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}},
        {"file_ending": ".nii.gz", "dataset": {"a": {"images": ["$SECRET/a.nii.gz"], "label": "b.nii.gz"}}},
        {"file_ending": "/../../x.nii.gz"},
    ],
)
def test_a_dataset_json_leads_to_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict
) -> None:
    monkeypatch.setenv("SECRET", "/secret")
    with pytest.raises(DatasetError, match=r"dataset.json: .*(lies outside of the dataset|file_ending)"):
        list_training_cases(tmp_path / "Dataset001_X", content)
