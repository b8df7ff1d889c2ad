"""sam3d_plan_and_preprocess: from a dataset in nnU-Net's raw format to a plan and preprocessed cases."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sam3dnet.cli.choices import FidelityName, PlannedMethodName, TuningName
from sam3dnet.cli.command import run_command
from sam3dnet.settings.common import EncoderChoice, NumProcesses

if TYPE_CHECKING:
    from sam3dnet.planning.methods import Text
    from sam3dnet.preprocessing.folders import Folders
    from sam3dnet.preprocessing.workers import Workers

_log = logging.getLogger(__name__)


def plan_and_preprocess(
    *,
    datasets: Annotated[list[str], "-d"],
    root: Path | None = None,
    gpu_memory_target: Annotated[float | None, "-gpu_memory_target"] = None,
    encoder: EncoderChoice = "auto",
    sam_checkpoint: str | None = None,
    num_processes: NumProcesses = None,
    skip_verification: bool = False,
    no_prompts: bool = False,
    device: str | None = None,
    method: PlannedMethodName = "sam3d",
    fidelity: FidelityName | None = None,
    tuning: TuningName = "spatial-adapter",
    clip_weights: str | None = None,
    clip_model: str = "ViT-B-16",
    phrases: Path | None = None,
    network: str | None = None,
    scheduler: str | None = None,
) -> list[Path]:
    """Verify datasets, decide how to train on them, and preprocess their cases.

    Args:
        datasets: Datasets by number or name, such as 501 or Dataset501_Hippocampus.
        root: Folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results, in place of the three variables of
            these names.
        gpu_memory_target: GB of memory that training may take; without it, what the device has.
        encoder: Size of the image encoder; vit_b, vit_l and vit_h start from SAM's weights, auto takes vit_b where
            these are to be had and, on a CPU, a step with it costs little more.
        sam_checkpoint: SAM's weights to plan for, which asks for vit_b where no encoder is named: sam, medsam, or a
            file in SAM's format; without it $SAM3D_WEIGHTS, else sam, from the cache or by a download.
        num_processes: Processes to verify and preprocess with; 0 works in the command's own, without it one a core,
            8 at most.
        skip_verification: Leave out the verification of the dataset.
        no_prompts: Plan a network that only segments by itself, and cannot be given clicks, boxes or masks.
        device: Device that training is going to use: cpu, cuda, cuda:1 (the second card), mps; without it the
            best there is.
        method: Network to plan: ours, a published system built from the same parts (3dmedsam: after the abstract), a
            peer from MONAI or nnU-Net, or with --network any other. Each has a plan of its own name, for --plans of
            the other commands.
        fidelity: For 3dsam-adapter, without the defects of the published code, or with them; without it corrected.
        tuning: How an image encoder with SAM's weights is tuned; one that starts from scratch is trained whole.
        clip_weights: For refsam3d, CLIP's weights that the classes' phrases are embedded with: a file, or a name that
            open_clip knows, such as openai; without it every class has a learned embedding, and no text can be asked.
        clip_model: CLIP model that the weights belong to, by open_clip's name.
        phrases: JSON file with a phrase for each class, in place of "phrases" in dataset.json or "perform liver
            segmentation".
        network: For --method network, package.module:Class of an installed package; it is given (input_channels,
            num_classes).
        scheduler: Address of a Dask scheduler, whose workers then verify, measure and preprocess the cases; see
            docs/cluster.md.

    Returns:
        The plan file of each dataset.

    Raises:
        DatasetError: If a dataset is not found or not sound.
        CheckpointError: If the encoder wants SAM's weights and there are none to be had.
        PlanError: If the method does not have the fidelity, or no network fits the memory.
    """
    from sam3dnet.planning.methods import MethodChoice
    from sam3dnet.preprocessing.folders import activate_folders, find_dataset_name

    folders = activate_folders(root)
    names = [find_dataset_name(identifier, folders) for identifier in datasets]
    choice = MethodChoice(method, fidelity, tuning, prompts=not no_prompts, network=network)
    encoder = encoder if choice.method.peer else _encoder_for(encoder, sam_checkpoint)

    from sam3dnet.devices import choose_device
    from sam3dnet.network.cost import training_cost, training_operations
    from sam3dnet.network.weights_file import weights_for_plan
    from sam3dnet.planning.plan import format_decisions, load_plan
    from sam3dnet.planning.planner import plan_dataset
    from sam3dnet.preprocessing.pipeline import preprocess_dataset
    from sam3dnet.preprocessing.workers import default_num_processes

    chosen = choose_device(device)
    for_a_card = chosen.type == "cuda" or gpu_memory_target is not None
    processes = default_num_processes() if num_processes is None else num_processes
    plan = partial(
        plan_dataset,
        folders=folders,
        cost=partial(training_cost, device="cuda" if for_a_card else "cpu", network_class=choice.method.network_class),
        gpu_memory_target_gb=gpu_memory_target,
        encoder=encoder,
        find_weights=cache(partial(weights_for_plan, named=sam_checkpoint)),  # once for all datasets
        operations=partial(training_operations, network_class=choice.method.network_class),
        device=str(chosen),
        num_processes=processes,
    )
    plan_files = []
    from sam3dnet.preprocessing.cluster import cluster_at

    with cluster_at(scheduler, num_processes) as cluster:
        for name in names:
            if not skip_verification:
                _verify(name, folders, processes, cluster)
            text = _embed_classes(folders.raw / name, clip_weights, clip_model, phrases) if clip_weights else None
            plan_files.append(plan(name, choice=replace(choice, text=text), cluster=cluster))
            print(format_decisions(load_plan(plan_files[-1])), flush=True)
            preprocess_dataset(name, folders, choice.plans_name, num_processes=processes, cluster=cluster)
    return plan_files


def _embed_classes(dataset_folder: Path, weights: str, model: str, phrases_file: Path | None) -> "Text":
    from sam3dnet.network.published.text_encoder import as_plan_values, class_phrases, embed_phrases
    from sam3dnet.planning.methods import Text
    from sam3dnet.planning.planner import output_names
    from sam3dnet.preprocessing.cases import read_dataset_json

    dataset_json = read_dataset_json(dataset_folder)
    phrases = class_phrases(output_names(dataset_json), dataset_json, phrases_file)
    return Text(tuple(phrases), model, as_plan_values(embed_phrases(phrases, weights, model)))


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

    if encoder in ("tiny", "small"):
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
