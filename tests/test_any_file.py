"""Any JSON: what was written is read, and whatever else comes is refused in a sentence, never a traceback."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from properties import for_any

from sam3dnet.errors import DatasetError, PlanError, PromptError
from sam3dnet.planning.plan import load_plan
from sam3dnet.preprocessing.checks_description import check_description
from sam3dnet.preprocessing.json_files import JsonError, parse_json
from sam3dnet.prompts.files import FORMAT, read_prompts

NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)


def trees(keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


OBJECTS = st.dictionaries(st.text(max_size=5), trees(st.text(max_size=5)), max_size=4)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])


@for_any(content=OBJECTS, encoding=ENCODINGS, ascii_only=st.booleans())
def test_what_was_written_is_read(content: Any, encoding: str, ascii_only: bool) -> None:
    text = json.dumps(content, ensure_ascii=ascii_only)
    assert parse_json(text.encode(encoding)) == content


@for_any(content=OBJECTS, share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_ends_too_early_is_no_json(content: Any, share: float) -> None:
    text = json.dumps(content).encode()
    with pytest.raises(JsonError, match=r"it is empty|it ends in the middle of line 1|line 1, column"):
        parse_json(text[: int(len(text) * share)])


@for_any(content=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        parse_json(content)
    except JsonError as error:
        assert str(error)


def written(folder: str, name: str, content: Any) -> Path:
    file = Path(folder) / name
    file.write_text(json.dumps(content))
    return file


KEYS_OF_PROMPTS = ["format", "space", "cases", "a", "liver", "points", "boxes", "mask", "instance", "at", "positive"]
KEYS_OF_PROMPTS += ["min", "max", "markups", "type", "coordinateSystem", "controlPoints", "position", "size", "center"]
POINTS = st.lists(st.fixed_dictionaries({"at": st.lists(LEAVES, min_size=2, max_size=3)}), max_size=2)
CLASSES = st.fixed_dictionaries({}, optional={"points": POINTS | trees(st.sampled_from(KEYS_OF_PROMPTS))})
OURS = st.fixed_dictionaries(
    {
        "format": st.just(FORMAT) | LEAVES,
        "space": st.sampled_from(["LPS", "voxel"]) | LEAVES,
        "cases": st.fixed_dictionaries({"a": st.fixed_dictionaries({"liver": CLASSES})})
        | trees(st.sampled_from(KEYS_OF_PROMPTS)),
    }
)


@for_any(content=OURS | st.dictionaries(st.sampled_from(KEYS_OF_PROMPTS), trees(st.sampled_from(KEYS_OF_PROMPTS))))
def test_any_prompts_are_read_or_refused(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(folder, "a.mrk.json", content)
        try:
            read = read_prompts(file, ["a"], ["liver"])
        except PromptError as error:
            assert str(error).startswith(str(file))
        else:
            assert set(read.cases) <= {"a"}


KEYS = ["channel_names", "modality", "labels", "numTraining", "file_ending", "dataset", "regions_class_order"]
KEYS += ["sam3d_accept", "0", "CT", "background", "liver", "ignore", "images", "label"]


@for_any(content=st.dictionaries(st.sampled_from(KEYS), trees(st.sampled_from(KEYS)), max_size=7))
def test_any_description_of_a_dataset_is_understood_or_refused(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written(folder, "dataset.json", content)
        try:
            description, problems = check_description(Path(folder))
        except DatasetError as error:
            assert "dataset.json" in str(error)
        else:
            assert problems or description.labels is not None


KEYS_OF_PLANS = ["dataset_name", "plans_name", "configurations", "sam3d", "version", "decisions", "3d_fullres"]
KEYS_OF_PLANS += ["architecture", "arch_kwargs", "inherits_from", "patch_size", "spacing", "name", "value"]


@for_any(content=st.dictionaries(st.sampled_from(KEYS_OF_PLANS), trees(st.sampled_from(KEYS_OF_PLANS)), max_size=6))
def test_any_other_plan_is_refused(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(PlanError, match=r"SAM3DPlans\.json"):
        load_plan(written(folder, "SAM3DPlans.json", content))
