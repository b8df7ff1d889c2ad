"""What was computed once about windows, kept while there is room: what was asked for longest ago goes first."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Protocol, TypeVar

DEFAULT_BYTES = 2 << 30


class Sized(Protocol):
    """Something that knows the memory that it takes, such as `ImageFeatures`."""

    def nbytes(self) -> int:
        """Return the bytes."""


Value = TypeVar("Value", bound=Sized)


class FeaturePool:
    """Room for the features of several images, such as of all sessions of a server.

    Args:
        budget_bytes: What all may take together; what is larger alone is not kept.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES):
        self._budget = budget_bytes
        self._entries: OrderedDict[tuple[int, Hashable], Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()  # an image may be forgotten by whichever thread lets go of it last
        self._numbers = count()

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return self._bytes

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more would be kept without forgetting others."""
        return self._bytes + size <= self._budget

    def _next_number(self) -> int:
        return next(self._numbers)

    def _find(self, key: tuple[int, Hashable]) -> Any:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def _keep(self, key: tuple[int, Hashable], value: Sized) -> None:
        size = value.nbytes()
        with self._lock:
            while self._entries and self._bytes + size > self._budget:
                self._bytes -= self._entries.popitem(last=False)[1].nbytes()
            if size <= self._budget:
                self._entries[key] = value
                self._bytes += size

    def _forget(self, number: int) -> None:
        with self._lock:
            for key in [key for key in self._entries if key[0] == number]:
                self._bytes -= self._entries.pop(key).nbytes()


class FeatureCache:
    """Features and the like of one image by a key, as many as fit; they go with the cache.

    Args:
        room: Bytes that they may take together, or a pool that other images share.
    """

    def __init__(self, room: int | FeaturePool = DEFAULT_BYTES):
        self._pool = room if isinstance(room, FeaturePool) else FeaturePool(room)
        self._number = self._pool._next_number()
        weakref.finalize(self, self._pool._forget, self._number)

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Give what belongs to a key; it is computed if it is not there."""
        found: Value | None = self._pool._find((self._number, key))
        if found is None:
            found = compute()
            self._pool._keep((self._number, key), found)
        return found

    def holds(self, key: Hashable) -> bool:
        """Tell whether what belongs to a key is kept."""
        return (self._number, key) in self._pool._entries

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more would be kept without forgetting others."""
        return self._pool.has_room(size)
