"""What the page says, request by request."""

from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from sam3dnet.serving.arrays import WireError
from sam3dnet.serving.bodies import LARGEST_JSON, TooLargeError, parse_json, read_body
from sam3dnet.serving.segment import LARGEST_SCRIBBLE

LARGEST_INDEX = 1 << 31
BYTES_A_PLACE = 64  # of JSON, most of them blanks

Whole = Annotated[StrictInt, Field(ge=-LARGEST_INDEX, le=LARGEST_INDEX)]
Index = Annotated[list[Whole], Field(min_length=3, max_length=3)]
SideOf = Annotated[list[StrictInt], Field(min_length=2, max_length=2)]
Said = TypeVar("Said", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OpenRequest(_Part):
    """A case to open."""

    case: StrictStr


class SessionRequest(_Part):
    """Something that says no more than who says it."""

    session: StrictStr


class ClickRequest(SessionRequest):
    """A click at a voxel (i, j, k) of the file."""

    class_name: Annotated[StrictStr, Field(alias="class")]
    at: Index
    positive: StrictBool = True


class ScribbleRequest(SessionRequest):
    """A stroke of a pencil over voxels (i, j, k) of the file."""

    class_name: Annotated[StrictStr, Field(alias="class")]
    at: Annotated[list[Index], Field(min_length=1, max_length=LARGEST_SCRIBBLE)]
    positive: StrictBool = True


class BoxRequest(SessionRequest):
    """A box between two voxels (i, j, k) of the file, which both belong to it."""

    class_name: Annotated[StrictStr, Field(alias="class")]
    low: Index
    high: Index


class PaintMeta(_Part):
    """Beside a stroke: the label, and a box (k, j, i), half-open."""

    label: Annotated[StrictInt, Field(ge=0)]
    box: Annotated[list[SideOf], Field(min_length=3, max_length=3)]


class EventRequest(_Part):
    """An event of the history of a dataset that is annotated."""

    number: Annotated[StrictInt, Field(ge=0)]


async def hear(request: web.Request, form: type[Said], largest: int = LARGEST_JSON) -> Said:
    """Read what the page says, which has a limit of its own.

    Raises:
        WireError: If it is not as expected.
    """
    try:
        body = await read_body(request, largest)
    except TooLargeError as problem:
        raise WireError(f"{problem} for this; draw or say less at once") from None
    return parse_json(body or b"{}", form)
