"""Simulated users: where each puts the clicks, and whether the model gets them at once or one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

from numpy.random import Generator

from sam3dnet.errors import PromptError
from sam3dnet.evaluation.clicks import Mask, Session, Step, click_at, click_through, prompt_session
from sam3dnet.prompts.places import innermost_voxels, uniform_voxels
from sam3dnet.prompts.types import ClassPrompts, Point
from sam3dnet.settings.evaluation import FirstClick, Given, Placing


@dataclass(frozen=True)
class User:
    """A simulated user.

    Attributes:
        placing: "corrective": the first click on the object, every further one on the largest error that is left.
            "random": every click at a voxel drawn uniformly from the class, as the literature's "k points a volume"
            (Gong et al. 2024). "centre": at the innermost voxel of each component, see `innermost_voxels`. The last two
            never click negatively, and know nothing of the model's answers.
        given: "one-by-one": each click is added to those before, in one session. "at-once": the first k clicks are
            given together to a fresh session, for each k; the clicks are the same for all k.
    """

    placing: Placing = "corrective"
    given: Given = "one-by-one"


def make_users(placings: Sequence[Placing], ways: Sequence[Given]) -> tuple[User, ...]:
    """Combine places of clicks with the ways to give them, without corrective clicks at once.

    Raises:
        PromptError: If corrective clicks could only be given at once.
    """
    if "corrective" in placings and "one-by-one" not in ways:
        raise PromptError(
            "corrective clicks cannot be given at-once, each answers to the mask before it; "
            "give them one-by-one, or place the clicks at random or centre"
        )
    pairs = dict.fromkeys(product(placings, ways))
    return tuple(User(placing, given) for placing, given in pairs if (placing, given) != ("corrective", "at-once"))


def steps_after(
    user: User,
    session: Session,
    truth_ZYX: Mask,
    class_name: str,
    spacing_mm: Sequence[float],
    clicks: Sequence[int],
    first_click: FirstClick,
    rng: Generator,
) -> Iterator[Step]:
    """Let a user click one object.

    Args:
        user: Who clicks.
        session: Holds the image; its clicks are forgotten first.
        truth_ZYX: Where the class is, not empty, on the image's grid.
        class_name: Of the class.
        spacing_mm: (Z, Y, X).
        clicks: Numbers of clicks to give a mask after, ascending.
        first_click: Where corrective clicks begin.
        rng: Draws random places, and the one near the margin.

    Yields:
        Given at once, the step after each number of `clicks`; one by one, the step after 0, 1, ... clicks. There are
        fewer once nothing is wrong any more, or the user knows no further place.
    """
    if user.placing == "corrective":
        yield from click_through(session, truth_ZYX, class_name, spacing_mm, max(clicks), first_click, rng)
        return
    random = user.placing == "random"
    voxels = uniform_voxels(truth_ZYX, rng) if random else innermost_voxels(truth_ZYX, spacing_mm)
    points = [Point(voxel) for voxel in islice(voxels, max(clicks))]
    if user.given == "at-once":
        for number in clicks:
            session.reset()
            yield prompt_session(session, ClassPrompts(points=tuple(points[:number])), class_name)
        return
    session.reset()
    yield prompt_session(session, ClassPrompts(), class_name)
    for point in points:
        yield click_at(session, point, class_name)


def steps_at(steps: Iterator[Step], clicks: Sequence[int], seconds: list[float]) -> Iterator[Step]:
    """Pick the steps after some numbers of clicks from those after 0, 1, ... clicks; one mask at a time is in memory.

    Args:
        steps: One by one, from `steps_after`; where there is no further one, the last counts.
        clicks: Numbers of clicks, ascending.
        seconds: Gets the time of every click.
    """
    step = next(steps)
    for clicked in range(clicks[-1] + 1):
        if clicked and (further := next(steps, None)):
            step = further
            seconds.append(step.seconds)
        if clicked in clicks:
            yield step
