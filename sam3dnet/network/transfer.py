"""Weights of one model as the start of another: what means the same in both is taken, all else stays as it is.

What depends on classes and on channels goes by their names, position tables are fitted to the other grid of tokens, and
kernels to the other thickness of slices. Nothing is taken where only numbers agree by chance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3dnet.network.attention import fit_relative_table
from sam3dnet.network.earlier_weights import as_named_today
from sam3dnet.network.image_encoder import resize_position_table

Axis = Literal["class", "channel"]
Build = Callable[[int, int], nn.Module]  # from the numbers of channels and of classes

DEPTH_TABLE, PLANE_TABLE, RELATIVE_TABLE = "depth_pos_embed", ".pos_embed", ".rel_pos_"


@dataclass(frozen=True)
class Meaning:
    """What goes into a network and what comes out of it.

    Attributes:
        channels: Names of the image's channels.
        classes: Names of the logits' channels: classes with the background, or regions.
    """

    channels: tuple[str, ...]
    classes: tuple[str, ...]

    def names(self, axis: Axis) -> tuple[str, ...]:
        """Give the names along an axis."""
        return self.classes if axis == "class" else self.channels


@dataclass
class Taken:
    """What was taken over.

    Attributes:
        same: Names of the entries that were taken as they are, for what both models have.
        fitted: Of those that were fitted to another grid or thickness.
        new: Of those that stay as they were.
        in_part: Of those that were taken for the classes or channels alone that both models have.
        classes, channels: Names that both models have.
        new_classes, new_channels: Those that start anew.
        alike: Of those, the ones that the other model has in another spelling, with that.
    """

    same: list[str] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    in_part: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    new_classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    new_channels: tuple[str, ...] = ()
    alike: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> list[str]:
        """Say it, a sentence a line."""
        lines = [f"taken: {len(self.same)} entries as they are, {len(self.fitted)} fitted, {len(self.new)} start anew"]
        for what, kept, new in (
            ("classes", self.classes, self.new_classes),
            ("channels", self.channels, self.new_channels),
        ):
            lines.append(f"{what} that go on: {', '.join(kept) or 'none'}; new: {', '.join(new) or 'none'}")
        lines += [
            f"Warning: {name} starts anew, since the model has {theirs}: if they mean the same, write them alike in "
            "dataset.json"
            for name, theirs in self.alike.items()
        ]
        if self.in_part:
            lines.append(f"{len(self.in_part)} entries were taken for the classes and channels alone that go on")
        if self.new:
            lines.append(f"start anew: {', '.join(_parts(self.new))}")
        return lines


def without_values(build: Callable[[], nn.Module]) -> nn.Module:
    """Make a network of which only the shapes are looked at: without memory, where it can be made so."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):  # networks of others may compute with values when they are made
        return build()


def find_axes(build: Build, channels: int, classes: int) -> dict[str, tuple[Axis, int]]:
    """Find the entries of a network that depend on the number of channels or of classes, and along which axis.

    Args:
        build: Makes the network for so many channels and classes.
        channels: Of the network.
        classes: Of the network.
    """
    own = _shapes(build, channels, classes)
    others: tuple[tuple[Axis, dict[str, torch.Size]], ...] = (
        ("class", _shapes(build, channels, classes + 1)),
        ("channel", _shapes(build, channels + 1, classes)),
    )
    found: dict[str, tuple[Axis, int]] = {}
    for axis, shapes in others:
        for name, shape in own.items():
            differ = [
                n for n, (one, other) in enumerate(zip(shape, shapes.get(name, shape), strict=True)) if one != other
            ]
            if differ:
                found[name] = axis, differ[0]
    return found


@torch.no_grad()
def take_over(
    network: nn.Module,
    own: Meaning,
    state: Mapping[str, Tensor],
    theirs: Meaning,
    axes: Mapping[str, tuple[Axis, int]],
) -> Taken:
    """Take over what means the same.

    Args:
        network: Starts with it.
        own: Of the network.
        state: Of the other model.
        theirs: Of it.
        axes: Of the network, from `find_axes`.
    """
    taken, state = Taken(), as_named_today(state, network.state_dict())
    taken.classes, taken.new_classes = _in_both(own.classes, theirs.classes)
    taken.channels, taken.new_channels = _in_both(own.channels, theirs.channels)
    taken.alike = _alike(own.classes, theirs.classes) | _alike(own.channels, theirs.channels)
    for name, value in network.state_dict().items():
        given = state.get(name)
        if given is None:
            taken.new.append(name)
            continue
        axis = axes.get(name)
        if axis is not None and own.names(axis[0]) == theirs.names(axis[0]):
            axis = None  # as it is
        entry = _fitted(name, _their_shape(value, own, theirs, axis), given.to(value.device))
        if entry is None:
            taken.new.append(name)
            continue
        (taken.same if entry.shape == given.shape else taken.fitted).append(name)
        if axis is not None and not {*own.names(axis[0])} <= {*theirs.names(axis[0])}:
            taken.in_part.append(name)
        value.copy_(_aligned(value, entry, own, theirs, axis))
    return taken


def _their_shape(value: Tensor, own: Meaning, theirs: Meaning, axis: tuple[Axis, int] | None) -> list[int]:
    """Give the shape that an entry of the network would have in a network with the other model's names."""
    shape = list(value.shape)
    if axis is not None:
        shape[axis[1]] += len(theirs.names(axis[0])) - len(own.names(axis[0]))
    return shape


def _aligned(value: Tensor, given: Tensor, own: Meaning, theirs: Meaning, axis: tuple[Axis, int] | None) -> Tensor:
    """Bring the classes or channels of an entry into the network's order, new ones as they are there.

    They are the last along their axis: where an image is joined to features, it comes after these (`layers.beside`).
    """
    if axis is None:
        return given
    kind, at = axis
    names, known, aligned = own.names(kind), theirs.names(kind), value.clone()
    before = value.shape[at] - len(names)
    aligned.narrow(at, 0, before).copy_(given.narrow(at, 0, before))
    for number, name in enumerate(names):
        if name in known:
            aligned.select(at, before + number).copy_(given.select(at, before + known.index(name)))
    return aligned


def _fitted(name: str, shape: Sequence[int], given: Tensor) -> Tensor | None:
    """Fit an entry to a shape; None where its meaning would be lost."""
    if list(given.shape) == list(shape):
        return given
    if given.ndim != len(shape):
        return None
    dotted = f".{name}"
    if RELATIVE_TABLE in dotted and given.shape[1] == shape[1]:
        return fit_relative_table(given, (shape[0] + 1) // 2)
    if dotted.endswith(DEPTH_TABLE) and given.shape[1] == shape[1]:
        return F.interpolate(given.T[None].float(), shape[0], mode="linear")[0].T
    if dotted.endswith(PLANE_TABLE) and given.ndim == 4 and given.shape[-1] == shape[-1]:
        return resize_position_table(given[0].float(), (shape[1], shape[2]))[None]
    if given.ndim == 5 and list(given.shape[:2]) == list(shape[:2]):
        return _kernel(given, shape[2:])
    return None


def _kernel(given: Tensor, size: Sequence[int]) -> Tensor | None:
    """Fit a kernel to other sizes: where it loses an axis its planes are added up, where it gains one it lies in the
    middle; None for other changes.
    """
    kernel = given
    for axis, (old, new) in enumerate(zip(given.shape[2:], size, strict=True), start=2):
        if old == new:
            continue
        if new == 1:
            kernel = kernel.sum(axis, keepdim=True)
        elif old == 1 and new % 2:
            pads = [0, 0] * (kernel.ndim - 1 - axis) + [new // 2, new // 2]
            kernel = F.pad(kernel, pads)
        else:
            return None
    return kernel


def _in_both(own: Sequence[str], theirs: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(name for name in own if name in theirs), tuple(name for name in own if name not in theirs)


def _alike(own: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Give names of ours that only theirs differ from in case, blanks and signs, with those."""
    others = {_letters(name): name for name in theirs if name not in own}
    return {name: others[_letters(name)] for name in own if name not in theirs and _letters(name) in others}


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _parts(names: Sequence[str]) -> list[str]:
    """Give the first two levels of names, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _shapes(build: Build, channels: int, classes: int) -> dict[str, torch.Size]:
    network = without_values(partial(build, channels, classes))
    return {name: value.shape for name, value in network.state_dict().items()}
