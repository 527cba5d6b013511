"""Values that are made once for the same objects."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import TypeVar

__all__ = ["Kept"]

V = TypeVar("V")


class Kept(dict[Hashable, V]):
    """What was made of some objects, by their ids, which costs less than to compare their values.

    Look up ``(id(a), id(b), *key)``. The objects are held beside the value, so that no others can have their ids
    meanwhile; they must not change.

    Args:
        most: values; one more, and all are forgotten.

    Examples:
        >>> kept, stop = Kept(), object()
        >>> kept.keep((stop,), "plan", 8), kept.get((id(stop), 8)), kept.get((id(kept), 8))
        ('plan', 'plan', None)
    """

    def __init__(self, most: int = 256) -> None:
        super().__init__()
        self.most = most
        self._objects: list[tuple[object, ...]] = []
        self._lock = threading.Lock()

    def keep(self, objects: tuple[object, ...], value: V, *key: Hashable) -> V:
        """Keep ``value``, and return it."""
        with self._lock:
            if len(self) >= self.most:
                self.clear()
                self._objects.clear()
            self._objects.append(objects)
            self[(*map(id, objects), *key)] = value
        return value
