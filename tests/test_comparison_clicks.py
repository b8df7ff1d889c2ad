"""Columns of a comparison that say what clicks are worth."""

from pathlib import Path

import pytest

from sam3dnet.comparison.clicks import summarise
from sam3dnet.evaluation.click_study import ClickRow, ClickStudy
from sam3dnet.evaluation.click_users import make_users
from sam3dnet.evaluation.tolerance import Tolerance


def test_corrective_clicks_and_random_points_at_once_have_columns_of_their_own():
    users = make_users(("corrective", "random"), ("one-by-one", "at-once"))
    study = ClickStudy(Path("m"), (0,), ("organ",), users, (1, 3), "centre", Tolerance(2.0, "given"))
    for case, shift in (("a", 0.0), ("b", 0.2)):
        for number, user in enumerate(users):
            for clicks in (1, 3):
                dice = 0.1 * number + 0.01 * clicks + shift
                study.rows.append(ClickRow(case, "organ", "whole volume", user.placing, user.given, clicks, dice, 0.5))
    found = summarise(study)
    assert found["1 click, whole volume"]["organ"] == pytest.approx({"dice": 0.11, "nsd": 0.5})
    assert found["3 random points, whole volume"]["organ"] == pytest.approx({"dice": 0.33, "nsd": 0.5})
    assert found["1 random point, whole volume"]["organ"] == pytest.approx({"dice": 0.31, "nsd": 0.5})
