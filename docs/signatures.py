"""Lets the reference read classes of options and named tuples as dataclasses, so that signatures stand on the page."""

from __future__ import annotations

from typing import Any

from griffe import Class, Decorator, Expr, ExprCall, ExprKeyword, ExprName, Extension

__all__ = ["OptionSignatures"]


class OptionSignatures(Extension):
    """Marks what ``options`` decorates, and named tuples, as dataclasses; the built-in extension goes on from there."""

    def on_class_instance(self, *, cls: Class, **kwargs: Any) -> None:
        """Look at the decorators of a class that was found."""
        marks = [_by_keyword(given.value) for given in cls.decorators if _is_options(given.value)]
        marks += ["False" for base in cls.bases if isinstance(base, Expr) and base.canonical_name == "NamedTuple"]
        for mark in marks[:1]:
            made = ExprCall(ExprName("dataclasses.dataclass"), [ExprKeyword("kw_only", mark)])
            cls.decorators.append(Decorator(made, lineno=cls.lineno, endlineno=cls.lineno))


def _is_options(value: Any) -> bool:
    name = value.function if isinstance(value, ExprCall) else value
    return isinstance(name, Expr) and name.canonical_name == "options"


def _by_keyword(value: Any) -> str:
    """Return what ``options(kw_only=...)`` says, in a word."""
    given = [word.value for word in value.arguments if word.name == "kw_only"] if isinstance(value, ExprCall) else []
    return str(given[0]) if given else "True"
