"""Train stock nnU-Net and sam3dnet for the same time on the same data, validate both the same way, print a table.

    python benchmarks/against_nnunet.py -d 501 --raw FOLDER_WITH_DATASETS --work DIR --minutes 20

Every step runs in a process of its own, whose cost is recorded, and leaves a JSON file in DIR/stages: a step that is
finished is not repeated, so an interrupted benchmark goes on. The clock of training starts with the first iteration;
checkpoints and validation losses during training count, the validation afterwards does not.

Methods:
    nnunet         stock planner, network, loss, augmentation and optimiser; the learning rate follows the clock
    nnunet-batch2  the same plan with two patches a batch, for more iterations in the same time
    nnunet-equal   the same plan with sam3dnet's crop and batch, to compare iterations a second
    nnunet-resenc  the same as nnunet with the residual encoder, size M
    sam3d          sam3dnet's own three commands, with default settings
"""

import argparse
import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sam3dnet.comparison.run import CLOCK_FOLDER
from sam3dnet.comparison.stages import StageError, Stages, call, machine
from sam3dnet.preprocessing.cores import augmentation_processes, cores_of_job
from sam3dnet.preprocessing.folders import write_json

HERE = Path(__file__).resolve().parent
METHODS = ("nnunet", "nnunet-batch2", "sam3d")  # unless asked for others
STEPS_OF_EPOCH = 100  # where steps are given


@dataclass(frozen=True)
class Settings:
    """What the user asked for; a finished stage counts only if it was made with the same settings."""

    dataset: str
    raw: Path
    work: Path
    minutes: float  # or `steps`
    fold: str
    device: str
    timed_cases: int
    plan_options: str
    train_options: str
    steps: int | None = None  # of sam3dnet's, in place of minutes

    @property
    def preprocessed(self) -> Path:
        return self.work / "nnUNet_preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        return self.work / "nnUNet_results" / self.dataset

    @property
    def stages(self) -> Stages:
        return Stages(self.work / "stages", environment(self))


@dataclass(frozen=True)
class Method:
    """How a method is named in nnU-Net's folders."""

    trainer: str
    plans: str

    def model_folder(self, settings: Settings) -> Path:
        return settings.results / f"{self.trainer}__{self.plans}__3d_fullres"


MODELS = {
    "nnunet": Method("nnUNetTrainerClock", "nnUNetPlans"),
    "nnunet-batch2": Method("nnUNetTrainerClock", "nnUNetPlansBatch2"),
    "nnunet-equal": Method("nnUNetTrainerClock", "nnUNetPlansEqual"),
    "nnunet-resenc": Method("nnUNetTrainerClock", "nnUNetResEncUNetMPlans"),
    "sam3d": Method("nnUNetTrainerSAM3D", "SAM3DPlans"),
}


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment of all stages: nnU-Net's folders and budget, and as many processes as there are cores."""
    trainer_folders = [CLOCK_FOLDER, HERE.parent / "sam3dnet" / "nnunet_ext"]
    return os.environ | {
        "nnUNet_raw": str(settings.work / "nnUNet_raw"),
        "nnUNet_preprocessed": str(settings.work / "nnUNet_preprocessed"),
        "nnUNet_results": str(settings.work / "nnUNet_results"),
        "nnUNet_extTrainer": os.pathsep.join(map(str, trainer_folders)),
        "nnUNet_clock_minutes": str(settings.minutes),
        "nnUNet_def_n_proc": str(cores_of_job()),
        "PYTHONUNBUFFERED": "1",
    }


def link_raw_dataset(settings: Settings) -> None:
    """Make the raw dataset visible below the work folder."""
    link = settings.work / "nnUNet_raw" / settings.dataset
    link.parent.mkdir(parents=True, exist_ok=True)
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        (settings.work / name).mkdir(exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to((settings.raw / settings.dataset).resolve(), target_is_directory=True)


def prepare_nnunet(settings: Settings) -> dict:
    """Plan and preprocess with stock nnU-Net, and derive the plan with a batch of two."""
    record = settings.stages.run("nnunet-prepare", {"dataset": settings.dataset}, nnunet_planning(settings))
    write_changed_plans(settings, "nnunet-batch2", {"batch_size": 2})
    return record


def prepare_nnunet_resenc(settings: Settings) -> dict:
    """Plan and preprocess with stock nnU-Net for its residual encoder of size M."""
    command = nnunet_planning(settings, "nnUNetPlannerResEncM")
    return settings.stages.run("nnunet-resenc-prepare", {"dataset": settings.dataset}, command)


def nnunet_planning(settings: Settings, planner: str = "ExperimentPlanner") -> list[str]:
    """Return the command of stock nnU-Net's planning and preprocessing."""
    entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry"
    processes = ("-np", str(cores_of_job()), "-npfp", str(cores_of_job()))
    return call(entry, "-d", str(int(settings.dataset[7:10])), "-c", "3d_fullres", "-pl", planner, *processes)


def prepare_nnunet_equal(settings: Settings) -> dict:
    """Plan and preprocess with both, and derive nnU-Net's plan for sam3dnet's crop and batch."""
    prepare_sam3d(settings)
    record = prepare_nnunet(settings)
    own = json.loads((settings.preprocessed / f"{MODELS['sam3d'].plans}.json").read_text())
    own = own["configurations"]["3d_fullres"]
    plans = json.loads((settings.preprocessed / "nnUNetPlans.json").read_text())["configurations"]["3d_fullres"]
    architecture, crop = fitted_to(plans["architecture"], own["patch_size"], own["spacing"])
    changes = {"patch_size": crop, "batch_size": own["batch_size"], "architecture": architecture}
    write_changed_plans(settings, "nnunet-equal", changes)
    return record


def fitted_to(architecture: dict, crop: Sequence[int], spacing_mm: Sequence[float]) -> tuple[dict, list[int]]:
    """Give nnU-Net's network the levels that its planner would for a crop; and the crop, whole in all of them."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, whole, _ = get_pool_and_conv_props(spacing_mm, crop, 4, 999999)
    arguments, stages = architecture["arch_kwargs"], len(strides)
    features = [*arguments["features_per_stage"], *[max(arguments["features_per_stage"])] * stages][:stages]
    counts = {"n_conv_per_stage": stages, "n_conv_per_stage_decoder": stages - 1}
    changes = {
        "n_stages": stages,
        "features_per_stage": features,
        "strides": [[int(n) for n in stride] for stride in strides],
        "kernel_sizes": [[int(n) for n in kernel] for kernel in kernels],
        **{key: [arguments[key][0]] * count for key, count in counts.items()},
    }
    return architecture | {"arch_kwargs": arguments | changes}, [int(n) for n in whole]


def write_changed_plans(settings: Settings, method: str, changes: dict) -> None:
    """Write nnU-Net's plan under another name with changes to its configuration."""
    plans = json.loads((settings.preprocessed / "nnUNetPlans.json").read_text())
    plans["plans_name"] = MODELS[method].plans
    plans["configurations"]["3d_fullres"] |= changes
    write_json(settings.preprocessed / f"{plans['plans_name']}.json", plans)


def prepare_sam3d(settings: Settings) -> dict:
    """Verify, plan and preprocess with sam3dnet."""
    return settings.stages.run(
        "sam3d-prepare",
        {"dataset": settings.dataset, "plan_options": settings.plan_options},
        call(
            "sam3dnet.cli.plan_and_preprocess:main",
            *("-d", settings.dataset, "--root", str(settings.work), *shlex.split(settings.plan_options)),
        ),
    )


PREPARE: dict[str, Callable[[Settings], dict]] = {
    "nnunet": prepare_nnunet,
    "nnunet-batch2": prepare_nnunet,
    "nnunet-equal": prepare_nnunet_equal,
    "nnunet-resenc": prepare_nnunet_resenc,
    "sam3d": prepare_sam3d,
}


def train_and_validate(settings: Settings, method: str, variant: str | None = None) -> dict:
    """Train for the budget and validate, both anew if this stage was interrupted: one process, one record.

    Args:
        settings: Of the benchmark.
        method: One of MODELS.
        variant: Of `variants.py`, for "sam3d".
    """
    model = MODELS[method]
    keys = {"dataset": settings.dataset, "minutes": settings.minutes, "fold": settings.fold, "device": settings.device}
    if method == "sam3d":
        keys |= {"plan_options": settings.plan_options, "train_options": settings.train_options, "variant": variant}
        keys |= {} if settings.steps is None else {"steps": settings.steps}
    stage = f"{method}-train"
    final_checkpoint = model.model_folder(settings) / f"fold_{settings.fold}" / "checkpoint_final.pth"
    if settings.stages.finished(stage, keys) is None and final_checkpoint.parent.exists():
        shutil.rmtree(final_checkpoint.parent)
    if method == "sam3d":
        return settings.stages.run(stage, keys, sam3d_training(settings, variant), final_checkpoint)
    loaders = {"nnUNet_n_proc_DA": str(augmentation_processes(settings.device, cores_of_job()))}
    return settings.stages.run(stage, keys, nnunet_training(settings, model), final_checkpoint, loaders)


def nnunet_training(settings: Settings, model: Method) -> list[str]:
    """Return the command of stock nnU-Net's training and validation."""
    return call(
        "nnunetv2.run.run_training:run_training_entry",
        *(settings.dataset, "3d_fullres", settings.fold),
        *("-tr", model.trainer, "-p", model.plans, "-device", settings.device),
    )


def sam3d_training(settings: Settings, variant: str | None = None) -> list[str]:
    """Return the command of sam3dnet's training and validation."""
    length = ["--minutes", str(settings.minutes)] if settings.steps is None else in_epochs(settings.steps)
    arguments = [
        *(settings.dataset, f"fold{settings.fold}", *length),
        *("--root", str(settings.work), "--device", settings.device, *shlex.split(settings.train_options)),
    ]
    if variant is None:
        return call("sam3dnet.cli.train:main", *arguments)
    return [sys.executable, str(HERE / "variants.py"), variant, "--", *arguments]


def in_epochs(steps: int) -> list[str]:
    """Return the options of sam3d_train for a number of steps."""
    each = min(steps, STEPS_OF_EPOCH)
    if steps < 1 or steps % each:
        raise ValueError(f"{steps} steps: expected up to {STEPS_OF_EPOCH}, or a multiple of it")
    return ["--epochs", str(steps // each), "--iterations-per-epoch", str(each)]


def measure(settings: Settings, method: str, trained: dict) -> dict:
    """Measure the trained model in a process of its own."""
    output = settings.stages.folder / f"{method}-measured.json"
    labels = settings.raw / settings.dataset / "labelsTr"
    command = call(
        "sam3dnet.comparison.measure:main",
        *map(str, (MODELS[method].model_folder(settings), settings.preprocessed, labels, output)),
        *("--fold", settings.fold, "--device", settings.device, "--timed-cases", str(settings.timed_cases)),
    )
    keys = {"trained": trained["keys"], "trained_on": trained["machine"]["date"], "cases": settings.timed_cases}
    settings.stages.run(f"{method}-measure", keys, command)
    return json.loads(output.read_text())


def stock_dice(fold_folder: Path) -> float:
    """Return the mean Dice that the trainer's own validation wrote."""
    return json.loads((fold_folder / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]


def run_method(settings: Settings, method: str) -> dict:
    """Run all stages of one method and return what the table shows."""
    prepared = PREPARE[method](settings)
    trained = train_and_validate(settings, method)
    measured = measure(settings, method, trained)
    fold_folder = MODELS[method].model_folder(settings) / f"fold_{settings.fold}"
    return {
        "method": method,
        "stock_summary_mean_dice": stock_dice(fold_folder),
        "measured": measured,
        "prepare_load": prepared["load"],
        "train_load": trained["load"],
        "train_machine": trained["machine"],
    }


def mean_dice(row: dict) -> float:
    """Return the mean over the classes."""
    scores = row["measured"]["scores"]
    return sum(score["dice"] for score in scores.values()) / len(scores)


COLUMNS: tuple[tuple[str, Callable[[dict], str]], ...] = (
    ("method", lambda r: r["method"]),
    ("mean Dice", lambda r: f"{mean_dice(r):.4f}"),
    ("Dice per class", lambda r: ", ".join(f"{k} {v['dice']:.4f}" for k, v in r["measured"]["scores"].items())),
    ("iterations", lambda r: str(r["measured"]["iterations"])),
    ("patch", lambda r: "x".join(map(str, r["measured"]["patch_size"])) + f", batch {r['measured']['batch_size']}"),
    ("parameters (tuned)", lambda r: f"{r['measured']['parameters']:,} ({r['measured']['tuned_parameters']:,})"),
    ("s/case", lambda r: f"{r['measured']['seconds_per_case']:.2f}"),
    ("peak MiB", lambda r: f"{r['train_load']['peak_mib']:.0f}"),
    ("CPU s", lambda r: f"{r['train_load']['cpu_seconds']:.0f}"),
    ("wall s", lambda r: f"{r['train_load']['wall_seconds']:.0f}"),
)


def format_table(rows: Sequence[dict]) -> str:
    """Return a Markdown table, a row a method; memory and times are those of training with its validation."""
    lines = [[title for title, _ in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [[cell(row) for _, cell in COLUMNS] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find_dataset(raw: Path, identifier: str) -> str:
    """Return the name of the one dataset folder that the number or name means."""
    prefix = f"Dataset{int(identifier):03d}_" if identifier.isdigit() else identifier
    names = sorted(p.name for p in raw.iterdir() if p.is_dir() and p.name.startswith(prefix))
    if len(names) != 1:
        raise SystemExit(f"{raw}: expected one folder {prefix}*, found {names or 'none'}")
    return names[0]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 501")
    parser.add_argument("--raw", type=Path, required=True, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each method (default 20)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default %(default)s)")
    parser.add_argument("--fold", default="0", choices=tuple("01234"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--timed-cases", type=int, default=10, help="validation cases that are timed (default 10)")
    parser.add_argument("--plan-options", default="", help="further options of sam3d_plan_and_preprocess, quoted")
    parser.add_argument("--train-options", default="", help="further options of sam3d_train, quoted")
    parser.add_argument("--json", type=Path, help="where the results go (default DIR/results.json)")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the methods one after another; print the table after each, so that an interruption leaves what is known."""
    a = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    methods = a.methods.split(",")
    if unknown := sorted(set(methods) - set(MODELS)):
        raise SystemExit(f"unknown methods {unknown}; choose from {tuple(MODELS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = a.work.resolve()
    settings = Settings(
        dataset=find_dataset(a.raw, a.dataset),
        raw=a.raw,
        work=work,
        minutes=a.minutes,
        fold=a.fold,
        device=a.device,
        timed_cases=a.timed_cases,
        plan_options=a.plan_options,
        train_options=a.train_options,
    )
    link_raw_dataset(settings)
    rows = []
    for method in methods:
        try:
            rows.append(run_method(settings, method))
        except StageError as error:
            raise SystemExit(str(error)) from error
        write_json(a.json or work / "results.json", {"minutes": a.minutes, "machine": machine(), "methods": rows})
        print(format_table(rows), flush=True)


if __name__ == "__main__":
    main()
