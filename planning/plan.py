"""A typed, validated view of a plans file, and the table of its decisions."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictStr, ValidationInfo, field_validator, model_validator

from sam3dnet.errors import PlanError
from sam3dnet.planning.methods import FORMER_NETWORK_CLASSES, NETWORK_CLASSES
from sam3dnet.planning.rules import Decision
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import Count, Length, Part, checked

PLAN_VERSION = 1
PLAN_AGAIN = "plan again with sam3d_plan_and_preprocess"
REMEDY = f"correct it, or delete the file and {PLAN_AGAIN}"
REASON_WIDTH = 68
VALUE_WIDTH = 30


MEMORY_DECISION = "memory of a step"


def planned_memory(content: Mapping[str, Any], name: str) -> str | None:
    """Give the memory of a training step that a plan expects for a configuration, in words; None if it says none."""
    values = {d["name"]: d["value"] for d in content.get("sam3d", {}).get("decisions", [])}
    found = values.get(f"{MEMORY_DECISION} ({name})", values.get(MEMORY_DECISION))  # full resolution has no suffix
    return None if found is None else str(found)


class ArchKwargs(Part):
    """Arguments of the network, as far as they are read here; strides (Z, Y, X)."""

    token_stride: tuple[Count, Count, Count]
    strides: tuple[tuple[Count, Count, Count], ...]
    encoder: StrictStr
    pretrained: StrictBool

    @field_validator("strides")
    @classmethod
    def _lead_to_the_tokens(cls, strides: Any, info: ValidationInfo) -> Any:
        token_stride = info.data.get("token_stride")
        if token_stride is not None and tuple(map(math.prod, zip(*strides, strict=True))) != token_stride:
            raise ValueError(f"factors of the token stride {token_stride}")
        return strides


class Architecture(Part):
    """The network of a configuration."""

    network_class_name: StrictStr
    arch_kwargs: ArchKwargs

    @field_validator("network_class_name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in (*NETWORK_CLASSES, *FORMER_NETWORK_CLASSES):
            raise ValueError(f"one of {', '.join(dict.fromkeys(NETWORK_CLASSES))}")
        return name


class Configuration(Part):
    """What one configuration of a plan says; shapes and strides (Z, Y, X), spacing (Z, Y, X) in mm."""

    data_identifier: StrictStr
    batch_size: Count
    patch_size: tuple[Count, Count, Count]
    spacing: tuple[Length, Length, Length]
    median_image_size_in_voxels: tuple[Length, Length, Length]
    normalization_schemes: tuple[StrictStr, ...]
    architecture: Architecture

    @model_validator(mode="after")
    def _fits_the_tokens(self) -> "Configuration":
        stride = self.network.token_stride
        if any(size % step for size, step in zip(self.patch_size, stride, strict=True)):
            raise ValueError(f"of a patch_size that is a multiple of the token stride {stride}, not {self.patch_size}")
        return self

    @property
    def network(self) -> ArchKwargs:
        """Arguments of the network."""
        return self.architecture.arch_kwargs


class Block(Part):
    """What our planner adds."""

    version: Count
    decisions: tuple[Decision, ...]

    @field_validator("version")
    @classmethod
    def _is_known(cls, version: int) -> int:
        if version > PLAN_VERSION:
            raise ValueError(f"at most {PLAN_VERSION} (or update sam3dnet)")
        return version


class PlanFile(Part):
    """A plans file whose configurations inherit nothing any more."""

    dataset_name: StrictStr
    plans_name: StrictStr
    sam3d: Block
    configurations: Annotated[dict[str, Configuration], Field(min_length=1)]


class EarlierArchitecture(Part):
    """The network of a configuration that is planned again, as far as it is read then."""

    arch_kwargs: Annotated[dict[str, Any], Field(default_factory=dict)]


class EarlierConfiguration(Part):
    """A configuration that is planned again, or a user's own."""

    architecture: Annotated[EarlierArchitecture, Field(default_factory=EarlierArchitecture)]


class EarlierBlock(Part):
    """What our planner added to a plan that is planned again, as far as it is read then."""

    as_planned: Annotated[dict[str, Any], Field(default_factory=dict)]


class EarlierPlan(Part):
    """A plans file that is planned again: what a user may have changed in it, or added."""

    configurations: dict[str, EarlierConfiguration]
    sam3d: Annotated[EarlierBlock, Field(default_factory=EarlierBlock)]


@dataclass(frozen=True)
class Plan:
    """A plans file; `content` is the whole of it, as nnU-Net reads it."""

    path: Path
    dataset_name: str
    plans_name: str
    configurations: dict[str, Configuration]
    decisions: tuple[Decision, ...]
    content: dict[str, Any]

    def configuration(self, name: str) -> Configuration:
        """Give a configuration by name.

        Raises:
            PlanError: If the plan has none of that name.
        """
        if name not in self.configurations:
            raise PlanError(f"{self.path} has no configuration {name!r}; it has {', '.join(self.configurations)}")
        return self.configurations[name]


def load_plan(path: Path | str) -> Plan:
    """Read and check a plans file.

    Raises:
        PlanError: If it is missing, not JSON, made by another planner, or an entry is missing or wrong; the message
            names file, key and remedy.
    """
    path = Path(path)
    content: dict[str, Any] = read_json(path, PlanError, REMEDY, missing=PLAN_AGAIN, nnunet_reads_it=True)
    if "sam3d" not in content:
        raise PlanError(
            f"{path} has no block 'sam3d': another planner made it; {PLAN_AGAIN}, which writes SAM3DPlans.json"
        )
    given: Any = content.get("configurations")
    if isinstance(given, Mapping):
        given = {name: _inherit(path, given, name) for name in given}
    read = checked(PlanFile, content | {"configurations": given}, path, PlanError, REMEDY)
    return Plan(path, read.dataset_name, read.plans_name, read.configurations, read.sam3d.decisions, content)


def read_earlier_plan(path: Path) -> dict[str, Any]:
    """Read a plans file that is about to be planned again, whose changes by hand must not be lost.

    Returns:
        Its content; nothing where there is no such file.

    Raises:
        PlanError: If it is there and cannot be read.
    """
    if not path.exists():
        return {}
    content: dict[str, Any] = read_json(path, PlanError, REMEDY)
    checked(EarlierPlan, content, path, PlanError, REMEDY)
    return content


def _inherit(path: Path, configurations: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> Any:
    """Resolve "inherits_from", as nnU-Net does."""
    own = configurations.get(name)
    if not isinstance(own, Mapping) or own.get("inherits_from") is None:
        return own
    parent = own["inherits_from"]
    if parent in (*seen, name) or not isinstance(configurations.get(parent), Mapping):
        key = f"configurations.{name}.inherits_from"
        raise PlanError(f"{path}: {key} must be another configuration, without a circle, not {parent!r}; {REMEDY}")
    return {**_inherit(path, configurations, parent, (*seen, name)), **own}


def format_decisions(plan: Plan) -> str:
    """Format the decisions as a table of name, value, reason and source, for a terminal."""
    names = max([len("decision"), *(len(decision.name) for decision in plan.decisions)])
    lines = [_row("decision", ["value"], ["reason [source]"], names)]
    lines.append("-" * (names + VALUE_WIDTH + REASON_WIDTH + 4))
    for decision in plan.decisions:
        value = textwrap.wrap(value_in_words(decision), VALUE_WIDTH) or [""]
        reason = textwrap.wrap(
            f"{decision.reason} [{decision.source}]", REASON_WIDTH, break_long_words=False, break_on_hyphens=False
        )
        lines.append(_row(decision.name, value, reason, names))
    return "\n".join(lines)


def value_in_words(decision: Decision) -> str:
    """Format what was decided; axes are no sizes."""
    if decision.name == "mirror_axes" and decision.value:
        return ", ".join(map(str, decision.value))
    return format_value(decision.value)


def format_value(value: Any) -> str:
    """Format a decision's value: 40 x 56 x 40, 0.8 x 0.8, vit_b, key=value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={format_value(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)) and value:
        separator = " x " if all(_is_number(entry) for entry in value) else ", "
        return separator.join(_without_spaces(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None or value == [] else str(value)


def _without_spaces(entry: Any) -> str:
    """Format an entry of a list; lists inside of lists are written close, 1x2x2."""
    return format_value(entry).replace(" ", "") if isinstance(entry, (list, tuple)) else format_value(entry)


def _row(name: str, value: list[str], reason: list[str], width: int) -> str:
    height = max(len(value), len(reason))
    columns = [[name], value, reason]
    name_column, value_column, reason_column = ([*column, *[""] * (height - len(column))] for column in columns)
    rows = zip(name_column, value_column, reason_column, strict=True)
    return "\n".join(f"{n:<{width}}  {v:<{VALUE_WIDTH}}  {r}".rstrip() for n, v, r in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
