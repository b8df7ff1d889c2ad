"""What is said about a case, one thing after the other, and the label map after each.

An act is what is said at once, and has no order in itself: all prompts of a file, or one click in a viewer. A click
that agrees with the label map that its user sees leaves it as it is, whatever the network would make of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TypeAlias

import numpy as np

from sam3dnet.interactive.classes import PromptClass
from sam3dnet.interactive.correction import Correction
from sam3dnet.interactive.label_map import Click
from sam3dnet.prompts.placing import PlacedPrompts
from sam3dnet.prompts.types import ClassPrompts, Point, Scribble

Act: TypeAlias = Mapping[int, PlacedPrompts]  # by channel of the logits
Answer = Callable[[int, ClassPrompts], Correction]
Export = Callable[[Mapping[int, Correction], Sequence[Click]], np.ndarray]


@dataclass(frozen=True, eq=False)
class State:
    """How things stand after some acts.

    Attributes:
        act: The last one; None before the first.
        said: All that was said, by channel of the logits, in preprocessed voxels.
        clicks: All clicks, in their order.
        corrections: By channel of the logits.
    """

    act: Act | None = None
    said: Mapping[int, ClassPrompts] = field(default_factory=dict)
    clicks: tuple[Click, ...] = ()
    corrections: Mapping[int, Correction] = field(default_factory=dict)


class Conversation:
    """The label maps after acts; those that two questions begin with are answered once, one label map is kept.

    Args:
        automatic_ZYX: Label map before anything is said, on the image's grid.
        answer: Gives the correction of a class under all that was said of it, see `PromptedVolume.correction`.
        export: Gives the label map under corrections and clicks, see `PromptedExport.label_map`.
        classes: By channel of the logits.
        exclusive: Whether a voxel is of one class alone; then a click on one class says that others are not there.
    """

    def __init__(
        self,
        automatic_ZYX: np.ndarray,
        answer: Answer,
        export: Export,
        classes: Mapping[int, PromptClass],
        exclusive: bool,
    ):
        self._answer, self._export = answer, export
        self._classes = classes
        self._exclusive = exclusive
        self._automatic = automatic_ZYX
        self._states = [State()]
        self._shown = self._states[0], automatic_ZYX

    def after(self, acts: Sequence[Act]) -> np.ndarray:
        """Give the label map after some acts, in their order; it is not to be changed."""
        known = 0
        while known < min(len(acts), len(self._states) - 1) and self._states[known + 1].act is acts[known]:
            known += 1
        self._states = self._states[: known + 1]
        for act in acts[known:]:
            self._states.append(self._next(self._states[-1], act))
        return self._labels_of(self._states[-1])

    @property
    def corrections(self) -> Mapping[int, Correction]:
        """By channel of the logits, after the acts that were asked about last."""
        return self._states[-1].corrections

    def _labels_of(self, state: State) -> np.ndarray:
        """Give the label map of a state, anew where it is not the one that was shown last."""
        if state is not self._shown[0]:
            is_first = state is self._states[0]
            labels_ZYX = self._automatic if is_first else self._export(state.corrections, state.clicks)
            self._shown = state, labels_ZYX
        return self._shown[1]

    def _next(self, state: State, act: Act) -> State:
        said, corrections, labels_ZYX = dict(state.said), dict(state.corrections), self._labels_of(state)
        for number in self._classes:
            own = act.get(number, PlacedPrompts(ClassPrompts(), ClassPrompts()))
            denied = self._denied(number, act)
            said[number] = together(said.get(number, ClassPrompts()), denied.prompts, own.prompts)
            if not (self._agrees(number, own, labels_ZYX) and self._agrees(number, denied, labels_ZYX)):
                corrections[number] = self._answer(number, said[number])
        new = [(number, point) for number, placed in act.items() for point in placed.on_image.clicks]
        clicks = (*state.clicks, *(Click(number, point.voxel, point.positive) for number, point in new))
        return State(act, said, clicks, corrections)

    def _denied(self, number: int, act: Act) -> PlacedPrompts:
        """Give the clicks that say that a class is not there, since another one is.

        They are heard where the class was not found in the first place, so that an answer does not flow there;
        elsewhere it is the other class that must win.
        """
        points, clicked = list[Point](), list[Point]()
        strokes, drawn = list[Scribble](), list[Scribble]()
        for placed in (one for other, one in sorted(act.items()) if other != number and self._exclusive):
            if len(placed.on_image.clicks) != len(placed.prompts.clicks):
                continue  # some lie where the network does not see them
            for on_image, point in zip(placed.on_image.points, placed.prompts.points, strict=True):
                if point.positive and not self._is_there(number, on_image.voxel, self._automatic):
                    points.append(replace(point, positive=False))
                    clicked.append(replace(on_image, positive=False))
            for whole, seen in zip(placed.on_image.scribbles, placed.prompts.scribbles, strict=True):
                new = [not self._is_there(number, point.voxel, self._automatic) for point in whole.points]
                if whole.positive and any(new):
                    drawn.append(Scribble(tuple(compress(whole.at, new)), positive=False))
                    strokes.append(Scribble(tuple(compress(seen.at, new)), positive=False))
        return PlacedPrompts(
            ClassPrompts(tuple(points), scribbles=tuple(strokes)), ClassPrompts(tuple(clicked), scribbles=tuple(drawn))
        )

    def _agrees(self, number: int, placed: PlacedPrompts, labels_ZYX: np.ndarray) -> bool:
        """Tell whether prompts of a class are only clicks that say what a label map says."""
        if placed.prompts.boxes or placed.prompts.mask is not None:
            return False
        points = placed.on_image.clicks
        return all(self._is_there(number, point.voxel, labels_ZYX) == point.positive for point in points)

    def _is_there(self, number: int, voxel: tuple[int, int, int], labels_ZYX: np.ndarray) -> bool:
        return int(labels_ZYX[voxel]) in self._classes[number].members


def together(*prompts: ClassPrompts) -> ClassPrompts:
    """Put prompts of one class together, in their order; of two masks the later counts."""
    masks = [one.mask for one in prompts if one.mask is not None]
    return ClassPrompts(
        tuple(point for one in prompts for point in one.points),
        tuple(box for one in prompts for box in one.boxes),
        masks[-1] if masks else None,
        tuple(scribble for one in prompts for scribble in one.scribbles),
    )
