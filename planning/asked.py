"""Which configurations of a plan are preprocessed: those asked for, else the default one and what is there."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dnet.errors import PlanError, did_you_mean
from sam3dnet.planning.likeness import PLANNED_LIKE
from sam3dnet.planning.methods import DEFAULT_FIDELITY, DEFAULT_METHOD, DEFAULT_TUNING
from sam3dnet.planning.plan import Plan, read_earlier_plan
from sam3dnet.preprocessing.cases import list_training_cases, read_dataset_json
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import reader_named
from sam3dnet.preprocessing.records import (
    RECORDS_FOLDER,
    configuration_of_cases,
    list_stored_names,
    made_otherwise,
    maker_of_cases,
    seen_otherwise,
    settings_digest,
)

DEFAULT = "3d_fullres"  # what is trained where nothing is named
PLANNED = ("3d_lowres", DEFAULT, "3d_cascade_fullres")

logger = logging.getLogger(__name__)


def require_plannable(asked: Sequence[str] | None, plan_file: Path) -> None:
    """See before any work that a dataset can be planned, and that its plan may have these configurations.

    These are those of all plans, and the user's own.

    Args:
        asked: For; None for none in particular.
        plan_file: Of an earlier planning, if there is one.

    Raises:
        PlanError: Else, or if the earlier plan cannot be read, since what was changed in it would be lost.
    """
    own = read_earlier_plan(plan_file).get("configurations", {})
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
    """Warn of cases that are not there, or not what they would be, if they were preprocessed now.

    Those of other plans of the dataset count too. nnU-Net's folders are active (see `activate_folders`).

    Args:
        plan: As planned just now.
        chosen: Its configurations that were preprocessed just now.
    """
    from nnunetv2.paths import nnUNet_raw

    done = {plan.configurations[name].data_identifier for name in chosen}
    raw_folder = Path(str(nnUNet_raw)) / plan.path.parent.name
    dataset_json = read_dataset_json(raw_folder)
    cases = list_training_cases(raw_folder, dataset_json)
    reader = reader_named(str(plan.content["image_reader_writer"]), dataset_json)
    names, as_they_are = {case.name for case in cases}, "were left as they are, and"
    for records in sorted(plan.path.parent.glob(f"*/{RECORDS_FOLDER}")):
        folder = records.parent
        if folder.name in done:
            continue
        found = {
            f"{as_they_are} are no longer in the raw dataset": sorted(list_stored_names(folder) - names),
            f"{as_they_are} their files have changed or moved since": seen_otherwise(folder, cases, reader),
            "have not been preprocessed": sorted(names - {file.stem for file in folder.glob("*.pkl")}),
        }
        maker, remedy = maker_of_cases(plan.content, folder.name), "add it to -c"
        if maker is None:
            remedy = f"preprocess {folder.name} again, by the --method that planned it,"
        else:
            settings = settings_digest(plan.content, configuration_of_cases(plan.content, maker), dataset_json)
            found[f"{as_they_are} are of another plan"] = made_otherwise(folder, settings)
        for what, stale in found.items():
            if stale:
                logger.warning(
                    "Warning: %d cases of %s %s: %s; %s before it is trained",
                    *(len(stale), maker or folder.name, what, shorten(stale), remedy),
                )


def line_to_preprocess(plans: Mapping[str, Any], configuration: str) -> str:
    """Say what to type to preprocess a configuration by the very plan.

    Args:
        plans: Content of the plan, stock nnU-Net's too.
        configuration: Whose cases are made.
    """
    block = plans.get("sam3d")
    if block is None:
        words = ["nnUNetv2_preprocess", "-d", plans["dataset_name"], "-plans_name", plans["plans_name"]]
        return shlex.join([*words, "-c", configuration])
    decided = {one["name"]: one["value"] for one in block.get("decisions", [])}
    usual = {"method": DEFAULT_METHOD, "fidelity": DEFAULT_FIDELITY, "tuning": DEFAULT_TUNING}
    like = block.get(PLANNED_LIKE)
    asked = {name: decided.get(name, value) for name, value in usual.items() if like is None or name == "method"}
    words = ["sam3d_plan_and_preprocess", "-d", plans["dataset_name"]]
    for name, value in asked.items():
        words += [f"--{name}", value] if value != usual[name] else []
    words += [] if like is None else ["--like", like]
    return shlex.join([*words, *(["-c", configuration] if configuration != DEFAULT else [])])


def _has_cases(plan: Plan, name: str) -> bool:
    return any((plan.path.parent / plan.configurations[name].data_identifier).glob("*.pkl"))
