"""Dice by the number of labelled cases, at equal time: stock nnU-Net, sam3dnet from scratch, and from another model.

    python benchmarks/learning_curves.py --raw FOLDER_WITH_DATASETS --work DIR --sets 501 122 --labels 2 5 10 20 all \\
        --minutes 5 --from MODEL_FOLDER --json OUT

The cases that validate are those of the set's fold 0 (of patients), the same for every number; of the
others the first so many of a random order train, so that fewer are among more. All methods plan on these cases alone.
A training that is finished is kept, so the same command goes on, and adds to what OUT holds, as `real_sets.py` does.

Methods:
    nnunet-batch2  stock nnU-Net with two patches a batch; the learning rate follows the clock
    sam3d          sam3dnet, from scratch
    sam3d-from     the same with `--from MODEL_FOLDER`, a model of another set
    sam3d-unlabelled  goes on from what sam3d has made of the same cases, with all other images of the training part
                   as `--unlabelled`
    sam3d-again    the same without these images
"""

import argparse
import json
import logging
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import real_sets
from against_nnunet import MODELS, find_dataset
from measuring import as_markdown, commit, without_folder
from real_set_tables import OURS, Row, case_means
from real_sets import case_names, on_cores, read_rows, require_alike, train_and_score

from sam3dnet.comparison.stages import machine
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.splits import FILE as SPLITS
from sam3dnet.preprocessing.splits import make_splits

ALL, FROM = "all", f"{OURS}-from"
UNLABELLED, AGAIN = f"{OURS}-unlabelled", f"{OURS}-again"
WITHOUT_LABELS = "images_without_labels"
ON_OWN = (UNLABELLED, AGAIN)  # these go on from what OURS has made of the same cases
METHODS = ("nnunet-batch2", OURS, FROM, *ON_OWN)

logger = logging.getLogger(__name__)


class Cell(NamedTuple):
    """A training."""

    dataset: str
    labels: str
    method: str
    minutes: float
    run: int


def key(row: Row) -> Cell:
    """Give what tells a training from another."""
    return Cell(*(row[name] for name in Cell._fields))


def make_subset(raw: Path, dataset: str, labels: str, run: int, place: Path) -> bool:
    """Link the cases of a subset as a dataset of its own below place/raw, and write its split; once.

    Returns:
        Whether there are so many cases to train on.
    """
    source, target = raw / dataset, place / "raw" / dataset
    described = json.loads((source / "dataset.json").read_text())
    fold = make_splits(case_names(source))[0]
    order = list(np.random.default_rng(run).permutation(fold.train))
    if labels != ALL and int(labels) >= len(order):
        return False
    train = sorted(map(str, order if labels == ALL else order[: int(labels)]))
    cases = {*train, *fold.val}
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for file in (source / folder).iterdir():
            name = file.name.removesuffix(described["file_ending"])
            if (name if folder == "labelsTr" else name[: -len("_0000")]) in cases:
                with suppress(FileExistsError):
                    (target / folder / file.name).symlink_to(file.resolve())
    write_json(target / "dataset.json", described | {"numTraining": len(cases)})
    split = place / "work" / dataset / "prepared" / "nnUNet_preprocessed" / dataset / SPLITS
    split.parent.mkdir(parents=True, exist_ok=True)
    write_json(split, [{"train": train, "val": list(fold.val)}])
    return True


def link_unlabelled(raw: Path, dataset: str, place: Path) -> bool:
    """Link the images of the training part that a subset leaves out into a folder of it; tell whether there are any.

    Args:
        raw: Holds the dataset.
        dataset: Its name.
        place: Of the subset.
    """
    source, there = raw / dataset, {*case_names(place / "raw" / dataset)}
    left_out = {*make_splits(case_names(source))[0].train} - there
    folder = place / WITHOUT_LABELS
    folder.mkdir(exist_ok=True)
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    for file in (source / "imagesTr").iterdir():
        if file.name.removesuffix(ending)[: -len("_0000")] in left_out:
            with suppress(FileExistsError):
                (folder / file.name).symlink_to(file.resolve())
    return bool(left_out)


def arguments_of(arguments: Namespace, cell: Cell) -> Namespace:
    """Say to `real_sets.py` where a subset is, and what is trained."""
    place = arguments.work.resolve() / cell.dataset / f"{cell.labels}_run{cell.run}"
    is_first = cell.method not in (FROM, *ON_OWN)
    work = place / ("work" if is_first else cell.method.removeprefix(f"{OURS}-"))
    methods = dict.fromkeys(OURS if method in (FROM, *ON_OWN) else method for method in arguments.methods)
    said = ("--raw", place / "raw", "--work", work, "--device", arguments.device, "--methods", *methods)
    given = real_sets.parse(list(map(str, said)))
    options = []
    if cell.method == FROM:
        options = ["--from", str(arguments.start.resolve())]
    elif cell.method in ON_OWN:
        first = Namespace(**{**vars(given), "work": place / "work"})
        made = real_sets.settings_of(first, cell.dataset, f"{cell.minutes:g}min_run{cell.run}")
        options = ["--from", str(MODELS[OURS].model_folder(made))]
    if cell.method == UNLABELLED:
        options += ["--unlabelled", str(place / WITHOUT_LABELS)]
    given.train_options = shlex.join(options)
    return given


def name_of_start(model: Path) -> str:
    """Name a model by its dataset, and the folder of what made it."""
    return "/".join((model.resolve().parents[2].name, model.resolve().parent.name))


def run_all(arguments: Namespace) -> None:
    """Run what is not there yet, a training on each core."""
    started = FROM in arguments.methods
    settings = {"device": arguments.device, **({"start": name_of_start(arguments.start)} if started else {})}
    before = json.loads(arguments.json.read_text())["settings"] if arguments.json.exists() else {}
    require_alike(arguments.json, settings if before.get("start") else {"device": arguments.device})
    there = {key(row) for row in read_rows(arguments.json)}
    wanted = [
        Cell(find_dataset(arguments.raw, name), labels, method, minutes, run)
        for minutes in arguments.minutes
        for run in range(arguments.runs)
        for name in arguments.sets
        for labels in arguments.labels
        for method in arguments.methods
    ]
    missing, prepared = [], {}
    for cell in wanted:
        which = (cell.dataset, cell.labels, cell.run)
        given = arguments_of(arguments, cell)
        if cell in there or prepared.get(which) is False:
            continue
        if which not in prepared:
            found = make_subset(arguments.raw.resolve(), cell.dataset, cell.labels, cell.run, given.raw.parent)
            given.work = given.raw.parent / "work"
            prepared[which] = real_sets.prepare(given, cell.dataset) if found else False
        place = given.raw.parent
        if prepared[which] and (
            cell.method != UNLABELLED or link_unlabelled(arguments.raw.resolve(), cell.dataset, place)
        ):
            missing.append(cell)

    def train(cell: Cell) -> Row:
        method = OURS if cell.method in (FROM, *ON_OWN) else cell.method
        asked = (cell.dataset, method, cell.minutes, cell.run)
        row = train_and_score(prepared[cell.dataset, cell.labels, cell.run], arguments_of(arguments, cell), asked)
        return row | {"method": cell.method, "labels": cell.labels}

    def add(row: Row) -> None:
        rows = [*(other for other in read_rows(arguments.json) if key(other) != key(row)), row]
        where = machine() | {"threads": 1, "commit": commit()}
        command = " ".join(["python", "benchmarks/learning_curves.py", *map(without_folder, sys.argv[1:])])
        content = {"benchmark": "learning_curves", "command": command, "settings": before | settings}
        write_json(arguments.json, content | {"machine": where, "rows": sorted(rows, key=key)})

    for are_second in (False, True):
        on_cores([cell for cell in missing if (cell.method in ON_OWN) == are_second], train, add, arguments.cores)


def count_of(labels: str) -> float:
    """Give the number that a word stands for, for the order."""
    return np.inf if labels == ALL else int(labels)


def by_labels(rows: Sequence[Row]) -> dict[tuple[str, float], dict[str, dict[str, list[Row]]]]:
    """Part rows by set and minutes, by number of labels in their order, and by method."""
    ordered = sorted(rows, key=lambda row: (row["minutes"], row["dataset"], count_of(row["labels"]), row["method"]))
    found: dict[tuple[str, float], dict[str, dict[str, list[Row]]]] = {}
    for (minutes, dataset, labels), group in groupby(
        ordered, lambda row: (row["minutes"], row["dataset"], row["labels"])
    ):
        methods = found.setdefault((dataset, minutes), {}).setdefault(labels, {})
        for row in group:
            methods.setdefault(row["method"], []).append(row)
    return found


def table(rows: Sequence[Row]) -> str:
    """Format a line for each set and number: the mean Dice of each method over cases, classes and runs."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    lines = [["set", "minutes", "labelled cases", *methods, "iterations", "validated on", "runs"]]
    for (dataset, minutes), numbers in by_labels(rows).items():
        for labels, of_method in numbers.items():
            shown = [
                f"{case_means(of_method[method], 'dice').mean():.3f}" if method in of_method else "-"
                for method in methods
            ]
            trained = [str(of_method[method][0]["iterations"]) if method in of_method else "-" for method in methods]
            some = next(iter(of_method.values()))
            validated, runs = len(case_means(some, "dice")), len(some)
            lines.append([dataset, f"{minutes:g}", labels, *shown, ", ".join(trained), str(validated), str(runs)])
    return as_markdown(lines)


def draw(rows: Sequence[Row]) -> Any:
    """Draw Dice by the number of labelled cases, a picture a set."""
    from matplotlib.figure import Figure

    curves = by_labels(rows)
    figure = Figure(figsize=(3.4 * len(curves), 3))
    for at, ((dataset, minutes), numbers) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(1, len(curves), at)
        for method in METHODS:
            points = [
                (number, case_means(of_method[method], "dice").mean())
                for number, of_method in enumerate(numbers.values())
                if method in of_method
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=method)
        axes.set_xticks(range(len(numbers)), list(numbers))
        axes.set_title(f"{dataset.partition('_')[2]}, {minutes:g} min", fontsize="small")
        axes.set_xlabel("labelled cases")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean Dice of validation")
    figure.axes[0].legend(fontsize="small")
    figure.tight_layout()
    return figure


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder that holds the DatasetNNN_Name folders")
    parser.add_argument("--work", type=Path, help="folder for everything that is written but the results")
    parser.add_argument("--sets", nargs="+", default=["501", "122", "123"], help="numbers or names")
    parser.add_argument("--labels", nargs="+", default=["2", "5", "10", "20", ALL], help="numbers of cases, or all")
    parser.add_argument("--methods", nargs="+", default=list(METHODS[:3]), choices=METHODS)
    parser.add_argument("--minutes", nargs="+", type=float, default=[5.0], help="training time (default 5)")
    parser.add_argument("--runs", type=int, default=1, help="other cases and another seed each (default 1)")
    parser.add_argument("--from", dest="start", type=Path, help="model folder of another set, for sam3d-from")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cores", nargs="+", type=int, help="cores to train on (default: all that there are)")
    parser.add_argument(
        "--json", type=Path, default=Path("learning_curves.json"), help="the results, which are added to"
    )
    parser.add_argument("--table", action="store_true", help="print what the results are, and do no more")
    found = parser.parse_args(arguments)
    if FROM in found.methods and found.start is None and not found.table:
        parser.error(f"{FROM} needs --from MODEL_FOLDER; or leave it out with --methods")
    return found


def main() -> None:
    """Run what is missing, and print the table."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not arguments.table:
        run_all(arguments)
    print(table(read_rows(arguments.json)))


if __name__ == "__main__":
    main()
