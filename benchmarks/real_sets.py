"""Train stock nnU-Net and sam3dnet on every real set for the same time, and score both case by case in the same way.

    python benchmarks/real_sets.py --raw FOLDER_WITH_DATASETS --work DIR --minutes 20 --runs 1 --json OUT

Every training has a core of its own; with two cores two methods of a set train beside each other, so that what else
the machine does meets both. A training that is finished is kept (in DIR and in OUT), so the same command goes on where
it was interrupted, and adds further sets, methods, minutes and runs to what OUT holds. --table prints what OUT holds.
--steps in place of --minutes trains ours and its variants for equal numbers of steps, whatever else the machine does.
No patient of Dataset123 trains and validates: all methods have the split that sam3dnet makes, elsewhere nnU-Net's.

Methods:
    nnunet         stock nnU-Net, its own plan of 3d_fullres; the learning rate follows the clock
    nnunet-batch2  the same plan with two patches a batch, for more iterations in the same time
    nnunet-resenc  the same of the residual encoder, size M
    sam3d          sam3dnet's own three commands, with default settings; scored after the post-processing that the
                   training's validation chose, as users get it (stock nnU-Net chooses its own after all five folds)
    sam3d-VARIANT  the same with a part of it changed, see `variants.py`
"""

import argparse
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from types import MappingProxyType
from typing import Any

import against_nnunet
import numpy as np
from against_nnunet import MODELS, Settings, find_dataset, link_raw_dataset, train_and_validate
from measuring import commit, without_folder
from real_set_tables import METRICS, OURS, Row, case_means, key, table
from variants import ALL

from sam3dnet.comparison.measure import count_iterations, validation_names
from sam3dnet.comparison.stages import StageError, machine
from sam3dnet.inference.calibration import FILE as CONFIDENCE_FILE
from sam3dnet.preprocessing.cases import foreground_classes
from sam3dnet.preprocessing.cores import cores_of_job
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.splits import FILE as SPLITS
from sam3dnet.preprocessing.splits import update_splits

REAL_SETS = ("120", "121", "122", "123", "124", "125", "501")
METHODS = (OURS, "nnunet-batch2", "nnunet")
VARIANTS_OF_OURS = {f"{OURS}-{variant}": variant for variant in ALL}
KEPT = (*METRICS, "truth_ml", "prediction_ml", "lesions_truth", "lesions_predicted", "lesions_found", "lesions_correct")
MIN_RANKED = 4  # values, or a rank correlation says nothing
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"device": "cpu", "fold": "0", "plan_options": "", "train_options": "", "length": "minutes"}
)
CHOICES = (*against_nnunet.PREPARE, *VARIANTS_OF_OURS)

logger = logging.getLogger(__name__)


def prepare(arguments: argparse.Namespace, dataset: str) -> Settings:
    """Plan and preprocess a set with all methods, ours first, since it writes the split; on all cores."""
    settings = settings_of(arguments, dataset, "prepared")
    link_raw_dataset(settings)
    settings.preprocessed.mkdir(parents=True, exist_ok=True)
    cases = case_names(settings.raw / dataset)
    update_splits(settings.preprocessed / SPLITS, cases, cases)  # of patients, for all methods
    methods = {OURS if method in VARIANTS_OF_OURS else method for method in arguments.methods}
    for method in sorted(methods, key=lambda name: (name != OURS, name)):
        logger.info("%s: preparing %s", dataset, method)
        against_nnunet.PREPARE[method](settings)
    return settings


def case_names(raw: Path) -> list[str]:
    """List the labelled cases of a dataset."""
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    return sorted(file.name.removesuffix(ending) for file in (raw / "labelsTr").iterdir())


def settings_of(arguments: argparse.Namespace, dataset: str, name: str, length: float = 0) -> Settings:
    """Give what a folder of the set's is for; the length of its trainings is in minutes or steps."""
    return Settings(
        dataset=dataset,
        raw=arguments.raw,
        work=arguments.work.resolve() / dataset / name,
        minutes=0.0 if arguments.steps else length,
        fold=arguments.fold,
        device=arguments.device,
        timed_cases=0,
        plan_options=arguments.plan_options,
        train_options=arguments.train_options,
        steps=int(length) if arguments.steps else None,
    )


def train_and_score(prepared: Settings, arguments: argparse.Namespace, cell: tuple[str, str, float, int]) -> Row:
    """Train a method once on a set, and score its validation."""
    dataset, name, length, run = cell
    variant = VARIANTS_OF_OURS.get(name)
    method = OURS if variant else name
    folder = f"{length:g}{'steps' if arguments.steps else 'min'}_run{run}" + (f"_{variant}" if variant else "")
    settings = settings_of(arguments, dataset, folder, length)
    settings.work.mkdir(parents=True, exist_ok=True)
    shared = settings.work / "nnUNet_preprocessed"
    with suppress(FileExistsError):  # methods that train beside each other share the folder
        shared.symlink_to(prepared.work / "nnUNet_preprocessed", target_is_directory=True)
    link_raw_dataset(settings)
    trained = train_and_validate(settings, method, variant)
    fold = MODELS[method].model_folder(settings) / f"fold_{settings.fold}"
    output = settings.stages.folder / f"{method}-scores.json"
    labels = settings.raw / dataset / "labelsTr"
    paths = (fold / "validation", labels, settings.preprocessed, output)
    command = [sys.executable, __file__, "--score", *map(str, paths), "--fold", settings.fold]
    settings.stages.run(f"{method}-score", {"trained": trained["machine"]["date"], "output": output.name}, command)
    plans = json.loads((settings.preprocessed / f"{MODELS[method].plans}.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    load = trained["load"]["until_mark"] or trained["load"]
    return {
        **dict(zip(("dataset", "method", unit_of(arguments), "run"), cell, strict=True)),
        "fold": settings.fold,
        "iterations": count_iterations(fold),
        "patch_size": [int(n) for n in configuration["patch_size"]],
        "batch_size": int(configuration["batch_size"]),
        "peak_mib": load["peak_mib"],
        "cpu_seconds": load["cpu_seconds"],
        "machine": trained["machine"],
        "commit": commit() if method == OURS else None,
        "confidence": read_confidence(fold),
        **json.loads(output.read_text()),
    }


def read_confidence(fold: Path) -> dict[str, Any] | None:
    """Give how wrong the confidences of a validation were; None for nnU-Net's.

    Two more are of what the network says, before calibration: how its expected Dice ranks the values of all classes and
    cases, and how well the certainty of objects tells real ones from others.
    """
    if not (fold / CONFIDENCE_FILE).is_file():
        return None
    from scipy.stats import spearmanr

    content = json.loads((fold / CONFIDENCE_FILE).read_text())
    said, found = ([pair[key] for pair in content["dice"]] for key in ("said", "found"))
    real = [pair["said"] for pair in content["objects"] if pair["found"]]
    unreal = [pair["said"] for pair in content["objects"] if not pair["found"]]
    higher = [float(one > other) + (one == other) / 2 for one in real for other in unreal]
    return content["errors"] | {
        "rank_correlation": float(spearmanr(said, found).statistic) if len(said) > MIN_RANKED else None,
        "false_objects": len(unreal),
        "area_under_curve": float(np.mean(higher)) if higher else None,
    }


@contextmanager
def postprocessed(validation: Path) -> Iterator[Path]:
    """Give a validation's label maps and confidences as prediction would, after the post-processing that it chose."""
    from sam3dnet.inference.calibration import UNCALIBRATED
    from sam3dnet.inference.confidence import ENDING, as_json, from_json, left_of
    from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans
    from sam3dnet.inference.postprocessing import read_postprocessing
    from sam3dnet.inference.writing import write_label_map
    from sam3dnet.preprocessing.reading import reader_named

    model = validation.parents[1]
    described = read_model_dataset(model)
    chosen = read_postprocessing(model, described, [validation.parent])
    if not chosen:
        yield validation
        return
    reader = reader_named(str(read_model_plans(model)["image_reader_writer"]), described)
    ending, classes = described["file_ending"], foreground_classes(described)
    with tempfile.TemporaryDirectory() as name:
        for file in (one for one in validation.iterdir() if one.is_file() and not one.name.endswith(ENDING)):
            if not file.name.endswith(ending):
                shutil.copy(file, name)
                continue
            labels_1ZYX, properties = reader.read_seg(file)
            kept_ZYX = chosen.applied_to(labels_1ZYX[0].astype(np.int32), properties["spacing"])
            write_label_map(kept_ZYX, Path(name) / file.name, file, properties, reader)
            confidence = f"{file.name.removesuffix(ending)}{ENDING}"
            if (validation / confidence).is_file():
                measured = from_json(json.loads((validation / confidence).read_text()))
                left = left_of(measured, labels_1ZYX[0], kept_ZYX, classes, properties)
                write_json(Path(name) / confidence, as_json(left, UNCALIBRATED))
        yield Path(name)


def score(predictions: Path, labels: Path, preprocessed: Path, output: Path, fold: str) -> None:
    """Score the validation of a fold: a row a case and class, and where objects have confidences, their detection."""
    from sam3dnet.evaluation.folder import evaluate_folder
    from sam3dnet.evaluation.results import as_json
    from sam3dnet.settings.evaluation import ScoringSettings

    names = validation_names(preprocessed, fold)
    with postprocessed(predictions) as given:
        scoring = ScoringSettings(num_processes=0)
        evaluation = evaluate_folder(given, labels, scoring, only=set(names), progress=False)
    if evaluation.failed:
        raise StageError(f"validation is not whole: {evaluation.failed}")
    rows = [{key: row[key] for key in ("case", "class", *KEPT)} for row in as_json(evaluation)["cases"]]
    write_json(output, {"cases": rows, "detection": evaluation.detection()})


def require_alike(file: Path, settings: Mapping[str, Any]) -> None:
    """See that results are added to those of the same settings; what a file does not say was by default."""
    there = json.loads(file.read_text())["settings"] if file.exists() else {}
    for name, value in settings.items():
        before = there.get(name, DEFAULTS.get(name))
        if file.exists() and value != before:
            raise SystemExit(f"{file} holds results with {name} {before!r}, not {value!r}; take another --json")


def unit_of(arguments: argparse.Namespace) -> str:
    """Give what the length of a training is counted in."""
    return "steps" if arguments.steps else "minutes"


def settings_in(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what a training depends on besides its set, method, length and run; and in what the length is."""
    options = {name: getattr(arguments, name) for name in ("device", "fold", "plan_options", "train_options")}
    return options | {"length": unit_of(arguments)}


def run_all(arguments: argparse.Namespace) -> None:
    """Run what is not there yet, a training on each core; results are written as they come."""
    require_alike(arguments.json, settings_in(arguments))
    there = {key(row) for row in read_rows(arguments.json)}
    wanted = [
        (dataset, method, length, run)
        for length in arguments.steps or arguments.minutes
        for run in range(arguments.runs)
        for dataset in [find_dataset(arguments.raw, name) for name in arguments.sets]
        for method in arguments.methods
    ]
    missing = [cell for cell in wanted if cell not in there]
    prepared = {dataset: prepare(arguments, dataset) for dataset in dict.fromkeys(cell[0] for cell in missing)}

    def add(row: Row) -> None:
        others = [other for other in read_rows(arguments.json) if key(other) != key(row)]
        write_rows(arguments.json, [*others, row], settings_in(arguments))

    on_cores(missing, lambda cell: train_and_score(prepared[cell[0]], arguments, cell), add, arguments.cores)


def on_cores(
    cells: Iterable[Any], train: Callable[[Any], Row], add: Callable[[Row], None], cores: Sequence[int] | None
) -> None:
    """Train one cell after the other on each core.

    Args:
        cells: What is trained.
        train: Gives the row of a cell.
        add: Keeps a row; no two at a time.
        cores: To train on; None for all that there are.
    """
    queue: Queue[Any] = Queue()
    for cell in cells:
        queue.put(cell)
    adding = threading.Lock()

    def work(core: int) -> None:
        os.sched_setaffinity(0, {core})  # of this thread, and of the processes that it starts
        while True:
            try:
                cell = queue.get_nowait()
            except Empty:
                return
            try:
                row = train(cell)
            except StageError as error:
                logger.error("%s failed: %s", cell, error)
                continue
            with adding:
                add(row)
            logger.info("%s: Dice %.3f, %s iterations", cell, case_means([row], "dice").mean(), row["iterations"])

    cores = cores or sorted(os.sched_getaffinity(0))
    threads = [threading.Thread(target=work, args=(core,), daemon=True) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def read_rows(file: Path) -> list[Row]:
    """Read the trainings that a file holds; none if it is not there."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


def write_rows(file: Path, rows: Sequence[Row], settings: Mapping[str, Any] = DEFAULTS) -> None:
    """Write the trainings in the form of all benchmarks."""
    where = machine() | {"threads": 1, "commit": commit()}
    command = shlex.join(["python", "benchmarks/real_sets.py", *map(without_folder, sys.argv[1:])])
    rows = sorted(rows, key=key)
    content = {"benchmark": "real_sets", "command": command, "settings": dict(settings)}
    write_json(file, content | {"machine": where, "rows": rows})


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, help="folder for everything that is written but the results")
    parser.add_argument("--sets", nargs="+", default=list(REAL_SETS), help="numbers or names (default: all real ones)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=CHOICES)
    parser.add_argument("--minutes", nargs="+", type=float, default=[20.0], help="training time (default 20)")
    parser.add_argument("--steps", nargs="+", type=int, help="steps to train for in place of minutes; of ours alone")
    parser.add_argument("--runs", type=int, default=1, help="trainings of each, differently at random (default 1)")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cores", nargs="+", type=int, help="cores to train on (default: all that there are)")
    parser.add_argument("--plan-options", default="", help="further options of sam3d_plan_and_preprocess, quoted")
    parser.add_argument("--train-options", default="", help="further options of sam3d_train, quoted")
    parser.add_argument("--json", type=Path, default=Path("real_sets.json"), help="the results, which are added to")
    parser.add_argument("--table", action="store_true", help="print what the results are, and do no more")
    parser.add_argument("--score", nargs=4, type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.steps and (theirs := [name for name in parsed.methods if name != OURS and name not in VARIANTS_OF_OURS]):
        parser.error(f"--steps: nnU-Net's trainings follow the clock; leave out {', '.join(theirs)}")
    for steps in parsed.steps or ():
        try:
            against_nnunet.in_epochs(steps)
        except ValueError as error:
            parser.error(f"--steps: {error}")
    return parsed


def main() -> None:
    """Run what is missing, and print the tables."""
    a = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if a.score:
        score(*a.score, a.fold)
        return
    if not a.table:
        logger.info("%d cores", len(a.cores or range(cores_of_job())))
        run_all(a)
    print(table(read_rows(a.json)))


if __name__ == "__main__":
    main()
