"""A dataset.json that does not say what it must is one sentence, whichever command meets it, and where."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_model, write_image

from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.cases import read_dataset_json
from sam3dnet.preprocessing.locking import LOCK_FILE

NAME = "Dataset907_Bare"
SOUND: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
FAULTS: dict[str, tuple[Any, str]] = {  # what a key is, None for missing, and how the sentence begins
    "labels": (None, 'key "labels" is missing'),
    "labels as a list": (["background", "organ"], '"labels" is ['),
    "labels by value": ({"0": "background", "1": "organ"}, '"labels" gives names by value'),
    "labels in quotes": ({"background": 0, "organ": "1"}, "\"labels\" has organ: '1'"),
    "labels of numbers with points": ({"background": 0, "organ": 1.0}, '"labels" has organ: 1.0'),
    "labels without background": ({"organ": 1}, '"labels": "background" is missing'),
    "labels with a gap": ({"background": 0, "organ": 1, "lesion": 3}, '"labels": the values are 0, 1, 3'),
    "labels of regions": ({"background": 0, "organ": [1, 2], "lesion": 2}, '"regions_class_order" is None'),
    "file_ending": (None, 'key "file_ending" is missing'),
    "file_ending elsewhere": ("/../x.nii.gz", "\"file_ending\" is '/../x.nii.gz'"),
    "channel_names": (None, 'key "channel_names" is missing'),
    "channel_names as a list": (["CT"], '"channel_names" is ['),
    "channel_names from 1": ({"1": "CT"}, '"channel_names" has the numbers 1'),
}
OF_NETWORKS_ALONE = ("without background", "with a gap", "of regions", "channel_names")


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE}


def faulty(which: str) -> str:
    value = FAULTS[which][0]
    key = which.split(" ")[0]
    others = {name: said for name, said in SOUND.items() if name != key}
    return json.dumps(others if value is None else others | {key: value})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A raw dataset of one case, a plan of it and a trained model, each with a sound dataset.json."""
    model = make_model(tmp_path / "nnUNet_results")
    model.parent.rename(model.parent.with_name(NAME))
    planned, raw = tmp_path / "nnUNet_preprocessed" / NAME, tmp_path / "nnUNet_raw" / NAME
    (planned / "cases").mkdir(parents=True)
    (planned / "cases" / "a.pkl").touch()
    (planned / "splits_final.json").write_text(json.dumps([{"train": ["b"], "val": ["a"]}]), encoding="utf-8")
    plans = {"plans_name": "SAM3DPlans", "dataset_name": NAME}
    plans |= {"configurations": {"3d_fullres": {"data_identifier": "cases"}}}
    (planned / "SAM3DPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    for file in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        write_image(raw / file)
    (raw / "predictions").mkdir()
    for folder in (planned, raw, raw / "predictions"):
        (folder / "dataset.json").write_text(json.dumps(SOUND), encoding="utf-8")
    return tmp_path


COMMANDS: dict[str, tuple[str, list[str]]] = {  # where the faulty file is, below the root, and the command's options
    "sam3d_verify": ("nnUNet_raw/{name}", ["-d", "907", "--root", "{root}", "--workers", "0"]),
    "sam3d_plan_and_preprocess": (
        "nnUNet_raw/{name}",
        ["-d", "907", "--root", "{root}", "--workers", "0", "--skip-verification", "--device", "cpu"],
    ),
    "sam3d_train": ("nnUNet_preprocessed/{name}", ["907", "0", "--root", "{root}", "--device", "cpu"]),
    "sam3d_predict": (
        "{model}",
        ["-i", "{raw}/imagesTr", "-o", "{root}/out", "-d", "907", "--root", "{root}", "--device", "cpu"],
    ),
    "sam3d_evaluate": ("nnUNet_raw/{name}/predictions", ["-p", "{raw}/predictions", "-g", "{raw}/labelsTr"]),
    "sam3d_report": ("nnUNet_raw/{name}", ["-d", "907", "--root", "{root}"]),
}
CLICKS = ["-d", "907", "--root", "{root}", "--clicks", "0,1", "--device", "cpu"]


@pytest.mark.parametrize("which", FAULTS)
@pytest.mark.parametrize("command", [*COMMANDS, "sam3d_evaluate --clicks"])
def test_every_command_says_what_is_wrong(
    command: str, which: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "sam3d_evaluate" and any(part in which for part in OF_NETWORKS_ALONE):
        pytest.skip("label maps can be scored all the same")
    folder, options = COMMANDS.get(command, ("{model}", CLICKS))
    (model,) = root.glob(f"nnUNet_results/{NAME}/*")
    places = {"name": NAME, "root": str(root), "raw": str(root / "nnUNet_raw" / NAME), "model": str(model)}
    file = root / folder.format(**places) / "dataset.json"
    file.write_text(faulty(which), encoding="utf-8")
    before = files_below(root)
    module = import_module(f"sam3dnet.cli.{command.split(' ')[0].removeprefix('sam3d_')}")
    status = module.main([option.format(**places) for option in options])
    said = "".join(capsys.readouterr())
    assert status == (1 if command == "sam3d_verify" else 2)
    if command == "sam3d_evaluate" and which in ("labels", "file_ending"):
        assert f"{file}: has no {which}; give nnU-Net's dataset.json" in said
    else:
        assert FAULTS[which][1] in said
    assert "Traceback" not in said
    assert files_below(root) == before


def test_what_a_dataset_accepts_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    content = SOUND | {"labels": {"background": 0, "organ": 1, "lesion": 3}}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match='"labels": the values are 0, 1, 3; expected consecutive ones'):
        read_dataset_json(tmp_path)
    content["sam3d_accept"] = ["labels"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert read_dataset_json(tmp_path) == content


def test_a_model_needs_no_number_of_cases(tmp_path: Path) -> None:
    content = {key: said for key, said in SOUND.items() if key != "numTraining"}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_dataset_json(tmp_path) == content
