"""JSON files, read in one way; each thing that can be wrong with one is a sentence of its own."""

import json
from pathlib import Path
from typing import Any

from sam3dnet.errors import Sam3dError


class JsonError(ValueError):
    """What is wrong with the content of a file, as the end of a sentence."""


def read_json(
    path: Path,
    error: type[Sam3dError],
    remedy: str,
    *,
    holds: type = dict,
    missing: str | None = None,
    nnunet_reads_it: bool = False,
) -> Any:
    """Read a file in any encoding of Unicode.

    Args:
        path: The file.
        error: Raised if it cannot be read.
        remedy: What to do then.
        holds: dict or list, for an object or an array.
        missing: What to do where there is no such file; None for `remedy`.
        nnunet_reads_it: Refuse what nnU-Net's own reader cannot read: all but UTF-8 without a byte order mark.

    Raises:
        Sam3dError: `error`, if the file is missing, no JSON, or holds something else.
    """
    try:
        content = parse_json(path.read_bytes(), nnunet_reads_it)
    except FileNotFoundError:
        raise error(f"{path}: not found; {missing or remedy}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem}); {remedy}") from problem
    except JsonError as problem:
        raise error(f"{path}: cannot be read as JSON: {problem}; {remedy}") from problem
    if not isinstance(content, holds):
        expected = "an object {...}" if holds is dict else "an array [...]"
        raise error(f"{path}: holds a {type(content).__name__}, expected {expected}; {remedy}")
    return content


def read_json_if_whole(path: Path) -> dict[str, Any] | None:
    """Read an object from a file that can be made anew; None if it is missing, damaged, or holds something else."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, JsonError):
        return None
    return content if isinstance(content, dict) else None


def parse_json(content: bytes, only_plain_utf8: bool = False) -> Any:
    """Parse the content of a file.

    A key that stands twice in an object is an error, since one of the two would be lost.

    Raises:
        JsonError: If it is not JSON.
    """
    text = _text_of(content, only_plain_utf8)
    if not text.strip():
        raise JsonError("it is empty")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as problem:
        if problem.pos >= len(text.rstrip()) or problem.msg.startswith("Unterminated string"):
            raise JsonError(f"it ends in the middle of line {text.rstrip().count(chr(10)) + 1}") from problem
        raise JsonError(f"line {problem.lineno}, column {problem.colno}: {problem.msg}") from problem
    except RecursionError as problem:
        raise JsonError("its brackets are nested too deeply") from problem


def _text_of(content: bytes, only_plain_utf8: bool) -> str:
    encoding = json.detect_encoding(content)
    if only_plain_utf8 and encoding != "utf-8":
        found = "starts with a byte order mark" if encoding == "utf-8-sig" else f"is in {encoding.upper()}"
        raise JsonError(f"it {found}, which nnU-Net does not read; save it as UTF-8 without a byte order mark")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise JsonError(f"byte {problem.start} is no text in {encoding.upper()}") from problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in content if keys.count(key) > 1})
        raise JsonError(f"the key {', '.join(map(repr, twice))} stands twice in one object; merge the two")
    return content
