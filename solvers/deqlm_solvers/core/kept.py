"""Values that are made once for the same objects."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Kept"]

V = TypeVar("V")


class Kept(Generic[V]):
    """What was made of some objects, found again by their identity, which costs less than to compare their values.

    The objects are held with the value, so that no others can have their ids meanwhile; they must not change.

    Args:
        most: values; one more, and all are forgotten.

    Examples:
        >>> kept, stop = Kept(), object()
        >>> kept.put((stop,), "plan", 8), kept.get((stop,), 8), kept.get((object(),), 8)
        ('plan', 'plan', None)
    """

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._values: dict[Hashable, tuple[V, tuple[object, ...]]] = {}

    def get(self, objects: tuple[object, ...], *key: Hashable) -> V | None:
        """Return what was made of ``objects`` for ``key``, or None."""
        kept = self._values.get((*map(id, objects), *key))
        return None if kept is None else kept[0]

    def put(self, objects: tuple[object, ...], value: V, *key: Hashable) -> V:
        """Keep ``value``, and return it."""
        if len(self._values) >= self.most:
            self._values.clear()
        self._values[(*map(id, objects), *key)] = value, objects
        return value
