"""Image features that were computed once, kept while there is room: those asked for longest ago go first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from sam3dnet.network.prompt_decoder import ImageFeatures

DEFAULT_BYTES = 2 << 30


class FeatureCache:
    """Features by a key, as many as fit.

    Args:
        budget_bytes: What the features may take together; one that is larger alone is not kept.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES):
        self._budget = budget_bytes
        self._entries: OrderedDict[Hashable, ImageFeatures] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, compute: Callable[[], ImageFeatures]) -> ImageFeatures:
        """Give the features of a key; they are computed if they are not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        features = compute()
        size = features.nbytes()
        while self._entries and self._bytes + size > self._budget:
            self._bytes -= self._entries.popitem(last=False)[1].nbytes()
        if size <= self._budget:
            self._entries[key] = features
            self._bytes += size
        return features
