"""What clicks it costs to label a dataset, and how the loop of accepting and learning lessens them.

    python benchmarks/annotation_study.py --raw nnUNet_raw/Dataset501_X --work DIR --base MODEL --ways once loop

A simulated annotator has some labelled cases and many images. Of each image the model segments it; then the annotator
clicks at the largest error of each class until its Dice is --target, 20 times a class at most, and accepts what there
is: no more accurate than that. The ways:

    other    the model --other, which knows nothing of this set: classes are taken in their order
    once     the model --base, trained on the labelled cases, and never again
    loop     it learns from what was accepted after every --every cases, for --minutes each time, starting from itself,
             and from the images that wait, by what it finds in them, once before anything is accepted
    labelled  as loop, but without the images that wait
    unsure   as loop, and always the image next of which the model is the least sure
    sure     as loop, and always the image next of which the model is the most sure
    careful  as loop, and what needed a click is finished by other means: its true label map is accepted
    true     as loop, and of every case the true label map is accepted: what can be learned at best

What is segmented without clicks is measured on --tests further cases after each training. Each way has a project of its
own in the work folder, and is kept there once it is finished; ways may run beside each other, a core each:
`taskset -c 0 python benchmarks/annotation_study.py ... --ways once loop`. A run takes all into OUT that is finished,
and refuses what was made with other settings than its own.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import as_markdown, begin, finish, make_parser

from sam3dnet.annotation.history import TrainingBegun, TrainingEnded
from sam3dnet.annotation.judging import dice_by_class, mean_of
from sam3dnet.annotation.project import BY_CONFIDENCE, AnnotationProject
from sam3dnet.errors import Sam3dError
from sam3dnet.evaluation.metrics import dice_coefficient
from sam3dnet.inference.images import Case
from sam3dnet.inference.model_folders import read_model_dataset
from sam3dnet.interactive.session import PromptSession
from sam3dnet.model import Model, load_model
from sam3dnet.planning.objects import mask_of
from sam3dnet.portable.content import digest_of
from sam3dnet.portable.sources import model_folder
from sam3dnet.preprocessing.cases import TrainingCase, foreground_classes, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.folders import write_json
from sam3dnet.preprocessing.reading import DatasetReader, reader_of_cases
from sam3dnet.prompts.sampling import corrective_click

MOST_CLICKS = 20
CAREFUL, TRUE, LABELLED = "careful", "true", "labelled"
LEARNING = ("loop", LABELLED, *BY_CONFIDENCE, CAREFUL, TRUE)
WAYS = ("other", "once", *LEARNING)
MODEL_OF = {way: "other" if way == "other" else "base" for way in WAYS}  # the option that names it
WAITING = "images that wait are learned from"
SEED = 20261127
Row = dict[str, Any]
Labels = npt.NDArray[Any]


class Study:
    """The cases of a study, and its annotator."""

    def __init__(self, a: argparse.Namespace):
        self.options, self.raw = a, Path(a.raw)
        self.description = read_dataset_json(self.raw)
        cases = list_training_cases(self.raw, self.description)
        self.reader: DatasetReader = reader_of_cases(self.description, cases)
        self.classes = foreground_classes(self.description)
        known = json.loads(Path(a.labelled).read_text())[0]["train"] if a.labelled else []
        rest = [case for case in cases if case.name not in known]
        random.Random(SEED).shuffle(rest)
        self.labelled = [case for case in cases if case.name in known] or rest[: a.known]
        rest = [case for case in rest if case not in self.labelled]
        self.pool, self.tests = rest[: a.cases], rest[a.cases : a.cases + a.tests]

    def file_of(self, way: str) -> Path:
        """Say where a finished way is kept."""
        return Path(self.options.work) / f"{way}.json"

    def settings_of(self, way: str) -> Row:
        """Give what a way depends on."""
        a, model = self.options, getattr(self.options, MODEL_OF[way])
        found = {
            "raw": self.raw.resolve().name,
            "labelled": sorted(case.name for case in self.labelled),
            "cases": a.cases,
            "tests": a.tests,
            "target": a.target,
            "device": a.device,
            MODEL_OF[way]: None if model is None else name_of_model(model),
        }
        learning = {"every": a.every, "minutes": a.minutes, WAITING: way != LABELLED}
        return found | (learning if way in LEARNING else {})

    def require_models(self) -> None:
        """See before any work that ways which are not finished have a model, and it a class for each of the set's."""
        for way in self.options.ways:
            option = MODEL_OF[way]
            model = getattr(self.options, option)
            if self.file_of(way).exists() or (model is None and way in LEARNING):
                continue
            if model is None:
                raise SystemExit(f"--ways {way} needs --{option} MODEL; give it, or other --ways")
            try:
                with model_folder(model) as folder:
                    theirs = list(foreground_classes(read_model_dataset(folder)))
            except Sam3dError as error:
                raise SystemExit(f"--{option}: {error}") from None
            if len(theirs) < len(self.classes):
                raise SystemExit(
                    f"--{option} {model} has the classes {', '.join(theirs)}, {self.raw.name} has "
                    f"{', '.join(self.classes)}; name a model with no fewer, or leave {way} out of --ways"
                )

    def finished(self) -> list[Row]:
        """Read the ways that are finished, by this run and by others.

        Raises:
            SystemExit: If one was made with other settings.
        """
        rows = []
        for way in WAYS:
            if self.file_of(way).exists():
                rows.append(json.loads(self.file_of(way).read_text()))
                if way in LEARNING and "settings" in rows[-1]:
                    rows[-1]["settings"].setdefault(WAITING, False)  # before there was more than the labelled cases
                require_alike(self.file_of(way), rows[-1], self.settings_of(way), way in self.options.ways)
        return rows

    def truth(self, case: TrainingCase) -> Labels:
        """Read a true label map."""
        return self.reader.read_seg(case.label)[0][0]

    def annotate(self, session: PromptSession, case: TrainingCase, names: Mapping[str, str]) -> Row:
        """Click until all is as wanted; tell how often, and what Dice there was before and is after."""
        truth, spacing_mm = self.truth(case), session.properties["spacing"]
        masks = {name: mask_of(truth, values) for name, values in self.classes.items()}
        masks = {name: mask for name, mask in masks.items() if mask.any()}

        def dice(name: str) -> float:
            return dice_coefficient(session.mask(names[name]), masks[name])

        before = {name: dice(name) for name in masks}
        clicks = dict.fromkeys(masks, 0)
        begun = time.perf_counter()
        while True:  # a click for one class may make another one worse
            short = [name for name in masks if dice(name) < self.options.target and clicks[name] < MOST_CLICKS]
            if not short:
                break
            for name in short:
                while clicks[name] < MOST_CLICKS and dice(name) < self.options.target:
                    point = corrective_click(session.mask(names[name]), masks[name], spacing_mm)
                    assert point is not None
                    z, y, x = point.at
                    session.click((x, y, z), point.positive, names[name])
                    clicks[name] += 1
        return {
            "case": case.name,
            "before": before,
            "clicks": clicks,
            "after": {name: dice(name) for name in masks},
            "seconds_of_clicks": time.perf_counter() - begun,
        }

    def automatic(self, model: Model) -> float | None:
        """Measure the mean Dice of the test cases without clicks."""
        found = []
        for case in self.tests:
            labels = model.segment(list(case.images))
            found.append(mean_of(dice_by_class(labels, self.truth(case), self.description).values()))
        return mean_of(found)

    def without_learning(self, way: str) -> Row:
        """Annotate with a model that stays as it is."""
        model = load_model(getattr(self.options, MODEL_OF[way]), device=self.options.device)
        names = dict(zip(self.classes, model.class_names, strict=False))
        session, rows = PromptSession(model), []
        for number, case in enumerate(self.pool, 1):
            session.set_image(list(case.images))
            rows.append(self.annotate(session, case, names))
            told(way, number, rows)
        is_of_these = list(names.values()) == list(self.classes)
        rounds = [{"after": 0, "dice": self.automatic(model) if is_of_these else None}]
        return {"way": way, "cases": rows, "rounds": rounds, "minutes_of_training": 0.0}

    def with_learning(self, way: str) -> Row:
        """Annotate with a model that learns from what is accepted."""
        a = self.options
        root = Path(a.work) / way
        shutil.rmtree(root, ignore_errors=True)
        raw = root / "nnUNet_raw" / self.raw.name
        for case in self.labelled:
            self._copy(case.images, raw / "imagesTr")
            self._copy((case.label,), raw / "labelsTr")
        for case in self.pool:
            self._copy(case.images, root / "images")
        write_json(raw / "dataset.json", self.description | {"numTraining": len(self.labelled)})
        truths = {case.name: case for case in self.pool}
        names = {name: name for name in self.classes}
        rows: list[Row] = []
        order = [case.name for case in self.pool]
        with AnnotationProject(self.raw.name, root / "images", model=a.base, device=a.device, root=root) as project:
            rounds: list[Row] = [{"after": 0, "dice": self.automatic(project.model)}]
            spent = {"training": 0.0, "ranking": 0.0}

            def rank() -> None:
                if way != LABELLED:
                    spent["ranking"] += timed(project.rank)

            def learn() -> None:
                spent["training"] += timed(lambda: project.train(a.minutes))
                rounds.append({"after": len(rows), **self._outcome(project)})
                print(way, rounds[-1], flush=True)
                rank()

            rank()
            if way != LABELLED:
                learn()
            while len(rows) < len(order):
                name = project.waiting(way)[0] if way in BY_CONFIDENCE else order[len(rows)]
                session = project.session(name)
                rows.append(self.annotate(session, truths[name], names))
                project.accept(name, self.truth(truths[name]) if is_true(way, rows[-1]) else session)
                told(way, len(rows), rows)
                if len(rows) % a.every == 0 and len(rows) < len(order):
                    learn()
        minutes = {f"minutes_of_{what}": seconds / 60 for what, seconds in spent.items()}
        return {"way": way, "cases": rows, "rounds": rounds, **minutes}

    def _outcome(self, project: AnnotationProject) -> Row:
        """Say what came of the last training."""
        events = project.history.events
        begun = next(one for one in reversed(events) if isinstance(one, TrainingBegun))
        ended = next(one for one in reversed(events) if isinstance(one, TrainingEnded))
        return {
            "used": ended.used,
            "pseudo_labelled": len(begun.pseudo_labelled),
            "held_back_before": ended.before,
            "held_back_after": ended.after,
            "dice": self.automatic(project.model),
        }

    def _copy(self, files: Sequence[Path], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.reader.files_of(Case("", tuple(files)).files):
            shutil.copy(file, folder)


@cache
def name_of_model(model: Path) -> str:
    """Name a model by its dataset and folder, and by its weights, since trainings by one plan are called the same."""
    files = [model] if model.is_file() else sorted(model.glob("fold_*/checkpoint_*.pth"))
    digest = hashlib.sha256("".join(map(digest_of, files)).encode()).hexdigest()
    return f"{'/'.join(model.resolve().parts[-2:])} ({digest[:12]})"


def require_alike(file: Path, row: Row, settings: Row, asked: bool) -> None:
    """See that a finished way was made with the settings of this run.

    Args:
        file: That it is kept in; an earlier one says nothing but its target, and is taken with a warning.
        row: Its content.
        settings: Of this run.
        asked: Whether this run was asked for the way; if not, a model that it does not name may be any.
    """
    if "settings" not in row:
        print(f"Warning: {file} does not say how it was made; taken to be as asked for now", file=sys.stderr)
    for name, before in row.get("settings", {"target": row["target"]}).items():
        now = settings.get(name)
        if now != before and (asked or now is not None):
            raise SystemExit(
                f"{file} was made with {name} {before!r}, not {now!r}; give what it was made with, take another "
                "--work, or delete the file"
            )


def timed(work: Any) -> float:
    """Do something, and give the seconds that it took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def clicks_of(rows: Sequence[Row]) -> int:
    """Count all clicks."""
    return sum(sum(row["clicks"].values()) for row in rows)


def is_true(way: str, row: Row) -> bool:
    """Tell whether the true label map of a case is accepted, in place of what the clicks have led to."""
    return way == TRUE or (way == CAREFUL and clicks_of([row]) > 0)


def told(way: str, number: int, rows: Sequence[Row]) -> None:
    """Tell how far a way is."""
    print(f"{way}: {number} cases, {clicks_of(rows)} clicks", flush=True)


def table(rows: Sequence[Row]) -> str:
    """Format a line for each way."""
    header = ["way", "cases", "clicks", "of the second half", "cases without a click", "given up", "Dice accepted"]
    lines = [[*header, "Dice without clicks, first and last", "minutes of training", "of ranking"]]
    for row in rows:
        cases, half = row["cases"], row["cases"][len(row["cases"]) // 2 :]
        none = sum(not sum(case["clicks"].values()) for case in cases)
        given_up = sum(any(dice < row["target"] for dice in case["after"].values()) for case in cases)
        accepted = mean_of(mean_of(case["after"].values()) for case in cases)  # some may have no class at all
        dice = [one["dice"] for one in (row["rounds"][0], row["rounds"][-1])]
        shown = "-" if dice[0] is None else f"{dice[0]:.3f}, {dice[1]:.3f}"
        agreed = "-" if accepted is None else f"{accepted:.3f}"
        minutes = [f"{row.get(key, 0.0):.0f}" for key in ("minutes_of_training", "minutes_of_ranking")]
        counts = [str(len(cases)), str(clicks_of(cases)), str(clicks_of(half)), str(none), str(given_up)]
        lines.append([row["way"], *counts, agreed, shown, *minutes])
    return as_markdown(lines)


def draw(rows: Sequence[Row]) -> Any:
    """Draw how clicks add up over the cases, and the Dice without clicks after each training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        sums = np.cumsum([sum(case["clicks"].values()) for case in row["cases"]])
        left.plot(range(1, len(sums) + 1), sums, label=row["way"])
        there = [(one["after"], one["dice"]) for one in row["rounds"] if one["dice"] is not None]
        if there:
            right.plot(*zip(*there, strict=True), marker="o", label=row["way"])
    left.set(xlabel="cases", ylabel="clicks, all together")
    right.set(xlabel="cases accepted", ylabel="Dice without clicks, test cases")
    left.legend()
    return figure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, repetitions=None)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the dataset, with labels")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="model folder, trained on the labelled cases")
    parser.add_argument("--other", type=Path, help="model folder, trained on another set")
    parser.add_argument("--labelled", type=Path, help="splits_final.json whose first fold trains on the labelled cases")
    parser.add_argument("--known", type=int, default=5, help="labelled cases, without --labelled")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--target", type=float, default=0.85)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    return parser.parse_args(arguments)


def main() -> None:
    """Study what is not there yet, and write all that is."""
    a = parse()
    begin(a)
    study = Study(a)
    study.require_models()
    study.finished()
    a.work.mkdir(parents=True, exist_ok=True)
    for way in a.ways:
        if not study.file_of(way).exists():
            settings = study.settings_of(way)
            row = study.with_learning(way) if way in LEARNING else study.without_learning(way)
            write_json(study.file_of(way), row | {"target": a.target, "settings": settings})
    rows = study.finished()
    print(table(rows))
    finish(a, "annotation_study", rows)


if __name__ == "__main__":
    main()
