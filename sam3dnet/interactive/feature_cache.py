"""What was computed once about windows, kept while there is room: what was asked for longest ago goes first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

DEFAULT_BYTES = 2 << 30


class Sized(Protocol):
    """Something that knows the memory that it takes, such as `ImageFeatures`."""

    def nbytes(self) -> int:
        """Return the bytes."""


Value = TypeVar("Value", bound=Sized)


class FeatureCache:
    """Features and the like by a key, as many as fit.

    Args:
        budget_bytes: What they may take together; what is larger alone is not kept.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES):
        self._budget = budget_bytes
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Give what belongs to a key; it is computed if it is not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
            found: Value = self._entries[key]
            return found
        value = compute()
        size = value.nbytes()
        while self._entries and self._bytes + size > self._budget:
            self._bytes -= self._entries.popitem(last=False)[1].nbytes()
        if size <= self._budget:
            self._entries[key] = value
            self._bytes += size
        return value
