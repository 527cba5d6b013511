"""One class of registry: names to classes, open to plugins by entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from deqlm_solvers.core.checks import suggest
from deqlm_solvers.core.options import Options
from deqlm_solvers.core.peer_names import NAMES

__all__ = ["Registry"]

T = TypeVar("T", bound=Options)
C = TypeVar("C", bound=Options)


class Registry(Generic[T]):
    """Names to classes of one kind; iterate for the names, index for a class, `make` for an object.

    A class is registered by decorator where it is written, or by an entry point of an installed package: the entry
    point's name is the registry name and its object the class. Entry points are imported when their name is asked for.

    Args:
        kind: what is registered, for messages ("solver").
        base: class that every entry must extend.
        group: entry-point group, such as ``"deqlm.solvers"``.

    Examples:
        >>> from deqlm_solvers import SOLVERS
        >>> SOLVERS["anderson"](memory=3).memory
        3
    """

    def __init__(self, kind: str, base: type[T], group: str) -> None:
        self.kind = kind
        self.base = base
        self.group = group
        self._classes: dict[str, type[T]] = {}
        self._aliases: dict[str, str] = {}
        self._made: dict[type[T], T] = {}

    def register(self, name: str, *aliases: str, override: bool = False) -> Callable[[type[C]], type[C]]:
        """Return a decorator that registers a class under ``name`` and ``aliases``.

        Args:
            name: lower-case words joined by ``_``, with ``family.`` in front for adapters.
            aliases: other names that lead to the same class; not listed.
            override: allow the name to be taken already.

        Raises:
            ValueError: a malformed name, or one that is taken.
            TypeError: the class does not extend the registry's base.
        """
        for each in (name, *aliases):
            if not isinstance(each, str):
                raise TypeError(f"a {self.kind} is registered by name, @register_{self.kind}('name'), got {each!r}")
            if not each.replace(".", "_").isidentifier() or each != each.lower():
                raise ValueError(f"{self.kind} name must be lower-case words joined by '_', got {each!r}")
            if not override and (each in self._classes or each in self._aliases):
                raise ValueError(f"{self.kind} name {each!r} is taken; pass override=True to replace it")

        def add(cls: type[C]) -> type[C]:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"{self.kind} {name!r} must extend {self.base.__name__}, got {cls!r}")
            if "__dataclass_fields__" not in cls.__dict__:
                raise TypeError(f"write @options between @register_{self.kind}({name!r}) and class {cls.__name__}")
            cls.name = name
            self._classes[name] = cls  # pyright: ignore[reportArgumentType]
            self._aliases.update(dict.fromkeys(aliases, name))
            return cls  # pyright: ignore[reportReturnType]

        return add

    def __getitem__(self, name: str) -> type[T]:
        """Return the class of a name or alias.

        Raises:
            KeyError: an unknown name; the message names the nearest known one.
        """
        name = self._aliases.get(name, name)
        if name not in self._classes:
            self._load_plugin(name)
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._aliases or name in set(self)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._classes, *(p.name for p in self._plugins())}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def make(self, spec: str | Mapping[str, Any] | T) -> T:
        """Return an object from a name, a dict with ``name`` and options, or an object (unchanged).

        Raises:
            TypeError: anything else, or an option that the class does not have.
            ValueError: a dict without ``name``, or a value that breaks its rule.
            KeyError: an unknown name.
        """
        if isinstance(spec, self.base):
            return spec
        if isinstance(spec, str):
            cls = self[spec]
            if cls not in self._made:
                # options are frozen, so one object of the defaults serves all
                self._made[cls] = cls()
            return self._made[cls]
        if isinstance(spec, Mapping):
            if "name" not in spec:
                raise ValueError(f"a {self.kind} given as a dict needs the key 'name', got {dict(spec)!r}")
            cls = self[spec["name"]]
            return cls.from_dict({**spec, "name": cls.name})
        if isinstance(spec, type) and issubclass(spec, self.base):
            raise TypeError(f"{self.kind} must be an object, write {spec.__name__}(), got the class")
        raise TypeError(
            f"{self.kind} must be a name, a dict with 'name', or an object of {self.base.__name__}, got {spec!r}"
        )

    def _plugins(self) -> Any:
        return entry_points(group=self.group)

    def _load_plugin(self, name: str) -> None:
        for point in self._plugins().select(name=name):
            try:
                cls = point.load()
            except Exception as error:
                raise ImportError(f"{self.kind} {name!r} of {point.value} cannot be imported: {error}") from error
            if name not in self._classes:
                self.register(name)(cls)
            return
        if ":" in name:
            raise KeyError(f"unknown {self.kind} {name!r}: options go into a dict, {{'name': 'anderson', 'memory': 5}}")
        if NAMES.get(name) in self._classes:
            raise KeyError(f"unknown {self.kind} {name!r}: it is {NAMES[name]!r} here")
        raise KeyError(f"unknown {self.kind} {name!r}: {suggest(name, [*self, *self._aliases])}")
