"""Who takes part in a comparison: how each is named in nnU-Net's folders, planned and trained."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.comparison.stages import call
from sam3dnet.errors import PlanError, did_you_mean
from sam3dnet.planning.methods import DEFAULT_TUNING, METHODS, MethodChoice
from sam3dnet.preprocessing.cores import augmentation_processes, cores_of_job

OUR_TRAINER = "nnUNetTrainerSAM3D"
CLOCK_TRAINER = "nnUNetTrainerClock"
SAM_POINTS = "sam-points"
CONFIGURATION = "3d_fullres"
LOADERS = "nnUNet_n_proc_DA"  # nnU-Net's variable
AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Settings:
    """What is compared, on what, and for how long.

    Attributes:
        dataset: Full name.
        work: Folder for everything that is written.
        minutes: Training time of each method.
        fold: Whose cases validate.
        device: "cpu", "cuda", "cuda:1" or "mps".
        timed_cases: Validation cases that are timed.
        clicks: Numbers of clicks, or of points a slice, after which promptable methods are scored.
        plan_options: Further options of sam3d_plan_and_preprocess, for methods that our planner plans.
        sam_checkpoint: SAM's weights: "sam", "medsam", or a file; None: the usual places.
        seed: Of the points.
    """

    dataset: str
    work: Path
    minutes: float
    fold: int
    device: str
    timed_cases: int = 10
    clicks: tuple[int, ...] = ()
    plan_options: tuple[str, ...] = ()
    sam_checkpoint: str | None = None
    seed: int = 0

    @property
    def preprocessed(self) -> Path:
        """Preprocessed folder of the dataset."""
        return self.work / "nnUNet_preprocessed" / self.dataset

    @property
    def raw(self) -> Path:
        """Raw folder of the dataset."""
        return self.work / "nnUNet_raw" / self.dataset

    @property
    def number(self) -> str:
        """Number of the dataset, as nnU-Net's commands want it."""
        return str(int(self.dataset[len("Dataset") :].split("_")[0]))


@dataclass(frozen=True)
class Competitor:
    """A method that is planned and trained.

    Attributes:
        name: As asked for.
        trainer: Of nnU-Net's folders.
        plans_name: Of nnU-Net's folders.
        choice: For our planner; None for nnU-Net's own.
        planner: nnU-Net's planner, where it plans.
    """

    name: str
    trainer: str
    plans_name: str
    choice: MethodChoice | None = None
    planner: str | None = None

    def model_folder(self, settings: Settings) -> Path:
        """Where nnU-Net's folders have its model."""
        folder = f"{self.trainer}__{self.plans_name}__{CONFIGURATION}"
        return settings.work / "nnUNet_results" / settings.dataset / folder

    def prepare_command(self, settings: Settings) -> list[str]:
        """Give the command that plans and preprocesses."""
        if self.choice is None:
            entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry"
            processes = ("-np", str(cores_of_job()), "-npfp", str(cores_of_job()))
            return call(entry, "-d", settings.number, "-c", CONFIGURATION, "-pl", str(self.planner), *processes)
        return call(
            "sam3dnet.cli.plan_and_preprocess:main",
            *("-d", settings.dataset, "--root", str(settings.work), "--device", settings.device),
            *planning_options(self.choice),
            *settings.plan_options,
        )

    def train_command(self, settings: Settings) -> list[str]:
        """Give the command that trains for the time, and validates."""
        if self.choice is None:
            return call(
                "nnunetv2.run.run_training:run_training_entry",
                *(settings.dataset, CONFIGURATION, str(settings.fold)),
                *("-tr", self.trainer, "-p", self.plans_name, "-device", settings.device.partition(":")[0]),
            )
        return call(
            "sam3dnet.cli.train:main",
            *(settings.dataset, f"fold{settings.fold}", "--plans", self.plans_name),
            *("--minutes", str(settings.minutes), "--root", str(settings.work), "--device", settings.device),
            *(("--sam-checkpoint", settings.sam_checkpoint) if settings.sam_checkpoint else ()),
        )

    def variables(self, settings: Settings) -> dict[str, str]:
        """Give the environment variables of its training.

        Stock nnU-Net takes the first card that it sees, and has as many loaders as ours, unless the user says how many.
        """
        if self.choice is not None:
            return {}
        loaders = os.environ.get(LOADERS) or augmentation_processes(settings.device, cores_of_job())
        return {LOADERS: str(loaders), **_only_card(settings.device)}


def _only_card(device: str) -> dict[str, str]:
    """Give the variable by which a process sees no card but "cuda:1", counted among those that this process sees."""
    index = device.partition(":")[2]
    if not index:
        return {}
    seen = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return {"CUDA_VISIBLE_DEVICES": seen[int(index)] if seen else index}


NNUNETS = {
    "nnunet": Competitor("nnunet", CLOCK_TRAINER, "nnUNetPlans", planner="ExperimentPlanner"),
    "nnunet-resenc": Competitor(
        "nnunet-resenc", CLOCK_TRAINER, "nnUNetResEncUNetMPlans", planner="nnUNetPlannerResEncM"
    ),
}
KNOWN = (*NNUNETS, *METHODS, SAM_POINTS)


def planning_options(choice: MethodChoice) -> list[str]:
    """Give the options of sam3d_plan_and_preprocess that mean a choice."""
    options = ["--method", choice.name, "--tuning", choice.tuning]
    options += ["--fidelity", choice.fidelity] if choice.fidelity else []
    options += ["--network", choice.network] if choice.network else []
    return options + ([] if choice.prompts else ["--no-prompts"])


def find_competitor(name: str, network: str | None = None) -> Competitor:
    """Understand a name such as "nnunet", "sam3d", "sam3d:lora" or "3dsam-adapter:as-published".

    Args:
        name: Method, then after colons a fidelity, a tuning method, or "automatic" for one without prompts.
        network: package.module:Class, for the method "network".

    Raises:
        PlanError: If there is no such method.
    """
    if name in NNUNETS:
        return NNUNETS[name]
    method, *variants = name.split(":")
    if method not in METHODS:
        raise PlanError(f"method {name!r} is unknown{did_you_mean(name, KNOWN)}; expected some of {', '.join(KNOWN)}")
    choice = _choice(method, variants, network)
    return Competitor(name, OUR_TRAINER, choice.plans_name, choice)


def _choice(method: str, variants: Sequence[str], network: str | None) -> MethodChoice:
    fidelities = [variant for variant in variants if variant in METHODS[method].fidelities]
    tunings = [variant for variant in variants if variant not in (*fidelities, AUTOMATIC)]
    return MethodChoice(
        method,
        fidelities[0] if fidelities else None,
        tunings[0] if tunings else DEFAULT_TUNING,
        prompts=AUTOMATIC not in variants,
        network=network if method == "network" else None,
    )
