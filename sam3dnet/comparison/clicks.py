"""The stage of clicks: simulated users on the validation cases of a promptable method, scored, as JSON."""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.preprocessing.folders import write_json

if TYPE_CHECKING:
    from sam3dnet.evaluation.click_study import ClickStudy
    from sam3dnet.settings.evaluation import Placing


def kind_of_clicks(clicks: int, protocol: str, placing: "Placing") -> str:
    """Name a column: "3 clicks, whole volume", or "3 random points, whole volume", which are given at once."""
    what = "click" if placing == "corrective" else f"{placing} point"
    return f"{clicks} {what}{'' if clicks == 1 else 's'}, {protocol}"


def summarise(study: "ClickStudy") -> dict[str, dict[str, dict[str, float]]]:
    """Give mean Dice and NSD by kind of prompt and class."""
    from sam3dnet.evaluation.click_study import PROTOCOLS
    from sam3dnet.evaluation.click_users import User

    return {
        kind_of_clicks(clicks, protocol, user.placing): {
            name: {metric: _mean(study.values(name, protocol, clicks, metric, user)) for metric in ("dice", "nsd")}
            for name in study.classes
        }
        for user in (User("corrective"), User("random", "at-once"))
        for protocol in PROTOCOLS
        for clicks in study.clicks
    }


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, click, write."""
    parser = argparse.ArgumentParser(prog="sam3dnet.comparison.clicks", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("plans")
    parser.add_argument("json", type=Path)
    parser.add_argument("--clicks", default="1,3,10")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the stage's log shows how far it is

    from sam3dnet.preprocessing.folders import activate_folders

    folders = activate_folders(a.root)

    from sam3dnet.evaluation.click_study import study_clicks
    from sam3dnet.settings.evaluation import EvaluationSettings

    settings = EvaluationSettings(
        dataset=a.dataset,
        fold=a.fold,
        plans=a.plans,
        device=a.device,
        clicks=a.clicks,
        placing=["corrective", "random"],
        given=["one-by-one", "at-once"],
    )
    study = study_clicks(settings, folders)
    write_json(a.json, {"prompted": summarise(study), "failed": study.failed})
    return 0
