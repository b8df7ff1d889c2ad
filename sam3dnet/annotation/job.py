"""What runs beside the annotation, in a process of its own: a training, or the order of what is left to annotate.

python -m sam3dnet.annotation.job JOB.json
"""

import logging
import os
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sam3dnet.annotation.background import give_way
from sam3dnet.annotation.judging import agreement, mean_of
from sam3dnet.errors import DatasetError, Sam3dError
from sam3dnet.preprocessing.cases import TrainingCase, channel_names, list_training_cases, read_dataset_json
from sam3dnet.preprocessing.checks_description import DATASET_JSON
from sam3dnet.preprocessing.folders import VARIABLES, Folders, activate_folders, write_json
from sam3dnet.preprocessing.json_files import read_json, read_json_if_whole
from sam3dnet.preprocessing.problems import DATASET
from sam3dnet.preprocessing.reading import reader_of_cases
from sam3dnet.preprocessing.schemas import Part, checked
from sam3dnet.preprocessing.verify import verify_dataset
from sam3dnet.preprocessing.workers import default_num_processes

RESULT, LEFT_OUT = "result.json", "left_out.json"
ITERATIONS_PER_EPOCH = 50  # a checkpoint after each: trainings are short, and may be cut off
REMEDY = "begin the training again"

logger = logging.getLogger(__name__)


class Job(Part):
    """What to do.

    Attributes:
        kind: A training, or the expected Dice of images, by which they are put in order.
        dataset: Its name.
        folders: nnU-Net's three, of this job: the raw data are the dataset's own.
        model: Folder of the model to start from, or of that which says the expected Dice.
        work: Folder for the result, and all that is made on the way.
        device: See the commands; None for the best.
        minutes: To train.
        cases: That train.
        held_back: That judge.
        pseudo_labelled: Folder of further ones, as a raw dataset; empty for none.
        images: Folder of images to put in order.
        pending: Their names.
        weights: By what the model is known again.
        seen: By what each of the images is.
    """

    kind: Literal["train", "rank"]
    dataset: str
    folders: tuple[str, str, str]
    model: str | None
    work: str
    device: str | None = None
    minutes: float = 0.0
    cases: tuple[str, ...] = ()
    held_back: tuple[str, ...] = ()
    pseudo_labelled: str = ""
    images: str = ""
    pending: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    seen: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Result(Part):
    """What came of a training.

    Attributes:
        folder: Of the model.
        before, after: Mean agreement with the held-back cases, see `judging.agreement`.
        problem: Why there is none.
        left_out: Cases that could not be trained on, and why.
    """

    folder: str | None = None
    before: float | None = None
    after: float | None = None
    problem: str | None = None
    left_out: dict[str, str] = Field(default_factory=dict)


def read_result(work: Path) -> Result | None:
    """Read what came of a training; None while there is nothing."""
    if not (work / RESULT).exists():
        return None
    return checked(Result, read_json(work / RESULT, DatasetError, REMEDY), work / RESULT, DatasetError, REMEDY)


def train(job: Job) -> Result:
    """Plan like the model to start from, preprocess what is new, train, and judge both models by the held-back cases.

    A training that was cut off goes on from its newest checkpoint.
    """
    from sam3dnet import plan_and_preprocess
    from sam3dnet.preprocessing.splits import splits_file
    from sam3dnet.settings.training import TrainingSettings
    from sam3dnet.training.run import train_fold

    folders = activate_folders(None)
    method: Any = _method_of(job.model)
    plan = partial(plan_and_preprocess, datasets=[job.dataset], like=job.model, device=job.device, method=method)
    (plans_file,), left_out = _of_sound_cases(plan, folders.raw / job.dataset, Path(job.work) / LEFT_OUT)
    cases, held_back = ([name for name in names if name not in left_out] for names in (job.cases, job.held_back))
    if not cases:
        raise DatasetError(f"no case is left to train on: {'; '.join(left_out.values())}")
    write_json(splits_file(job.dataset, folders), [{"train": cases, "val": held_back}])
    fold = "0" if held_back else "all"
    begun = any(folders.results.glob(f"{job.dataset}/*/fold_{fold}/checkpoint_*.pth"))
    settings = TrainingSettings(
        dataset=job.dataset,
        fold=fold,
        plans=plans_file.stem,  # a model that was tuned has plans of another name
        minutes=job.minutes,
        iterations_per_epoch=ITERATIONS_PER_EPOCH,
        device=job.device,
        from_model=None if begun else job.model,
        continue_training=begun,
    )
    further = () if begun else _pseudo_labelled(job)  # one that goes on has its own
    trained = train_fold(settings, folders, validate=bool(held_back), pseudo_labelled=further)
    if not held_back:
        return Result(folder=str(trained.parent), left_out=left_out)
    before, after = _judged(job, held_back, folders, trained)
    return Result(folder=str(trained.parent), before=before, after=after, left_out=left_out)


def _of_sound_cases(plan: Callable[[], list[Path]], raw: Path, known: Path) -> tuple[list[Path], dict[str, str]]:
    """Plan and preprocess a raw dataset without the cases that cannot be trained on: one must not stop all.

    Args:
        plan: Does it.
        raw: The dataset, of which they are removed.
        known: File that says which were left out, since a training that was cut off goes on without them.

    Returns:
        What was planned; the cases that are left out, and why.

    Raises:
        DatasetError: If something else is wrong, or no case is sound.
    """
    left_out = {name: str(why) for name, why in (read_json_if_whole(known) or {}).items()}
    while True:
        try:
            return plan(), left_out
        except DatasetError:
            faulty = _faulty_cases(raw)
            if not faulty:
                raise
            left_out |= faulty
            write_json(known, left_out)
            for name, why in faulty.items():
                _remove_case(raw, name)
                logger.warning("Warning: left out: %s: %s", name, why)
            if not list_training_cases(raw, read_dataset_json(raw)):
                raise


def _faulty_cases(raw: Path) -> dict[str, str]:
    """Say of each case of a dataset that has errors what the first is."""
    found: dict[str, str] = {}
    for problem in verify_dataset(raw, default_num_processes(), progress=False):
        if problem.severity == "error" and problem.case != DATASET:
            found.setdefault(problem.case, problem.check)
    return found


def _remove_case(raw: Path, name: str) -> None:
    """Remove a case of a snapshot, whose files are named by it."""
    dataset_json = read_dataset_json(raw)
    ending = str(dataset_json["file_ending"])
    channels = [f"imagesTr/{name}_{channel:04d}" for channel in range(len(channel_names(dataset_json)))]
    for stem in (*channels, f"imagesTr/{name}", f"labelsTr/{name}"):
        for file in (raw / f"{stem}{ending}", raw / f"{stem}.json"):
            file.unlink(missing_ok=True)
    left = len(list_training_cases(raw, dataset_json))
    write_json(raw / DATASET_JSON, dataset_json | {"numTraining": left})


def _method_of(model: str | None) -> str:
    """Name the method of a model; ours where there is none, and of a network that is no method's."""
    from sam3dnet.inference.model_folders import read_model_dataset, read_model_plans
    from sam3dnet.planning.likeness import likeness_of
    from sam3dnet.planning.methods import DEFAULT_METHOD
    from sam3dnet.portable.sources import model_folder

    if model is None:
        return DEFAULT_METHOD
    with model_folder(model) as folder:
        return likeness_of(read_model_plans(folder), read_model_dataset(folder)).method or DEFAULT_METHOD


def _pseudo_labelled(job: Job) -> list[TrainingCase]:
    """List the images without labels that are trained on too, of those in which the model has found something."""
    from sam3dnet.training.pseudo_labels import with_something

    if not job.pseudo_labelled:
        return []
    folder = Path(job.pseudo_labelled)
    dataset_json = read_dataset_json(folder)
    cases = list_training_cases(folder, dataset_json)
    return with_something(cases, reader_of_cases(dataset_json, cases)) if cases else []


def _judged(job: Job, held_back: Collection[str], folders: Folders, trained: Path) -> tuple[float | None, float | None]:
    """Give the agreement of the model before and of this one with held-back cases, both with their post-processing."""
    from sam3dnet.inference.postprocessing import read_postprocessing
    from sam3dnet.model import load_model

    dataset_json = read_dataset_json(folders.raw / job.dataset)
    cases = list_training_cases(folders.raw / job.dataset, dataset_json)
    reader = reader_of_cases(dataset_json, cases)
    model = None if job.model is None else load_model(job.model, device=job.device)
    postprocessing = read_postprocessing(trained.parent, dataset_json, [trained])  # the validation's maps are without
    before, after = [], []
    for case in cases:
        if case.name not in held_back:
            continue
        labels_1ZYX, properties = reader.read_seg(case.label)
        measure = partial(
            agreement, accepted_ZYX=labels_1ZYX[0], dataset_json=dataset_json, spacing_mm=properties["spacing"]
        )
        predicted = reader.read_seg(trained / "validation" / f"{case.name}{dataset_json['file_ending']}")[0][0]
        after.append(measure(postprocessing.applied_to(predicted, properties["spacing"])))
        if model is not None:
            before.append(measure(model.segment(case.images)))
    return mean_of(before), mean_of(after)


def rank(job: Job) -> None:
    """Segment the images, with what Dice is to be expected of each beside its label map."""
    from sam3dnet.inference.predictor import predict_folder
    from sam3dnet.portable.sources import model_folder
    from sam3dnet.settings.prediction import PredictionSettings

    with model_folder(job.model) as folder:
        settings = PredictionSettings(
            input_folder=job.images, output_folder=job.work, model_folder=folder, device=job.device, confidence=True
        )
        predict_folder(settings, only=job.pending)


def main() -> int:
    """Do what the file that is named says."""
    give_way()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    file = Path(sys.argv[1])
    job = checked(Job, read_json(file, DatasetError, REMEDY), file, DatasetError, REMEDY)
    os.environ.update(zip(VARIABLES, job.folders, strict=True))
    try:
        if job.kind == "rank":
            rank(job)
        else:
            write_json(Path(job.work) / RESULT, train(job).model_dump())
    except Sam3dError as problem:
        logger.error("%s", problem)
        if job.kind == "train":
            write_json(Path(job.work) / RESULT, Result(problem=str(problem)).model_dump())
        return problem.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
