"""The reference shows exactly what is public: the names in ``__all__`` of the packages listed here."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs/reference").glob("*.md"))
PACKAGES = [
    *(
        "deqlm",
        "deqlm.comparison",
        "deqlm.compat.torchdeq",
        "deqlm.diagnostics",
        "deqlm.gradients",
        "deqlm.hf",
        "deqlm.layers",
        "deqlm.looped",
    ),
    *("deqlm.models", "deqlm.ops", "deqlm.ops.ssd", "deqlm.testing", "deqlm.training"),
    *("deqlm_solvers", "deqlm_solvers.adapters"),
]
DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", flags=re.MULTILINE)


def resolve(path: str) -> Any:
    """Return the object of a dotted path as mkdocstrings finds it: a module before a name that its package binds."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def exported(package: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) of the names in ``__all__``, packages and the version left out."""
    module = importlib.import_module(package)
    for name in module.__all__:
        if name != "__version__" and not isinstance(getattr(module, name), ModuleType):
            yield f"{package}.{name}", getattr(module, name)


def shown() -> Iterator[tuple[str, Any]]:
    """Yield (path, object) of what mkdocstrings renders; a package is all that it exports."""
    for page in PAGES:
        for match in DIRECTIVE.finditer(page.read_text()):
            found = resolve(match["name"])
            if isinstance(found, ModuleType):
                assert match["name"] in PACKAGES, f"{page.name} shows all of the module {match['name']}"
                yield from exported(match["name"])
            else:
                yield match["name"], found


def test_everything_public_is_shown():
    there = {id(thing) for _, thing in shown()}
    missing = [path for package in PACKAGES for path, thing in exported(package) if id(thing) not in there]
    assert not missing


def test_nothing_else_is_shown():
    public = {id(thing) for package in PACKAGES for _, thing in exported(package)}
    private = {path for path, thing in shown() if id(thing) not in public}
    assert not private


def test_nothing_is_shown_twice():
    seen: dict[int, str] = {}
    twice = [(path, seen[id(thing)]) for path, thing in shown() if seen.setdefault(id(thing), path) != path]
    assert not twice


@pytest.mark.parametrize("package", PACKAGES)
def test_public_lists_are_sorted_and_true(package: str):
    module = importlib.import_module(package)
    constants = [name for name in module.__all__ if name.isupper()]
    classes = [name for name in module.__all__ if name[0].isupper() and not name.isupper()]
    others = [name for name in module.__all__ if not name[0].isupper()]
    assert module.__all__ == [*sorted(constants), *sorted(classes), *sorted(others)]
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_shows_is_what_it_exports(package: str):
    """Names without an underscore that a package binds beside its ``__all__`` are modules, or not its own."""
    module = importlib.import_module(package)
    loose = [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and name not in module.__all__ and not isinstance(thing, ModuleType)
    ]
    own = [name for name in loose if (inspect.getmodule(vars(module)[name]) or module).__name__.startswith("deqlm")]
    assert not own
