"""splits_final.json: which cases train and which validate, in each fold.

nnU-Net makes five folds by chance, and knows no others. With fewer than five cases each fold leaves one case out, for
its validation; one case alone has no folds, and trains as "all". Patients with several cases, by the cases' names, have
all of them in one part: folds are made of patients.
"""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StrictStr

from sam3dnet.errors import DatasetError, PlanError, Sam3dError
from sam3dnet.preprocessing.folders import Folders, is_plain_name, write_json
from sam3dnet.preprocessing.json_files import read_json
from sam3dnet.preprocessing.names import not_a_file
from sam3dnet.preprocessing.patients import of_several, patients_of, perhaps_two_patients
from sam3dnet.preprocessing.problems import shorten
from sam3dnet.preprocessing.schemas import Part, checked

logger = logging.getLogger(__name__)

NUM_FOLDS = 5
NNUNET_SEED = 12345
REMEDY = "correct it, or delete the file, and new folds are made, which are all trained again"
# The remedy where nothing is trained.
OF_PLANNING = "planning writes it for two cases or more, and one case has no folds; label another one, or plan again"
FILE = "splits_final.json"
FORM = 'a list with a fold in each place: [{"train": ["case_1", "case_2"], "val": ["case_3"]}, ...]'


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("the name of a case")
    return name


CaseName = Annotated[StrictStr, AfterValidator(_plain)]


class Split(Part):
    """The cases of one fold."""

    train: tuple[CaseName, ...]
    val: tuple[CaseName, ...]

    @property
    def in_both(self) -> frozenset[str]:
        """Cases that train and validate; only a fold that was made by hand has some."""
        return frozenset(self.train) & frozenset(self.val)


class Splits(Part):
    """The whole file, which is an array of these."""

    folds: tuple[Split, ...]


def splits_file(dataset_name: str, folders: Folders) -> Path:
    """Say where the splits of a dataset are, or are going to be."""
    return folders.preprocessed / dataset_name / FILE


def read_splits(file: Path, error: type[Sam3dError], remedy: str) -> tuple[Split, ...]:
    """Read the splits, fold by fold.

    Raises:
        Sam3dError: `error`, with the remedy, if they are missing, damaged, or a case's name leads elsewhere.
    """
    if os.path.lexists(file) and (what := not_a_file(file)) is not None:
        raise error(f"{file}: is {what}; expected the file of the folds; put it back, or remove what is there")
    remedy = f"{remedy}. It holds {FORM}"
    folds = read_json(file, error, remedy, holds=list, nnunet_reads_it=True)
    if not folds:
        raise error(f"{file}: is an empty list; expected a fold at least; {remedy}")
    return checked(Splits, {"folds": folds}, file, error, remedy).folds


def are_there(file: Path) -> bool:
    """Tell whether there are splits, or something in their place, which is no reason to make others."""
    return os.path.lexists(file)


def take_given_splits(raw_folder: Path, file: Path) -> None:
    """Take the splits that somebody has put beside the raw data, as nnU-Net does; those that are there go on.

    Args:
        raw_folder: Of the dataset.
        file: The splits that count.

    Raises:
        DatasetError: If those beside the raw data are damaged.
    """
    given = raw_folder / FILE
    if not are_there(given):
        return
    splits = read_splits(given, DatasetError, "correct it, or delete it")
    if not are_there(file):
        _write(file, splits)
        return
    now = read_splits(file, DatasetError, REMEDY)
    names = {name for fold in splits for name in (*fold.train, *fold.val)}
    as_given = [({*fold.train}, {*fold.val}) for fold in splits]
    if as_given != [({*fold.train} & names, {*fold.val} & names) for fold in now[: len(splits)]]:
        logger.warning(
            "Warning: %s has other folds than %s, and the latter count; delete these to take the former, and train all "
            "of them again",
            *(given, file),
        )


def make_splits(cases: Collection[str]) -> tuple[Split, ...]:
    """Make the folds of a dataset: nnU-Net's, or each leaving one patient out where there are fewer than five.

    Returns:
        The folds; none for a single case.
    """
    patients = patients_of(cases)

    def cases_of(part: Collection[str]) -> tuple[str, ...]:
        return tuple(case for case in sorted(cases) if patients[case] in part)

    parts = _parts(sorted(set(patients.values())))
    return tuple(Split(train=cases_of(train), val=cases_of(val)) for train, val in parts)


def _parts(patients: Sequence[str]) -> list[tuple[Collection[str], Collection[str]]]:
    """Give the patients to train on and those to validate on, fold by fold."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(patients) < 2:
        return []
    if len(patients) < NUM_FOLDS:
        return [({*patients} - {left_out}, {left_out}) for left_out in patients]
    made = generate_crossval_split(list(patients), seed=NNUNET_SEED, n_splits=NUM_FOLDS)
    return [(set(fold["train"]), set(fold["val"])) for fold in made]


def update_splits(file: Path, cases: Collection[str], known: Collection[str]) -> None:
    """Make the splits of a dataset, or bring those that are there up to date with its cases, and say what changed.

    New cases join the training part of each fold, those of a patient who validates the other. A split that leaves out
    cases which were there before is left so: they may be kept for a test.

    Args:
        file: The splits; it need not be there.
        cases: All of the dataset.
        known: Those that the dataset had when it was last looked at.

    Raises:
        DatasetError: If the file is damaged.
    """
    patients = patients_of(cases)
    if not are_there(file):
        splits = make_splits(cases)
        if splits:
            _write(file, splits)
        _tell_new_folds(cases, patients, file)
        return
    splits = read_splits(file, DatasetError, REMEDY)
    listed = {name for fold in splits for name in (*fold.train, *fold.val)}
    added, removed = sorted(set(cases) - set(known) - listed), sorted(listed & set(known) - set(cases))
    _tell_left_out(sorted(set(cases) & set(known) - listed), file)
    if added:
        logger.warning(
            "Warning: %d new cases join the training part of each fold%s: %s; delete %s for new folds, which validate "
            "on them too, and train all of these again",
            *(len(added), ", but where their patient validates" * bool(of_several(patients))),
            *(shorten(added), file),
        )
    if removed:
        logger.warning("Warning: %d cases are gone, and leave their folds: %s", len(removed), shorten(removed))
    if added or removed:
        changed = [_without(fold, removed, added, patients) for fold in splits]
        _write(file, changed)
        for number, fold in enumerate(changed):
            if not (fold.train and fold.val):
                part = "validation" if fold.train else "training"
                logger.warning(
                    "Warning: fold %d has no %s case any more; delete %s for new folds, and train all of these again",
                    *(number, part, file),
                )


def _tell_new_folds(cases: Collection[str], patients: Mapping[str, str], file: Path) -> None:
    if several := of_several(patients):
        logger.info(_together(several, file))
    if two := perhaps_two_patients(cases):
        logger.warning(
            "Warning: by their names the cases may be of two patients, %s, which is too few to tell; if they are, "
            "each fold validates on patients that it trains on: write folds of patients into %s",
            *(" and ".join(f"{patient} ({shorten(names)})" for patient, names in two.items()), file),
        )
    if len(set(patients.values())) < NUM_FOLDS:
        logger.info(_few(len(set(patients.values())), "patient" if several else "case"))


def _tell_left_out(names: list[str], file: Path) -> None:
    if names:
        logger.warning(
            "Warning: %d cases are in no part of any fold, and left so, in case that is meant: %s; add them in %s, or "
            "delete it for new folds, and train all of these again",
            *(len(names), shorten(names), file),
        )


def _few(count: int, what: str) -> str:
    if count == 1:
        return 'one case: there are no folds; train on it with "all", which leaves nothing to validate on'
    return f"{count} {what}s: {count} folds, each of which leaves one {what} out for validation"


def _together(several: Mapping[str, list[str]], file: Path) -> str:
    patient, names = next(iter(several.items()))
    return (
        f"{len(several)} patients have several cases, by the cases' names ({shorten(names)} are of {patient}): folds "
        f"keep a patient's cases together; where they are not of one patient, write other folds into {file}"
    )


def _without(fold: Split, removed: Collection[str], added: Sequence[str], patients: Mapping[str, str]) -> Split:
    gone = set(removed)
    train, val = (tuple(name for name in names if name not in gone) for names in (fold.train, fold.val))
    validating = {patients[name] for name in val if name in patients}
    joining = tuple(name for name in added if patients[name] in validating)
    teaching = tuple(name for name in added if patients[name] not in validating)
    return Split(train=(*train, *teaching), val=(*val, *joining))


def _write(file: Path, splits: Sequence[Split]) -> None:
    write_json(file, [{"train": list(fold.train), "val": list(fold.val)} for fold in splits])


def fold_of(splits: Sequence[Split], fold: int, cases: Collection[str], file: Path) -> Split:
    """Give a fold that can be trained.

    Args:
        splits: All folds.
        fold: The number.
        cases: That are preprocessed.
        file: That the splits are from, for messages.

    Raises:
        PlanError: If there is no such fold.
        DatasetError: If a part of it is empty, or names a case twice or one that is not there.
    """
    require_fold(splits, fold)
    chosen = splits[fold]
    for part in ("train", "val"):
        _check_part(getattr(chosen, part), f"{file}: folds[{fold}].{part}", cases)
    unused = sorted(set(cases) - {*chosen.train, *chosen.val})
    if unused:
        logger.warning(
            "Warning: %d cases are in neither part of fold %d, and not used: %s", len(unused), fold, shorten(unused)
        )
    patients = patients_of(cases)
    if chosen.in_both:
        logger.warning(
            "Warning: fold %d trains on %d of its %d validation cases, so that its validation will be better than new "
            "cases are: %s; take them out of one part in %s",
            *(fold, len(chosen.in_both), len(chosen.val), shorten(sorted(chosen.in_both)), file),
        )
    training, validating = (
        {patients[name] for name in {*part} - chosen.in_both} for part in (chosen.train, chosen.val)
    )
    both = sorted(training & validating)
    if both:
        logger.warning(
            "Warning: fold %d trains on some cases of %d patients, by the cases' names, and validates on others, so "
            "that its validation will be better than new patients are: %s; delete %s for folds of patients, and train "
            "all of these again",
            *(fold, len(both), shorten(both), file),
        )
    return chosen


def require_fold(splits: Sequence[Split], fold: int) -> None:
    """Do nothing if there is a fold of this number.

    Raises:
        PlanError: Else.
    """
    if not splits:
        raise PlanError(f'fold {fold}: the dataset has one case, and so no folds; train on it with "all"')
    if not 0 <= fold < len(splits):
        raise PlanError(
            f'fold {fold}: the dataset has the folds 0 to {len(splits) - 1}; choose one, or "all" to train on all cases'
        )


def _check_part(names: Sequence[str], place: str, cases: Collection[str]) -> None:
    if not names:
        raise DatasetError(f"{place} is empty; expected the names of cases; {REMEDY}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DatasetError(f"{place} names {shorten(twice)} twice; {REMEDY}")
    known = set(cases)
    unknown = [name for name in names if name not in known]
    if unknown:
        close = get_close_matches(unknown[0], list(cases), n=1)
        meant = f" (is {close[0]} meant?)" if close else ""
        raise DatasetError(
            f"{place} names {shorten(unknown)}, which the dataset does not have{meant}; expected names without channel "
            f"and ending; {REMEDY}"
        )
