"""Simulated users who place clicks in other ways than on the largest error, and give them at once."""

from typing import Any

import numpy as np
import pytest
from commands import study_clicks
from test_evaluation_clicks import FAR, OBJECT, SPACING_MM, Obedient, folders, mask  # noqa: F401 (a fixture)

from sam3dnet.errors import PromptError
from sam3dnet.evaluation.click_results import default_folder, format_study
from sam3dnet.evaluation.click_study import CROP, WHOLE
from sam3dnet.evaluation.click_users import User, make_users, steps_after
from sam3dnet.evaluation.clicks import Mask
from sam3dnet.preprocessing.folders import Folders


def clicks_of(user: User, truth: Mask, clicks: tuple[int, ...], seed: int = 5) -> tuple[Obedient, list[Mask]]:
    session = Obedient(automatic=mask(), hidden=truth)
    rng = np.random.default_rng(seed)
    steps = steps_after(user, session, truth, "lesion", SPACING_MM, clicks, "centre", rng)
    return session, [step.mask.copy() for step in steps]


def test_random_clicks_are_positive_in_the_class_and_the_same_however_they_are_given() -> None:
    truth = mask(OBJECT, FAR)
    one_by_one, masks = clicks_of(User("random", "one-by-one"), truth, (0, 2, 4))
    at_once, few = clicks_of(User("random", "at-once"), truth, (0, 2, 4))
    places = [at for at, _, _ in one_by_one.clicks]
    assert all(positive and truth[tuple(int(v) for v in at[::-1])] for at, positive, _ in one_by_one.clicks)
    assert len(places) == 4
    assert [at for at, _, _ in at_once.clicks] == places[:2] + places
    assert at_once.together == [2, 4]
    assert one_by_one.together == []
    assert [m.sum() for m in few] == [masks[k].sum() for k in (0, 2, 4)]
    # Fewer clicks are the first of more; another seed draws others.
    assert [at for at, _, _ in clicks_of(User("random"), truth, (3,))[0].clicks] == places[:3]
    assert [at for at, _, _ in clicks_of(User("random"), truth, (4,), seed=6)[0].clicks] != places


def test_centre_clicks_go_to_each_component_and_end_with_the_class() -> None:
    truth = mask(OBJECT, (5, 8, slice(11, 14)))
    session, masks = clicks_of(User("centre"), truth, (0, 3))
    assert [at for at, _, _ in session.clicks[:2]] == [(3.0, 3.0, 1.0), (11.0, 8.0, 5.0)]
    assert len(masks) == 4
    tiny = mask((0, 0, slice(0, 2)))
    session, masks = clicks_of(User("centre"), tiny, (0, 1, 5))
    assert [at for at, _, _ in session.clicks] == [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)]
    # At once there is a mask for every number that is asked for.
    assert len(clicks_of(User("centre", "at-once"), tiny, (0, 1, 5))[1]) == 3


def test_corrective_clicks_cannot_be_given_at_once() -> None:
    with pytest.raises(PromptError, match=r"corrective clicks cannot be given at-once, .* give them one-by-one"):
        make_users(["random", "corrective"], ["at-once"])
    both: Any = ["at-once", "one-by-one"]
    assert make_users(["corrective", "random"], both) == (
        User("corrective", "one-by-one"), User("random", "at-once"), User("random", "one-by-one")
    )  # fmt: skip


def test_several_users_are_studied_on_the_same_images(folders: Folders) -> None:  # noqa: F811
    placings: Any = ["corrective", "random", "centre"]
    study = study_clicks((0, 1, 4), folders, placing=placings, given=["one-by-one", "at-once"])
    plain = study_clicks((0, 1, 4), folders)
    corrective, *others = study.users
    assert corrective == plain.users[0] == User("corrective", "one-by-one")
    for name, protocol, clicks in (("lesion", WHOLE, 1), ("organ", CROP, 4)):
        assert study.values(name, protocol, clicks, "nsd", corrective) == plain.values(name, protocol, clicks, "nsd")
    assert len(others) == 4
    # A positive click never removes the false positive of the lesion.
    assert all(study.values("lesion", WHOLE, 4, "dice", user) == [pytest.approx(2 / 3)] for user in others)
    assert len(study.rows) == 5 * len(plain.rows)
    assert (len(study.first_seconds), len(study.further_seconds)) == (3, 3)
    places = [(row.case, row.class_name, row.clicks, row.dice) for row in study.rows if row.placing == "random"]
    again = study_clicks((0, 1, 4), folders, placing=["random"], given=["at-once"])
    assert {(row.case, row.class_name, row.clicks, row.dice) for row in again.rows} == set(places)
    lines = [" ".join(line.split()) for line in format_study(study).splitlines()]
    assert "lesion whole volume random at-once Dice median 0.000 0.667 0.667 1" in lines
    assert any(line.startswith("Random clicks: voxels drawn uniformly from the class") for line in lines)
    assert (
        default_folder(study).name == "clicks_centre_random-one-by-one_random-at-once_centre-one-by-one_centre-at-once"
    )
