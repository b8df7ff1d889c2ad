"""Which configurations of a plan are preprocessed: those asked for, else the default one and what is there."""

import logging
from collections.abc import Sequence
from pathlib import Path

from sam3dnet.errors import PlanError, did_you_mean
from sam3dnet.planning.plan import Plan
from sam3dnet.preprocessing.json_files import read_json_if_whole
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.records import configuration_of_cases, made_otherwise, maker_of_cases, settings_digest

DEFAULT = "3d_fullres"  # what is trained where nothing is named
PLANNED = ("3d_lowres", DEFAULT, "3d_cascade_fullres")

logger = logging.getLogger(__name__)


def require_plannable(asked: Sequence[str] | None, plan_file: Path) -> None:
    """See before any work that a plan may have these configurations: those of all plans, and the user's own.

    Args:
        asked: For; None for none in particular.
        plan_file: Of an earlier planning, if there is one.

    Raises:
        PlanError: Else.
    """
    own = (read_json_if_whole(plan_file) or {}).get("configurations", {})
    possible = [*PLANNED, *(name for name in own if name not in PLANNED)]
    unknown = [name for name in asked or () if name not in possible]
    if unknown:
        raise PlanError(
            f"-c {' '.join(unknown)}: not a configuration of our plans; there are {', '.join(possible)}"
            f"{did_you_mean(unknown[0], possible)}"
        )


def choose_configurations(plan: Plan, asked: Sequence[str] | None) -> list[str]:
    """Choose what to preprocess.

    Args:
        plan: As planned just now.
        asked: For; None takes what is trained by default, and all that have cases already, so that none become stale.

    Raises:
        PlanError: If one is not planned; says why, as far as the plan does, and what is.
    """
    if asked is None:
        there = [name for name in plan.configurations if name != DEFAULT and _has_cases(plan, name)]
        return [name for name in plan.configurations if name == DEFAULT or name in there]
    missing = [name for name in asked if name not in plan.configurations]
    if missing:
        reasons = [d.reason for d in plan.decisions if d.name == "spacing (3d_lowres)" and d.value is None]
        why = f": {reasons[0]}" if reasons and missing[0] in PLANNED else ""
        raise PlanError(
            f"{plan.path}: {', '.join(missing)} is not planned for {plan.dataset_name}{why}; there are "
            f"{', '.join(plan.configurations)}"
        )
    return list(dict.fromkeys(asked))


def tell_stale(plan: Plan, chosen: Sequence[str]) -> None:
    """Warn of cases that were left as they are, and made by another plan; they are not trained on."""
    done = {plan.configurations[name].data_identifier for name in chosen}
    dataset_json = read_json_if_whole(plan.path.with_name("dataset.json")) or {}
    for folder in sorted({one.data_identifier for one in plan.configurations.values()} - done):
        maker = maker_of_cases(plan.content, folder)
        if maker is None or not (plan.path.parent / folder).is_dir():
            continue
        settings = settings_digest(plan.content, configuration_of_cases(plan.content, maker), dataset_json)
        if stale := made_otherwise(plan.path.parent / folder, settings):
            logger.warning(
                "Warning: %d cases of %s were left as they are, and are of another plan: %s; add it to -c before it is "
                "trained",
                *(len(stale), maker, shorten(stale)),
            )


def _has_cases(plan: Plan, name: str) -> bool:
    return any((plan.path.parent / plan.configurations[name].data_identifier).glob("*.pkl"))
