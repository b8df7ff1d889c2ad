"""Which cases judge models in place of training them, and which images wait for that.

A patient's images are all one or the other: what has learned from one of them knows the others too.
"""

import zlib
from collections.abc import Collection

from sam3dnet.annotation.history import Accepted, State
from sam3dnet.preprocessing.patients import others_of_patients, patients_of

HELD_BACK_EVERY = 5  # one of so many cases that were corrected by hand judges models
MOST_HELD_BACK = 10


def is_judge(case: str, corrected: bool, state: State, images: Collection[str], labelled: Collection[str]) -> bool:
    """Tell whether a case that is accepted is to judge models: some of those that no model has learned from, nor made.

    Args:
        case: Its name.
        corrected: Whether anything was changed by hand.
        state: Before it is accepted.
        images: Names of all images.
        labelled: Names of all cases of the dataset with a label map.
    """
    if case in state.labels:
        return case in state.held_back
    patients = patients_of(images)
    of_patient = {name for name, patient in patients.items() if patient == patients[case] and name != case}
    if of_patient & {*state.held_back}:
        return True
    if of_patient & {*labelled, *state.learned_from}:
        return False
    if not corrected or case in state.learned_from or len(state.held_back) >= MOST_HELD_BACK:
        return False
    by_hand = [name for name, one in state.labels.items() if isinstance(one, Accepted) and one.corrected]
    judging = {patients.get(name, name) for name in state.held_back}
    are_few = len(judging) * HELD_BACK_EVERY < len(by_hand)  # so that the first training has one already
    return are_few and by_hand[-1] not in state.held_back


def may_teach(waiting: Collection[str], state: State, images: Collection[str], labelled: Collection[str]) -> set[str]:
    """Name the images that wait, but for those of patients that judge models, or that are kept to judge them.

    Args:
        waiting: Names of images without a label map.
        state: As it is now.
        images: Names of all images.
        labelled: Names of all cases of the dataset with a label map.
    """
    judging, patients = others_of_patients(state.held_back, labelled, waiting), patients_of(images)
    kept = kept_to_judge({patients[name] for name in waiting}, bool(state.held_back))
    return {name for name in waiting if name not in judging and patients[name] not in kept}


def kept_to_judge(patients: Collection[str], has_judges: bool) -> set[str]:
    """Choose patients whose images no training learns from before they have labels: a fifth, always the same.

    Args:
        patients: Of the images that wait.
        has_judges: Whether cases judge already; if not there is one at least.
    """
    numbers = {patient: zlib.crc32(patient.encode()) for patient in patients}
    kept = {patient for patient, number in numbers.items() if number % HELD_BACK_EVERY == 0}
    if kept or has_judges or not numbers:
        return kept
    return {min(numbers, key=lambda patient: (numbers[patient], patient))}
