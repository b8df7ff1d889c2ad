"""Which cases are of one patient, by their names.

nnU-Net's folds are of cases. Where a patient has several (two time points, both phases of a heart), one of them trains
and the other validates, and the validation is better than any new patient will be. Names tell: all scans of a patient
begin alike, with a number ("acdc001_a" and "acdc001_b", "sub-01_ses-1_run-2", "BraTS-GLI-00005-001").
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import accumulate, count, takewhile

_PART = re.compile(r"[^_\-. ]+?(?=(?<=\d)[A-Za-z]$|[_\-. ]|$)[_\-. ]*")  # "12a" is of two
_TEXT = re.compile(r"\D*")
FEWEST_PATIENTS = 3
MOST_CASES_EACH = 4.0  # on average; what has more to a beginning is a hospital or a set


def patients_of(cases: Collection[str]) -> dict[str, str]:
    """Say of which patient each case is.

    The shortest beginnings are patients that hold a number wherever cases share one, and are many for the cases: three
    at least, with four cases each at most on average. Where there are none, those are looked at apart whose names are
    alike up to the first digit, as where cases of two origins came together; of what is left each case is a patient.

    Args:
        cases: Names, without channel and ending.

    Returns:
        By case, what the names of a patient's cases begin with; a case's own name where it is the only one.
    """
    found = _by_beginnings(cases)
    if len({*found.values()}) < len(found):
        return found
    alike: dict[str, list[str]] = {}
    for case in cases:
        alike.setdefault(_TEXT.match(case)[0], []).append(case)  # type: ignore[index]
    return {case: patient for names in alike.values() for case, patient in _by_beginnings(names).items()}


def perhaps_two_patients(cases: Collection[str]) -> dict[str, list[str]]:
    """Give the cases of two beginnings, where all names have one of these: patients, or two hospitals.

    Returns:
        By beginning; empty where patients are known by `patients_of`, or the names begin otherwise.
    """
    if len({*patients_of(cases).values()}) < len(cases):
        return {}
    found = of_several(_by_beginnings(cases, fewest=2))
    return found if sum(map(len, found.values())) == len(cases) else {}


def others_of_patients(cases: Collection[str], known: Collection[str], further: Collection[str]) -> set[str]:
    """Name the further cases that are of the same patients as some known ones.

    Args:
        cases: These known ones.
        known: All of a dataset, which alone say how its folds were made.
        further: Others. Where they say of more cases that they are of one patient, that counts too.
    """
    own, together = patients_of(known), patients_of({*known, *further})
    beginnings = {own[case] for case in cases if case in own}
    alike = {together[case] for case in cases if case in together}
    return {case for case in further if together[case] in alike or not beginnings.isdisjoint(_whole_beginnings(case))}


def _whole_beginnings(case: str) -> list[str]:
    """List what a name begins with and then goes on after with a part of its own, and the name itself."""
    found = [case[:end] for end in range(1, len(case)) if case[end] in "_-. "]
    has_letter = len(case) > 1 and case[-2].isdigit() and case[-1].isalpha()
    return [*found, *([case[:-1]] if has_letter else []), case]


def _by_beginnings(cases: Collection[str], fewest: int = FEWEST_PATIENTS) -> dict[str, str]:
    parts = {case: [one.rstrip("_-. ") for one in accumulate(_PART.findall(case))] for case in cases}
    longest = max(map(len, parts.values()), default=0)
    for length in takewhile(lambda number: number < longest, count(1)):
        beginnings = {case: found[min(length, len(found)) - 1] if found else case for case, found in parts.items()}
        sizes = Counter(beginnings.values())
        shared = [beginning for beginning, number in sizes.items() if number > 1]
        many = len(sizes) >= fewest and len(parts) <= MOST_CASES_EACH * len(sizes)
        if shared and many and all(re.search(r"\d", beginning) for beginning in shared):
            return {case: case if sizes[one] == 1 else one for case, one in beginnings.items()}
    return {case: case for case in cases}


def of_several(patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Give the patients with several cases, and these."""
    cases: dict[str, list[str]] = {}
    for case in sorted(patients):
        cases.setdefault(patients[case], []).append(case)
    return {patient: names for patient, names in cases.items() if len(names) > 1}
