"""sam3d_plan_and_preprocess: from a dataset in nnU-Net's raw format to a plan and preprocessed cases."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dnet.cli.command import run_command
from sam3dnet.errors import PlanError
from sam3dnet.settings.choices import EncoderChoice
from sam3dnet.settings.function import function_of
from sam3dnet.settings.planning import PlanningSettings

if TYPE_CHECKING:
    from sam3dnet.planning.likeness import Likeness
    from sam3dnet.planning.methods import MethodChoice, Text
    from sam3dnet.preprocessing.folders import Folders
    from sam3dnet.preprocessing.workers import Workers

_log = logging.getLogger(__name__)


def _plan_and_preprocess(settings: PlanningSettings) -> list[Path]:
    from sam3dnet.planning.methods import DEFAULT_METHOD, MethodChoice
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name

    folders = activate_folders(settings.root)
    names = [find_dataset_name(identifier, folders) for identifier in settings.datasets]
    prompts = not settings.no_prompts
    choice = MethodChoice(
        settings.method, settings.fidelity, settings.tuning, prompts=prompts, network=settings.network
    )
    like = None if settings.like is None else _likeness(settings, choice, folders, names)
    choice = choice if like is None else like.choice
    encoder = settings.encoder if choice.method.peer else _encoder_for(settings.encoder, settings.sam_checkpoint)
    if encoder == "none" and choice.name != DEFAULT_METHOD:
        raise PlanError(f"method {choice.name} needs an image encoder; --encoder none is for {DEFAULT_METHOD} alone")

    from sam3dnet.planning.asked import choose_configurations, require_plannable, tell_stale
    from sam3dnet.planning.plan import format_decisions, load_plan
    from sam3dnet.planning.vanished import tell_vanished
    from sam3dnet.preprocessing.cluster import cluster_at
    from sam3dnet.preprocessing.locking import only_one
    from sam3dnet.preprocessing.pipeline import preprocess_dataset
    from sam3dnet.preprocessing.workers import default_num_processes

    processes = default_num_processes() if settings.num_processes is None else settings.num_processes
    plan = partial(_planner(settings, folders, choice, encoder, processes), like=like)
    plan_files = []
    for name in names:
        require_plannable(settings.configurations, folders.preprocessed / name / f"{choice.plans_name}.json")
    with cluster_at(settings.scheduler, settings.num_processes) as cluster:
        for name in names:
            if not settings.skip_verification:
                _verify(name, folders, processes, cluster)
            with_text = _with_text(choice, folders.raw / name, settings, like)
            with only_one(folders.preprocessed / name):
                plan_files.append(plan(name, choice=with_text, cluster=cluster))
                print(format_decisions(load_plan(plan_files[-1])), flush=True)
                chosen = choose_configurations(load_plan(plan_files[-1]), settings.configurations)
                preprocess_dataset(name, folders, choice.plans_name, chosen, num_processes=processes, cluster=cluster)
                tell_stale(load_plan(plan_files[-1]), chosen)
                tell_vanished(plan_files[-1], chosen)
    return plan_files


plan_and_preprocess = function_of(PlanningSettings, _plan_and_preprocess, "plan_and_preprocess")


def _likeness(
    settings: PlanningSettings, choice: "MethodChoice", folders: "Folders", datasets: Sequence[str]
) -> "Likeness":
    """Read the plan of the model to plan after, and see that it can be that of the datasets."""
    from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans
    from sam3dnet.planning.likeness import likeness_of
    from sam3dnet.portable.sources import model_folder
    from sam3dnet.preprocessing.cases import read_dataset_json

    with model_folder(_model_of(settings.like, folders, choice.plans_name), settings.root) as folder:
        found = likeness_of(read_model_plans(folder), read_model_dataset(folder), str(settings.like))
    if found.method != choice.name:
        raise PlanError(
            f"{settings.like} is a model of method {found.method}, asked for is {choice.name}; give --method "
            f"{found.method}, or plan like another model"
        )
    if settings.clip_weights:
        found.require_reads(settings.clip_model)
    elif found.text is not None:
        for dataset in datasets:
            found.choice_for(read_dataset_json(folders.raw / dataset))
    return found


def _model_of(source: str | None, folders: "Folders", plans_name: str) -> str | Path:
    """Give the model folder of a dataset; a folder, a file and a model of the hub are left to others."""
    from sam3dnet.planning.likeness import FULLRES
    from sam3dnet.portable.sources import source_to_start_from

    named = str(source)
    found = source_to_start_from(named, folders.results, FULLRES, plans_name)
    if isinstance(found, Path) and not found.name.endswith(f"__{FULLRES}"):
        raise PlanError(f"{named}: its only model is {found.name}; expected one of {FULLRES}; plan like another model")
    return found


def _planner(
    settings: PlanningSettings, folders: "Folders", choice: "MethodChoice", encoder: EncoderChoice, processes: int
) -> Callable[..., Path]:
    """Give what plans any of the datasets."""
    from sam3dnet.devices import choose_device
    from sam3dnet.network.cost import training_cost, training_seconds
    from sam3dnet.network.weights_file import weights_for_plan
    from sam3dnet.planning.planner import plan_dataset

    device = choose_device(settings.device)
    for_a_card = device.type == "cuda" or settings.gpu_memory_target is not None
    network_class = choice.method.network_class
    return partial(
        plan_dataset,
        folders=folders,
        cost=partial(training_cost, device="cuda" if for_a_card else "cpu", network_class=network_class),
        gpu_memory_target_gb=settings.gpu_memory_target,
        encoder=encoder,
        find_weights=cache(partial(weights_for_plan, named=settings.sam_checkpoint)),  # once for all datasets
        seconds=partial(training_seconds, network_class=network_class),
        target_spacing_mm=settings.overwrite_target_spacing,
        device=str(device),
        num_processes=processes,
    )


def _with_text(
    choice: "MethodChoice", dataset_folder: Path, settings: PlanningSettings, like: "Likeness | None"
) -> "MethodChoice":
    """Give a choice with the text of a dataset's classes: embedded, or that of the model to plan after."""
    from sam3dnet.preprocessing.cases import read_dataset_json

    text = _embed_classes(dataset_folder, settings)
    return replace(choice, text=text) if like is None else like.choice_for(read_dataset_json(dataset_folder), text)


def _embed_classes(dataset_folder: Path, settings: PlanningSettings) -> "Text | None":
    if not settings.clip_weights:
        return None
    from sam3dnet.network.published.text_encoder import as_plan_values, class_phrases, embed_phrases
    from sam3dnet.planning.methods import Text
    from sam3dnet.preprocessing.cases import output_names, read_dataset_json

    dataset_json = read_dataset_json(dataset_folder)
    file = None if settings.phrases is None else Path(settings.phrases)
    phrases = class_phrases(output_names(dataset_json), dataset_json, file)
    embedded = embed_phrases(phrases, settings.clip_weights, settings.clip_model)
    return Text(tuple(phrases), settings.clip_model, as_plan_values(embedded))


def _verify(name: str, folders: "Folders", num_processes: int, cluster: "Workers | None") -> None:
    from sam3dnet.preprocessing.verify import require_sound, verify_dataset

    problems = verify_dataset(folders.raw / name, num_processes, cluster=cluster)
    for problem in problems:
        if problem.severity == "warning":
            _log.warning("Warning: %s: %s", problem.case, problem.message)
    require_sound(problems)
    _log.info("%s is sound", name)


def _encoder_for(encoder: EncoderChoice, sam_checkpoint: str | None) -> EncoderChoice:
    """Check the file of weights that the user named, and say which encoder that asks for."""
    from sam3dnet.network.weights_file import check_named_file

    if encoder in ("none", "tiny", "small"):
        if sam_checkpoint:
            _log.warning("Warning: --encoder %s is trained from scratch: --sam-checkpoint is not used", encoder)
        return encoder
    check_named_file("vit_b" if encoder == "auto" else encoder, sam_checkpoint)
    return "vit_b" if encoder == "auto" and sam_checkpoint else encoder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(plan_and_preprocess, "sam3d_plan_and_preprocess", argv)


if __name__ == "__main__":
    sys.exit(main())
