"""The reference shows the signature of every class that has one, those of options and named tuples included."""

from __future__ import annotations

from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")

EXTENSION = Path(__file__).resolve().parents[1] / "docs/signatures.py"
SOURCE = """
from typing import NamedTuple
from deqlm import options

@options
class Halve:
    times: int = 1

@options(kw_only=False)
class Placed:
    first: float

class Pair(NamedTuple):
    left: int
    right: str = "r"

class Plain:
    times: int = 1
"""


@pytest.fixture(scope="module")
def module():
    extensions = griffe.load_extensions(f"{EXTENSION}:OptionSignatures")
    with griffe.temporary_visited_package("shown", {"__init__.py": SOURCE}, extensions=extensions) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Halve", [("times", "int", "1", "keyword-only")]),
        ("Placed", [("first", "float", None, "positional or keyword")]),
        ("Pair", [("left", "int", None, "positional or keyword"), ("right", "str", "'r'", "positional or keyword")]),
    ],
)
def test_fields_are_shown_with_types_and_defaults(module, name, shown):
    fields = [one for one in module[name].parameters if one.name != "self"]
    seen = [(one.name, str(one.annotation), one.default and str(one.default), one.kind.value) for one in fields]
    assert seen == shown


def test_other_classes_are_left_alone(module):
    assert not module["Plain"].decorators
