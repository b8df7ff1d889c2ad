"""Bodies of requests and answers: bounded while they arrive, and JSON that is as expected."""

import asyncio
import json
from typing import Any, TypeVar

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ValidationError

from sam3dnet.serving.arrays import WireError

LARGEST_JSON = 1 << 20
SILENCE_S = 60.0  # in the middle of a body
MOST_PARTS = 8

Content = TypeVar("Content", bound=BaseModel)


class TooLargeError(WireError):
    """A body is larger than allowed."""


async def read_body(request: web.Request, largest: int) -> bytes:
    """Read a body.

    Raises:
        TooLargeError: If it is larger than allowed; as soon as that is known.
        WireError: If it stops in the middle.
    """
    if (request.content_length or 0) > largest:
        raise TooLargeError(f"the request has {request.content_length} bytes, {largest} are allowed")
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = await asyncio.wait_for(request.content.readany(), SILENCE_S)
        except asyncio.TimeoutError:
            raise WireError(f"nothing more of the request came for {SILENCE_S:.0f} s; send it again") from None
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > largest:
            raise TooLargeError(f"the request has more than {largest} bytes, which are allowed")
        parts.append(part)


async def read_json(request: web.Request, form: type[Content]) -> Content:
    """Read a body that is a JSON object; an empty one counts as {}.

    Raises:
        WireError: If it is not as expected.
    """
    return parse_json(await read_body(request, LARGEST_JSON) or b"{}", form)


def parse_json(text: bytes | str, form: type[Content]) -> Content:
    """Check JSON.

    Raises:
        WireError: If it is not as expected.
    """
    try:
        return form.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the request"
        raise WireError(f"{place}: {first['msg']}; see docs/viewers.md") from None


def answer(content: Any, **options: Any) -> web.Response:
    """Make an answer in JSON."""
    return web.Response(text=json.dumps(content), content_type="application/json", **options)


async def read_parts(request: web.Request, largest: int) -> dict[str, bytes]:
    """Read the parts of a form by their names.

    Raises:
        TooLargeError: If all together are larger than allowed; as soon as that is known.
        WireError: If it is no form.
    """
    if (request.content_length or 0) > largest:
        raise TooLargeError(f"the request has {request.content_length} bytes, {largest} are allowed")
    if request.content_type != "multipart/form-data":
        raise WireError(f"content of type {request.content_type} came, expected multipart/form-data")
    parts: dict[str, bytes] = {}
    size = 0
    try:
        reader = await request.multipart()
        while (part := await asyncio.wait_for(reader.next(), SILENCE_S)) is not None:
            if not isinstance(part, BodyPartReader) or len(parts) >= MOST_PARTS:
                raise WireError("the form has parts within parts, or too many")
            content = bytearray()
            while chunk := await asyncio.wait_for(part.read_chunk(), SILENCE_S):
                size += len(chunk)
                if size > largest:
                    raise TooLargeError(f"the request has more than {largest} bytes, which are allowed")
                content += chunk
            parts[part.name or ""] = bytes(content)
    except asyncio.TimeoutError:
        raise WireError(f"nothing more of the request came for {SILENCE_S:.0f} s; send it again") from None
    except (ValueError, AssertionError, HttpProcessingError) as problem:
        reason = " ".join(str(problem).split())
        raise WireError(f"the form cannot be read ({reason}); send it again") from problem
    return parts
