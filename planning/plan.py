"""A typed, validated view of a plans file, and the table of its decisions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3dnet.errors import PlanError
from sam3dnet.planning.methods import FORMER_NETWORK_CLASSES, NETWORK_CLASSES
from sam3dnet.planning.rules import Decision
from sam3dnet.preprocessing.json_files import read_json

PLAN_VERSION = 1
REMEDY = "plan again with sam3d_plan_and_preprocess"
REASON_WIDTH = 68
VALUE_WIDTH = 30


MEMORY_DECISION = "memory of a step"


def planned_memory(content: Mapping[str, Any], name: str) -> str | None:
    """Give the memory of a training step that a plan expects for a configuration, in words; None if it says none."""
    values = {d["name"]: d["value"] for d in content.get("sam3d", {}).get("decisions", [])}
    found = values.get(f"{MEMORY_DECISION} ({name})", values.get(MEMORY_DECISION))  # full resolution has no suffix
    return None if found is None else str(found)


@dataclass(frozen=True)
class Configuration:
    """What one configuration of a plan says; shapes and strides (Z, Y, X), spacing (Z, Y, X) in mm."""

    name: str
    data_identifier: str
    batch_size: int
    patch_size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    median_shape: tuple[float, float, float]
    normalization_schemes: tuple[str, ...]
    token_stride: tuple[int, int, int]
    strides: tuple[tuple[int, int, int], ...]
    encoder: str
    pretrained: bool


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


@dataclass(frozen=True)
class Entry:
    """A part of a plans file and where it stands, for messages that name file and key."""

    path: Path
    key: str
    value: Any

    def child(self, key: str) -> Entry:
        """Go down to a key that must be there.

        Raises:
            PlanError: If it is not, or this part has no keys.
        """
        self.expect(isinstance(self.value, Mapping), "an object")
        where = f"{self.key}.{key}" if self.key else key
        if key not in self.value:
            raise PlanError(f"{self.path}: key {where!r} is missing; {REMEDY}")
        return Entry(self.path, where, self.value[key])

    def text(self) -> str:
        """Give a string."""
        self.expect(isinstance(self.value, str), "a string")
        return str(self.value)

    def flag(self) -> bool:
        """Give true or false."""
        self.expect(isinstance(self.value, bool), "true or false")
        return bool(self.value)

    def count(self) -> int:
        """Give a whole number of at least one."""
        self.expect(_is_number(self.value) and self.value == int(self.value) >= 1, "a whole number of at least 1")
        return int(self.value)

    def items(self) -> list[Entry]:
        """Give the entries of a list."""
        self.expect(isinstance(self.value, (list, tuple)), "a list")
        return [Entry(self.path, f"{self.key}[{i}]", value) for i, value in enumerate(self.value)]

    def triple(self) -> tuple[int, int, int]:
        """Give three whole numbers of at least one."""
        self.expect(isinstance(self.value, (list, tuple)) and len(self.value) == 3, "three whole numbers")
        z, y, x = (item.count() for item in self.items())
        return z, y, x

    def lengths(self) -> tuple[float, float, float]:
        """Give three numbers above zero."""
        good = isinstance(self.value, (list, tuple)) and len(self.value) == 3
        self.expect(good and all(_is_number(v) and v > 0 for v in self.value), "three numbers above 0")
        z, y, x = (float(v) for v in self.value)
        return z, y, x

    def expect(self, holds: bool, what: str) -> None:
        """Raise a PlanError unless something holds."""
        if not holds:
            raise PlanError(f"{self.path}: {self.key or 'the file'} must be {what}, not {self.value!r:.80}; {REMEDY}")


def load_plan(path: Path | str) -> Plan:
    """Read and check a plans file.

    Raises:
        PlanError: If it is missing, not JSON, made by another planner, or an entry is missing or wrong; the message
            names file, key and remedy.
    """
    path = Path(path)
    content = read_json(path, PlanError, REMEDY, nnunet_reads_it=True)
    root = Entry(path, "", content)
    if "sam3d" not in content:
        raise PlanError(f"{path} has no block 'sam3d': another planner made it; {REMEDY}, which writes SAM3DPlans.json")
    block = root.child("sam3d")
    version = block.child("version").count()
    block.child("version").expect(version <= PLAN_VERSION, f"at most {PLAN_VERSION} (or update sam3dnet)")
    names = root.child("configurations")
    names.expect(isinstance(names.value, Mapping) and bool(names.value), "an object with a configuration")
    return Plan(
        path=path,
        dataset_name=root.child("dataset_name").text(),
        plans_name=root.child("plans_name").text(),
        configurations={name: read_configuration(names, name) for name in names.value},
        decisions=tuple(read_decision(entry) for entry in block.child("decisions").items()),
        content=content,
    )


def read_configuration(configurations: Entry, name: str) -> Configuration:
    """Read one configuration, with what it inherits."""
    entry = Entry(configurations.path, f"configurations.{name}", inherit(configurations, name))
    architecture = entry.child("architecture")
    network = architecture.child("network_class_name")
    known = (*NETWORK_CLASSES, *FORMER_NETWORK_CLASSES)
    network.expect(network.value in known, f"one of {', '.join(dict.fromkeys(NETWORK_CLASSES))}")
    arguments = architecture.child("arch_kwargs")
    strides = tuple(level.triple() for level in arguments.child("strides").items())
    token_stride = arguments.child("token_stride").triple()
    arguments.child("strides").expect(product(strides) == token_stride, f"factors of the token stride {token_stride}")
    return Configuration(
        name=name,
        data_identifier=entry.child("data_identifier").text(),
        batch_size=entry.child("batch_size").count(),
        patch_size=entry.child("patch_size").triple(),
        spacing_mm=entry.child("spacing").lengths(),
        median_shape=entry.child("median_image_size_in_voxels").lengths(),
        normalization_schemes=tuple(scheme.text() for scheme in entry.child("normalization_schemes").items()),
        token_stride=token_stride,
        strides=strides,
        encoder=arguments.child("encoder").text(),
        pretrained=arguments.child("pretrained").flag(),
    )


def inherit(configurations: Entry, name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Resolve "inherits_from", as nnU-Net does."""
    entry = configurations.child(name)
    entry.expect(isinstance(entry.value, Mapping), "an object")
    parent = entry.value.get("inherits_from")
    if parent is None:
        return dict(entry.value)
    entry.child("inherits_from").expect(parent not in (*seen, name), "another configuration, without a circle")
    return {**inherit(configurations, parent, (*seen, name)), **entry.value}


def read_decision(entry: Entry) -> Decision:
    """Read one stored decision."""
    name, reason, source = (entry.child(key).text() for key in ("name", "reason", "source"))
    return Decision(name, entry.child("value").value, reason, source)


def product(strides: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
    """Multiply the strides of all levels."""
    z, y, x = 1, 1, 1
    for level in strides:
        z, y, x = z * level[0], y * level[1], x * level[2]
    return z, y, x


def format_decisions(plan: Plan) -> str:
    """Format the decisions as a table of name, value, reason and source, for a terminal."""
    names = max([len("decision"), *(len(decision.name) for decision in plan.decisions)])
    lines = [_row("decision", ["value"], ["reason [source]"], names)]
    lines.append("-" * (names + VALUE_WIDTH + REASON_WIDTH + 4))
    for decision in plan.decisions:
        value = textwrap.wrap(format_value(decision.value), VALUE_WIDTH) or [""]
        reason = textwrap.wrap(
            f"{decision.reason} [{decision.source}]", REASON_WIDTH, break_long_words=False, break_on_hyphens=False
        )
        lines.append(_row(decision.name, value, reason, names))
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """Format a decision's value: 40 x 56 x 40, 0.8 x 0.8, vit_b, key=value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={format_value(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        separator = " x " if all(_is_number(entry) for entry in value) else ", "
        return separator.join(format_value(entry).replace(" ", "") for entry in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _row(name: str, value: list[str], reason: list[str], width: int) -> str:
    height = max(len(value), len(reason))
    columns = [[name], value, reason]
    name_column, value_column, reason_column = ([*column, *[""] * (height - len(column))] for column in columns)
    rows = zip(name_column, value_column, reason_column, strict=True)
    return "\n".join(f"{n:<{width}}  {v:<{VALUE_WIDTH}}  {r}".rstrip() for n, v, r in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
