"""Which configurations of a plan are preprocessed: those asked for, else the default one and what is there."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dnet.errors import PlanError, did_you_mean
from sam3dnet.planning.edits import changes_by_hand
from sam3dnet.planning.likeness import PLANNED_LIKE
from sam3dnet.planning.methods import CUSTOM_METHOD, DEFAULT_FIDELITY, DEFAULT_METHOD, DEFAULT_TUNING, MethodChoice
from sam3dnet.planning.plan import Plan, read_earlier_plan
from sam3dnet.planning.target_spacing import ASKED_SPACING
from sam3dnet.planning.target_spacing import PATH as SPACING_PATH
from sam3dnet.preprocessing.cases import list_training_cases, read_dataset_json
from sam3dnet.preprocessing.folders import dataset_number
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.reading import reader_named
from sam3dnet.preprocessing.records import (
    RECORDS_FOLDER,
    list_stored_names,
    made_otherwise,
    maker_of_cases,
    seen_otherwise,
)

DEFAULT = "3d_fullres"  # what is trained where nothing is named
TAKEN_UNASKED = "sam"  # of the families of SAM's weights
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
            others = made_otherwise(folder, plan.content, maker, dataset_json)
            found[f"{as_they_are} are of another plan"] = others.by_plan
            found[f"{as_they_are} are of another version of nnU-Net"] = others.by_version
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

    Returns:
        The line, with words after it where the plan does not say how an option of its planning was given.
    """
    block, name = plans.get("sam3d"), str(plans["dataset_name"])
    decided = {one["name"]: one for one in (block or {}).get("decisions", [])}
    choice = _planned_choice(plans, decided)
    if block is None or plans["plans_name"] != choice.plans_name:  # ours have the name of their choice, copies do not
        number = str(dataset_number(name))
        return shlex.join(
            ["nnUNetv2_preprocess", "-d", number, "-plans_name", plans["plans_name"], "-c", configuration]
        )
    words = ["sam3d_plan_and_preprocess", "-d", name]
    words += ["--method", choice.name] if choice.name != DEFAULT_METHOD else []
    # A model that is planned like stands for all that decides on network and spacing.
    words += ["--like", block[PLANNED_LIKE]] if block.get(PLANNED_LIKE) else _options_of_network(plans, choice, decided)
    budget = decided.get("budget", {})
    if budget.get("reason", "").startswith("asked for"):
        words += ["--gpu-memory-target", str(budget["value"]).removesuffix(" GB")]
    words += ["-c", configuration] if configuration != DEFAULT else []
    with_text = decided.get("text", {}).get("value") is not None
    return shlex.join(words) + ", with the --clip-weights and --phrases of its planning" * with_text


def _planned_choice(plans: Mapping[str, Any], decided: Mapping[str, Mapping[str, Any]]) -> MethodChoice:
    """Give the choice that a plan was made of; its text is left out."""
    values = {name: one["value"] for name, one in decided.items()}
    method, network = values.get("method", DEFAULT_METHOD), None
    if method == CUSTOM_METHOD:
        networks = [one["architecture"] for one in plans["configurations"].values() if "architecture" in one]
        network = networks[0]["arch_kwargs"].get("network")
    return MethodChoice(
        method,
        values.get("fidelity"),
        values.get("tuning", DEFAULT_TUNING),
        prompts=values.get("prompts", True),
        network=network,
    )


def _options_of_network(
    plans: Mapping[str, Any], choice: MethodChoice, decided: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Give the options that decided on network and spacing, as words."""
    block = plans["sam3d"]
    words = ["--fidelity", choice.fidelity] if choice.fidelity not in (None, DEFAULT_FIDELITY) else []
    words += ["--tuning", choice.tuning] if choice.tuning != DEFAULT_TUNING else []
    words += [] if choice.prompts else ["--no-prompts"]
    words += ["--network", choice.network] if choice.network is not None else []
    words += ["--clip-model", block["text_model"]] if block.get("text_model") else []
    encoder = decided.get("encoder", {})
    if encoder.get("source") == "user":
        words += ["--encoder", encoder["value"]["encoder"]]
    weights = block.get("weights") or {}
    named = weights.get("path") or weights.get("family")
    words += ["--sam-checkpoint", named] if named not in (None, TAKEN_UNASKED) else []
    if block.get(ASKED_SPACING) and SPACING_PATH not in changes_by_hand(plans):  # else the option would win over these
        words += ["--overwrite-target-spacing", *map(str, block[ASKED_SPACING])]
    return words


def _has_cases(plan: Plan, name: str) -> bool:
    return any((plan.path.parent / plan.configurations[name].data_identifier).glob("*.pkl"))
