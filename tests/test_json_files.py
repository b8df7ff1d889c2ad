"""JSON files: any encoding of Unicode is read, and each fault has a sentence that names it."""

import json
from pathlib import Path
from typing import Any

import pytest

from sam3dnet.errors import DatasetError, PromptError
from sam3dnet.preprocessing.json_files import read_json, read_json_if_whole

CONTENT = {"Größe": [1, {"größer": None}], "b": 2.5}
TEXT = json.dumps(CONTENT, ensure_ascii=False)

FAULTS = {
    b"": "cannot be read as JSON: it is empty; correct it",
    b" \n": "cannot be read as JSON: it is empty; correct it",
    b"\xff\xfe": "cannot be read as JSON: it is empty; correct it",
    b'{"a": 1,\n "b": [2': "cannot be read as JSON: it ends in the middle of line 2; correct it",
    b'{"a": 1,\n "b': "cannot be read as JSON: it ends in the middle of line 2; correct it",
    b'{"a": 1\n\n "b": 2}': "cannot be read as JSON: line 3, column 2: Expecting ',' delimiter; correct it",
    b'{"a": {"c": 1, "c": 2, "b": 3}}': "the key 'c' stands twice in one object; merge the two; correct it",
    b'{"a": "\xe4"}': "cannot be read as JSON: byte 7 is no text in UTF-8; correct it",
    b"[" * 100_000: "cannot be read as JSON: its brackets are nested too deeply; correct it",
    b"[1]": "holds a list, expected an object {...}; correct it",
    b"NaN": "holds a float, expected an object {...}; correct it",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.json"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_encoding_of_unicode_is_read(file: Path, encoding: str) -> None:
    file.write_bytes(TEXT.encode(encoding))
    assert read_json(file, DatasetError, "correct it") == read_json_if_whole(file) == CONTENT


@pytest.mark.parametrize(("content", "sentence"), FAULTS.items(), ids=lambda value: repr(value)[:20])
def test_each_fault_has_its_sentence(file: Path, content: bytes, sentence: str) -> None:
    file.write_bytes(content)
    with pytest.raises(DatasetError) as raised:
        read_json(file, DatasetError, "correct it")
    assert str(raised.value).startswith(f"{file}: ")
    assert str(raised.value).endswith(sentence)
    assert read_json_if_whole(file) is None


@pytest.mark.parametrize(
    ("encoding", "sentence"),
    [("utf-8-sig", "it starts with a byte order mark, which nnU-Net"), ("utf-16", "it is in UTF-16, which nnU-Net")],
)
def test_what_nnunet_cannot_read_is_refused_where_it_reads_too(file: Path, encoding: str, sentence: str) -> None:
    file.write_bytes(TEXT.encode(encoding))
    with pytest.raises(DatasetError, match=sentence):
        read_json(file, DatasetError, "correct it", nnunet_reads_it=True)


def test_an_array_is_asked_for(file: Path) -> None:
    file.write_text("[1, 2]")
    assert read_json(file, DatasetError, "correct it", holds=list) == [1, 2]
    file.write_text("{}")
    with pytest.raises(DatasetError, match=r"holds a dict, expected an array \[\.\.\.\]; correct it"):
        read_json(file, DatasetError, "correct it", holds=list)


@pytest.mark.parametrize(("options", "what_to_do"), [({}, "correct it"), ({"missing": "make it"}, "make it")])
def test_a_missing_file_says_what_to_do(file: Path, options: dict[str, Any], what_to_do: str) -> None:
    with pytest.raises(PromptError, match=f"some.json: not found; {what_to_do}$"):
        read_json(file, PromptError, "correct it", **options)
    assert read_json_if_whole(file) is None


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read \(Is a directory\); correct it"):
        read_json(tmp_path, DatasetError, "correct it")
    assert read_json_if_whole(tmp_path) is None
