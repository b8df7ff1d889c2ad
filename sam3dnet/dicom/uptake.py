"""Standardised uptake values (SUV, by body weight) of PET series: right, or refused with what the header lacks.

DICOM PS3.3 C.8.9 says what the elements mean; the formula is that of QIBA's FDG-PET profile: activity a ml times body
weight by the injected dose, decayed to the time that the images are corrected to.
"""

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sam3dnet.dicom.stacks import Stack
from sam3dnet.errors import DatasetError

if TYPE_CHECKING:
    from pydicom import Dataset

GRAMS = 1000.0  # a kg; a ml of tissue is taken for a gram
LEAST_DOSE_BQ, LARGEST_DOSE_BQ = 1e6, 1e11  # some write MBq
LONGEST = timedelta(hours=24)  # from the injection to the images
BETWEEN_ZONES = timedelta(minutes=15)  # at least, and by multiples of it
OFFSET = re.compile(r"([+-])(\d{2})(\d{2})$")
PHILIPS_COUNTS_TO_SUV = (0x7053, 0x1000)
REMEDY = "export it in units of SUV (GML), or let the channel's rule not ask for SUV"


def suv_factor(stack: Stack) -> float:
    """Give what the values of a PET series, as rescaled, are multiplied by to be SUV.

    Raises:
        DatasetError: If it is no PET, or the header does not say all that is needed.
    """
    units, header = str(stack.instance.of("Units", "")), stack.instance.header
    if stack.modality != "PT":
        raise _refused(stack, f"SUV is asked for, and it is {stack.modality or 'of no modality'}")
    if units == "GML":
        if (kind := str(stack.instance.of("SUVType", "BW"))) != "BW":
            raise _refused(stack, f"its SUV is not by body weight but {kind}")
        return 1.0
    if units == "CNTS":
        return _of_philips(stack, header)
    if units != "BQML":
        raise _refused(stack, f"its unit is {units or 'not said'}, expected BQML, CNTS or GML")
    weight = _positive(stack, header, "PatientWeight")
    return weight * GRAMS / _dose_at_reference(stack, header)


def _of_philips(stack: Stack, header: "Dataset") -> float:
    element = header.get(PHILIPS_COUNTS_TO_SUV)
    try:
        factor = float(element.value) if element is not None else 0.0
    except (TypeError, ValueError):
        factor = 0.0
    if factor <= 0:
        raise _refused(stack, "its unit is counts, and the factor to SUV (7053,1000) is missing")
    return factor


def _dose_at_reference(stack: Stack, header: "Dataset") -> float:
    """Give the dose in Bq, decayed to the time that the values are corrected to."""
    injections = header.get("RadiopharmaceuticalInformationSequence") or []
    if len(injections) != 1:
        raise _refused(stack, f"it names {len(injections)} injections, expected one")
    (injected,) = injections
    dose = _positive(stack, injected, "RadionuclideTotalDose")
    if not LEAST_DOSE_BQ <= dose <= LARGEST_DOSE_BQ:
        raise _refused(stack, f"a dose of {dose:.6g} Bq is not one of a patient (RadionuclideTotalDose)")
    correction = str(stack.instance.of("DecayCorrection", ""))
    if correction == "ADMIN":
        return dose
    if correction != "START":
        raise _refused(stack, f"its decay correction is {correction or 'not said'}, expected START or ADMIN")
    half_life = _positive(stack, injected, "RadionuclideHalfLife")
    passed = _since_injection(stack, header, injected)
    return float(dose * 2 ** (-passed.total_seconds() / half_life))


def _since_injection(stack: Stack, header: "Dataset", injected: "Dataset") -> timedelta:
    acquired = [found for instance in stack.files if (found := _moment(instance.header, "Acquisition")) is not None]
    series = _moment(header, "Series")
    starts = [*acquired, *([series] if series is not None and (not acquired or series <= min(acquired)) else [])]
    if not starts:
        raise _refused(stack, "when it was acquired is not said")
    start = min(starts)  # the series' own time, unless it was made later from what had been acquired
    time = str(injected.get("RadiopharmaceuticalStartTime", "") or "")
    moment = _of_zone(str(injected.get("RadiopharmaceuticalStartDateTime", "") or ""), header, time)
    if moment is None:
        clock = _parsed(f"{start:%Y%m%d}{time}", least=12)
        if clock is None:
            raise _refused(stack, "when the dose was injected is not said")
        moment = clock - timedelta(days=1) if clock > start else clock  # before midnight
    if not timedelta(0) <= start - moment <= LONGEST:
        raise _refused(stack, f"the dose was injected at {moment}, and the images start at {start}")
    return start - moment


def _of_zone(text: str, header: "Dataset", clock: str) -> datetime | None:
    """Read the date and time of an injection as the clock beside the images showed it.

    Args:
        text: With or without an offset from UTC at its end.
        header: Of the images, whose own times are without one; it may name their zone.
        clock: The time of the injection without a date, if it is said too.

    Returns:
        None where nothing is said, and where the clock is apart by what zones are and that of the images is not known.
    """
    moment, said = _parsed(text), _offset(text)
    zone = _offset(str(header.get("TimezoneOffsetFromUTC", "") or ""))
    if moment is None or said is None:
        return moment
    if zone is not None:
        return moment + zone - said
    shown = _parsed(f"{moment:%Y%m%d}{clock}", least=12)
    apart = timedelta(0) if shown is None else abs(shown - moment)
    return None if apart and not apart % BETWEEN_ZONES else moment


def _offset(text: str) -> timedelta | None:
    """Read +HHMM or -HHMM at the end of a date and time; None where there is none."""
    found = OFFSET.search(text.replace(":", "").strip())
    if found is None:
        return None
    sign, hours, minutes = found.groups()
    return (-1 if sign == "-" else 1) * timedelta(hours=int(hours), minutes=int(minutes))


def _moment(header: "Dataset", which: str) -> datetime | None:
    """Give the date and time of the series or an acquisition; without a date it is the series', or the day after."""
    date, time = header.get("SeriesDate") or header.get("StudyDate"), header.get(f"{which}Time")
    own = header.get(f"{which}Date")
    moment = _parsed(f"{own or date}{time}", least=12) if (own or date) and time else None
    series = _parsed(f"{date}{header.get('SeriesTime') or ''}", least=12)
    over_midnight = not own and moment is not None and series is not None and series - moment > LONGEST / 2
    return moment + timedelta(days=1) if moment is not None and over_midnight else moment


def _parsed(text: str, least: int = 14) -> datetime | None:
    """Read YYYYMMDDHHMMSS.FFFFFF; None where it has fewer digits than it must, or is none."""
    digits = text.partition("+")[0].partition("-")[0].partition(".")[0].replace(":", "").strip()
    if len(digits) < least:
        return None
    try:
        return datetime.strptime(digits[:14].ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _positive(stack: Stack, part: "Dataset", keyword: str) -> float:
    value: Any = part.get(keyword)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not number > 0:
        raise _refused(stack, f"{keyword} is missing")
    return number


def _refused(stack: Stack, why: str) -> DatasetError:
    return DatasetError(f"{stack.in_words()}: cannot be turned into SUV: {why}; {REMEDY}")
