"""What the classes of a model are called in DICOM: by SNOMED where it has a structure of that name, and in colours."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

_SIDES = {"left": "Left", "l": "Left", "lt": "Left", "right": "Right", "r": "Right", "rt": "Right"}
_ABNORMAL = re.compile(
    r"tumou?r|lesion|metasta\w*|gtv\w*|ctv\w*|ptv\w*|cancer|carcinoma|nodule|mass|neoplasm|oedema|edema|necro\w*|cyst|"
    r"stroke|infarct\w*|h(a)?emorrhage|bleed\w*|sarcoma|adenoma|glioma",
    re.IGNORECASE,
)
_OTHER_WORDS = {  # of names that the tables know by other words
    "gtv": "neoplasm",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "tumors": "neoplasm",
    "tumours": "neoplasm",
    "metastasis": "neoplasm secondary",
    "oedema": "edema",
    "rv": "right ventricle",
    "lv": "left ventricle",
    "ra": "right atrium",
    "la": "left atrium",
    "parotid": "parotid gland",
    "submandibular": "submandibular gland",
    "thyroid": "thyroid gland",
    "adrenal": "adrenal gland",
    "prostate": "prostate",
    "brainstem": "brain stem",
    "spinalcord": "spinal cord",
    "vertebrae": "vertebra",
}
_TYPES, _STRUCTURES = "cid7151", "cid7192"  # the standard's tables of what segments are, and of those that are anatomy
_SMALL_WORDS = {"of", "the", "and", "structure", "urinary"}
GOLDEN = 0.61803398875  # of the circle of hues: neighbours in a list differ most


@dataclass(frozen=True)
class Segment:
    """A class as DICOM describes it.

    Attributes:
        name: As the dataset calls it.
        number: From 1, in the order of the dataset.
        rgb: Colour, 0 to 255.
        category: Such as Anatomical Structure.
        kind: What it is: of SNOMED, or free text in a scheme of ours.
        side: Left or right, where the name says so.
        place: Of what is not anatomy, in what it lies, where the name says so.
    """

    name: str
    number: int
    rgb: tuple[int, int, int]
    category: "Code"
    kind: "Code"
    side: "Code | None"
    place: "Code | None" = None


def segments_of(classes: Mapping[str, object]) -> list[Segment]:
    """Describe classes in their order."""
    return [_describe(name, number) for number, name in enumerate(classes, 1)]


def colour(number: int) -> tuple[int, int, int]:
    """Give the colour of the class of this number, from 1: strong ones that differ from their neighbours'."""
    lightness = (0.55, 0.4, 0.7)[number % 3]
    red, green, blue = colorsys.hls_to_rgb(number * GOLDEN % 1, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _describe(name: str, number: int) -> Segment:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    words = [word for word in re.split(r"[^A-Za-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)) if word]
    sides = {_SIDES[word.lower()] for word in words if word.lower() in _SIDES}
    whole = _in_tables(words)
    unsided = [word for word in words if word.lower() not in _SIDES]
    abnormal = [word for word in unsided if _ABNORMAL.fullmatch(word)]
    rest = _in_tables([word for word in unsided if word not in abnormal])
    place = rest[0] if abnormal and rest is not None and rest[1] else None
    found = whole or _in_tables(unsided) or (_in_tables(abnormal) if place is not None else None)
    if found is not None:
        kind, is_anatomy = found
    else:
        value = re.sub(r"[^A-Za-z0-9_]", "_", name)[:16] or f"class_{number}"
        kind, is_anatomy = Code(value, "99SAM3DNET", name[:64]), not abnormal
    category = codes.SCT.AnatomicalStructure if is_anatomy else codes.SCT.MorphologicallyAbnormalStructure
    side = None
    if whole is None and len(sides) == 1:
        side = getattr(codes.SCT, sides.pop())
    return Segment(name, number, colour(number), category, kind, side, place)


def _in_tables(words: Sequence[str]) -> "tuple[Code, bool] | None":
    """Find what has a name of these words, in any order, and whether it is a part of the anatomy."""
    return _tables().get(_as_words(" ".join(_OTHER_WORDS.get(word.lower(), word) for word in words)))


def _as_words(name: str) -> frozenset[str]:
    """Part a name or keyword into words and numbers."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return frozenset(part.lower() for part in parts) - _SMALL_WORDS


@cache
def _tables() -> "dict[frozenset[str], tuple[Code, bool]]":
    from pydicom.sr.codedict import codes

    types, anatomy = getattr(codes, _TYPES), set(getattr(codes, _STRUCTURES).dir())
    found: dict[frozenset[str], tuple[Code, bool]] = {}
    for keyword in sorted(types.dir(), key=len, reverse=True):  # of two with the same words the plainer one stays
        found[_as_words(keyword)] = (getattr(types, keyword), keyword in anatomy)
    return found
