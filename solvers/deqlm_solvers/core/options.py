"""Options are the fields of frozen dataclasses: checked at birth, serialisable, never ignored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform, overload

from deqlm_solvers.core.checks import explain

__all__ = ["Options", "options"]

T = TypeVar("T", bound=type)


class Options:
    """Base of every solver, gradient method and `Stop`: plain data with `to_dict`, `from_dict`, `replace`.

    Subclasses are decorated with `options`, which makes them frozen dataclasses.

    Examples:
        >>> from deqlm_solvers import Broyden
        >>> Broyden.from_dict({"memory": 5}).replace(update="bad").to_dict()
        {'name': 'broyden', 'memory': 5, 'update': 'bad', 'damping': 1.0, 'line_search': None, 'impl': 'auto'}
    """

    name: ClassVar[str] = ""
    """Registry name, set on registration; empty for classes that are in no registry."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data (nested options become dicts); a registered class adds its ``name``."""
        data = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **data} if self.name else data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from `to_dict`'s output; the mapping is not changed.

        Raises:
            TypeError: a key that is no field; the message names the nearest one.
            ValueError: ``name`` is given and belongs to another class, or a value breaks its rule.
        """
        values = dict(data)
        name = values.pop("name", cls.name)
        if name != cls.name:
            raise ValueError(f"name must be {cls.name!r} for {cls.__name__}, got {name!r}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked like a new one."""
        return replace(self, **changes)  # type: ignore[type-var]


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


@overload
def options(cls: T, /) -> T: ...


@overload
def options(*, kw_only: bool = True) -> Callable[[T], T]: ...


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(cls: Any = None, /, *, kw_only: bool = True) -> Any:
    """Decorate a subclass of `Options`: a frozen dataclass whose constructor explains unknown keywords.

    Args:
        cls: the class (bare decorator), or None when used with arguments.
        kw_only: False lets the fields be given by position.

    Examples:
        >>> @options
        ... class Halve(Options):
        ...     times: int = 1
        >>> Halve(tims=2)
        Traceback (most recent call last):
        TypeError: Halve got an unknown option 'tims': did you mean 'times'? known: times
    """

    def wrap(cls: T) -> T:
        made = dataclass(frozen=True, kw_only=kw_only)(cls)
        plain_init = made.__init__
        known = [f.name for f in fields(made) if f.init]

        @functools.wraps(plain_init)
        def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
            for key in kwargs:
                if key not in known:
                    raise TypeError(f"{cls.__name__} got an unknown option {key!r}: {explain(key, known)}")
            plain_init(self, *args, **kwargs)

        made.__init__ = checked_init  # type: ignore[misc]
        return made  # type: ignore[return-value]

    return wrap if cls is None else wrap(cls)
