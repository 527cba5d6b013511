"""Where two descriptions of an experiment differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["differences"]

SHOWN = 8


def differences(there: Any, here: Any) -> str:
    """Return the fields whose values differ, in words; empty where none does.

    A field that is missing on one side and null or false on the other does not differ: it is an option that came later.

    Args:
        there: JSON data: what was saved.
        here: JSON data: what it is compared with. Tuples are lists.

    Raises:
        TypeError: something else than JSON data.

    Examples:
        >>> differences({"lr": 0.1, "data": {"p": 0}}, {"lr": 0.1, "data": {"p": 1}, "clip": 1})
        'clip is missing there and 1 here; data.p is 0 there and 1 here'
    """
    old, new = dict(_leaves(json.loads(json.dumps(there)), "")), dict(_leaves(json.loads(json.dumps(here)), ""))
    found = [
        f"{name or 'the experiment'} is {old.get(name, 'missing')} there and {new.get(name, 'missing')} here"
        for name in sorted(old.keys() | new.keys())
        if not _alike(old.get(name), new.get(name))
    ]
    more = f"; and {len(found) - SHOWN} more fields" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _alike(one: str | None, other: str | None) -> bool:
    return one == other or {one, other} in ({None, "null"}, {None, "false"})


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{name}[{index}]")
    else:
        yield name, json.dumps(value)
