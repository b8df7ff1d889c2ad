"""What files hold, described as pydantic models; what is wrong with a file becomes a sentence that names the place."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from sam3dnet.errors import Sam3dError

_IN_WORDS = {
    "bool_type": "true or false",
    "string_type": "a string",
    "too_short": "something that is not empty",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "dict_type", "dataclass_type"), "an object"),
}


class Part(BaseModel):
    """A part of a file; keys that it does not know are left to others."""

    model_config = ConfigDict(frozen=True)


class ClosedPart(Part):
    """A part of a file that holds nothing but what it knows: a misspelt key would be lost."""

    @model_validator(mode="before")
    @classmethod
    def _knows_the_keys(cls, content: Any) -> Any:
        if isinstance(content, dict) and not content.keys() <= cls.model_fields.keys():
            raise ValueError(f"an object with no other keys than {', '.join(map(repr, cls.model_fields))}")
        return content


Schema = TypeVar("Schema", bound=Part)


def checked(schema: type[Schema], content: Any, place: object, error: type[Sam3dError], remedy: str) -> Schema:
    """Check what a file holds.

    Args:
        schema: What it should be.
        content: What it is.
        place: Stands before the sentence, such as the file's path.
        error: Raised with the first thing that is wrong.
        remedy: What to do then.

    Raises:
        Sam3dError: `error`.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as problem:
        raise error(f"{place}: {first_problem(problem)}; {remedy}") from None


def first_problem(problem: ValidationError) -> str:
    """Say where something is wrong, what was expected and what came."""
    first = problem.errors(include_url=False)[0]
    where = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return f"{where} is missing"
    expected = _IN_WORDS.get(first["type"], first["msg"].removeprefix("Value error, ").removeprefix("Input should be "))
    if ", not " in expected:  # it says what came
        return f"{where} must be {expected}"
    return f"{where} must be {expected}, not {first['input']!r:.80}"


def _whole_number(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1 or value != int(value):
        raise ValueError("a whole number of at least 1")
    return int(value)


def _length(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError("a number above 0")
    return float(value)


Count = Annotated[int, BeforeValidator(_whole_number)]
Length = Annotated[float, BeforeValidator(_length)]
