"""Pickles that hold numbers and names alone: whatever else one asks for, which could run code, is refused."""

import pickle
from pathlib import Path
from typing import Any

_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),  # of bytes in old protocols
    ("collections", "OrderedDict"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")  # of numpy 1 and 2
        for module, name in (
            ("multiarray", "scalar"),
            ("multiarray", "_reconstruct"),
            ("numeric", "_frombuffer"),
        )
    ),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def holds_plain_values(file: Path) -> bool:
    """Tell whether a pickle is whole and nnU-Net may load it."""
    try:
        with file.open("rb") as opened:
            _Reader(opened).load()
    except Exception:  # a damaged pickle raises whatever its bytes stand for
        return False
    return True
