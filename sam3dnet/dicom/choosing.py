"""Which series are the channels of a model: by what the channels are called, by UID, or by a file of rules."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, StrictStr

from sam3dnet.dicom.stacks import Stack
from sam3dnet.errors import DatasetError
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.schemas import ClosedPart, checked

_OF_NAMES = {  # what a channel's name says of the modality, as DICOM writes it
    "CT": r"ct|cbct|ldct|cect|cta|hu",
    "PT": r"pet|pt|suv(bw)?|fdg|psma",
    "MR": r"mri?|t1\w*|t2\w*|flair|dwi|adc|pd|dce|swi|bold|dixon|stir|cine\w*",
    "US": r"us|ultrasound",
}
_REMEDY = "correct it; docs/dicom.md says what it holds"


class Rule(ClosedPart):
    """What the series of a channel is like; all that is said must be so.

    Attributes:
        modality: Such as MR.
        description: Regular expression that SeriesDescription or ProtocolName holds, in capitals or not.
        series: SeriesInstanceUID.
        units: That the values are brought to: of PET standardised uptake values.
    """

    modality: StrictStr | None = None
    description: StrictStr | None = None
    series: StrictStr | None = None
    units: Literal["SUV"] | None = None

    def fits(self, stack: Stack) -> bool:
        """Tell whether a stack is so."""
        words = f"{stack.description}\n{stack.instance.of('ProtocolName', '')}"
        return (
            (self.modality is None or stack.modality == self.modality.upper())
            and (self.description is None or re.search(self.description, words, re.IGNORECASE) is not None)
            and (self.series is None or stack.series == self.series)
        )

    def in_words(self) -> str:
        """Say it."""
        said = self.model_dump(exclude_none=True, exclude={"units"})
        return ", ".join(f"{key} {value}" for key, value in said.items()) or "any modality"


class _Rules(ClosedPart):
    channels: dict[StrictStr, Rule] = Field(min_length=1)


def rule_of_name(channel: str) -> Rule:
    """Make the rule of a channel from its name; of a name that says nothing, one that all fit."""
    for modality, words in _OF_NAMES.items():
        if re.search(rf"(?<![a-z0-9])({words})(?![a-z0-9])", channel, re.IGNORECASE):
            return Rule(modality=modality, units=_units(channel))
    return Rule()


def _units(channel: str) -> Literal["SUV"] | None:
    return "SUV" if re.search(r"(?<![a-z0-9])suv(bw)?(?![a-z0-9])", channel, re.IGNORECASE) else None


def read_rules_by_name(file: Path) -> dict[str, Rule]:
    """Read rules by the name of their channel.

    Raises:
        DatasetError: If the file is damaged.
    """
    rules = checked(_Rules, read_json(file, DatasetError, _REMEDY), file, DatasetError, _REMEDY).channels
    for name, rule in rules.items():
        try:
            re.compile(rule.description or "")
        except re.error as problem:
            message = f"{file}: description of {name} is no regular expression ({problem}); {_REMEDY}"
            raise DatasetError(message) from problem
    return rules


def read_rules(file: Path, channels: Sequence[str]) -> list[Rule]:
    """Read the rules of a model's channels.

    Raises:
        DatasetError: If the file is damaged, or lacks a channel, or has one that the model has not.
    """
    rules = read_rules_by_name(file)
    if set(rules) != set(channels):
        raise DatasetError(
            f"{file}: holds rules of the channels {', '.join(rules)}; the model has {', '.join(channels)}; {_REMEDY}"
        )
    return [rules[name] for name in channels]


def rules_of(channels: Sequence[str], series: Sequence[str] | None, file: Path | None) -> list[Rule]:
    """Give a rule for each channel.

    Args:
        channels: Their names.
        series: SeriesInstanceUIDs in the order of the channels; None where they are chosen.
        file: With rules; None for those of the names.

    Raises:
        DatasetError: If there are more or fewer UIDs than channels, or the file is wrong.
    """
    if series is not None:
        if len(series) != len(channels):
            raise DatasetError(
                f"{len(series)} series were named, and the model has {len(channels)} channel(s), "
                f"{', '.join(channels)}; name one for each, in this order"
            )
        return [Rule(series=uid, units=_units(channel)) for uid, channel in zip(series, channels, strict=True)]
    return [rule_of_name(channel) for channel in channels] if file is None else read_rules(file, channels)


def choose_stacks(stacks: Sequence[Stack], channels: Sequence[str], rules: Sequence[Rule]) -> list[Stack]:
    """Choose a stack for each channel: of those that fit the largest, and the one whose description names the channel.

    Args:
        stacks: Of one study, those of the most slices first.
        channels: Names.
        rules: Of the channels.

    Returns:
        The stacks, each with the units that its rule asks for.

    Raises:
        DatasetError: If none fits a channel, or several channels would get the same one.
    """
    chosen = [_choose(stacks, channel, rule) for channel, rule in zip(channels, rules, strict=True)]
    for at, stack in enumerate(chosen):
        if stack in chosen[:at]:
            raise DatasetError(
                f"channels {channels[chosen.index(stack)]} and {channels[at]} would both be {stack.in_words()}; say "
                "which series each is, with --series or --channels"
            )
    return [replace(stack, units=rule.units) for stack, rule in zip(chosen, rules, strict=True)]


def _choose(stacks: Sequence[Stack], channel: str, rule: Rule) -> Stack:
    fitting = [stack for stack in stacks if rule.fits(stack)]
    volumes = [stack for stack in fitting if stack.grid is not None]
    usual = [stack for stack in volumes if not stack.is_no_choice] or (volumes if rule.series else [])
    if not usual:
        raise DatasetError(f"no series fits channel {channel} ({rule.in_words()}); {_listing(fitting, stacks)}")
    named = [stack for stack in usual if _names(stack, channel)]
    return max(named or usual, key=_size)


def _names(stack: Stack, channel: str) -> bool:
    words = f"{stack.description} {stack.instance.of('ProtocolName', '')}"
    return re.search(rf"(?<![a-z0-9]){re.escape(channel)}(?![a-z0-9])", words, re.IGNORECASE) is not None


def _size(stack: Stack) -> tuple[int, int]:
    """Slices first, and voxels among as many: a localizer has few slices, however large they are."""
    return len(stack.frames), int(np.prod(stack.frames[0].shape))


def _listing(fitting: Sequence[Stack], stacks: Sequence[Stack]) -> str:
    faults = [f"{stack.in_words()}: {stack.fault or 'a localizer or the like'}" for stack in fitting]
    if faults:
        return f"those that do are no choice: {'; '.join(faults)}; export them again, or name another series"
    there = "; ".join(stack.in_words() for stack in stacks)
    return f"there is {there}" if there else "there is no series with slices that have a place in space"


def by_study(stacks: Sequence[Stack]) -> Mapping[str, list[Stack]]:
    """Part stacks by study, in the order of their files' names."""
    studies: dict[str, list[Stack]] = {}
    for stack in sorted(stacks, key=lambda stack: str(stack.instance.file)):
        studies.setdefault(stack.study, [])
    for stack in stacks:
        studies[stack.study].append(stack)
    return studies
