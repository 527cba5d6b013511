"""Every known defect of a peer: ours is right, theirs is really there, and the page lists them all."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from defects.defect import Defect
from defects.page import page
from defects.stranger import GROUPS, Stranger
from defects.strangers import STRANGERS
from defects.table import DEFECTS

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs/defects.md"


def shown(side: str) -> list[object]:
    """Return one parameter per defect that has a check of that side."""
    marked = []
    for defect in DEFECTS:
        check = getattr(defect, side)
        if check is not None:
            marks = [pytest.mark.slow] if side == "theirs" and defect.slow else []
            marked.append(pytest.param(defect, id=f"{defect.id}-{check.__name__}", marks=marks))
    return marked


@pytest.mark.parametrize("defect", shown("ours"))
def test_ours_is_right(defect: Defect) -> None:
    assert defect.ours is not None
    defect.ours()


@pytest.mark.parametrize("defect", shown("theirs"))
def test_theirs_is_there(defect: Defect) -> None:
    assert defect.theirs is not None
    if find_spec(defect.needs) is None:
        pytest.skip(f"{defect.needs} is not installed")
    defect.theirs()


def test_every_defect_is_listed_once() -> None:
    ids = [defect.id for defect in DEFECTS]
    assert ids == [str(n) for n in range(1, 44)] + [f"V{n}" for n in range(1, 27)]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.id)
def test_every_defect_has_a_test_or_a_subject(defect: Defect) -> None:
    assert (defect.ours is None) == (defect.later is not None)
    assert (defect.theirs is None) == (defect.note is not None)
    for check, prefix in ((defect.ours, "ours_"), (defect.theirs, "theirs_")):
        assert check is None or check.__name__.startswith(prefix)
    for text in (defect.does, defect.rule):
        assert text.endswith(".")
        assert "|" not in text, "it stands in a table"


@cache
def functions(file: Path) -> set[str]:
    """Return the names of the functions of a file, those of its classes included."""
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.shown.split("::")[1])
def test_what_strangers_found_is_shown_by_a_test(stranger: Stranger) -> None:
    file, name = stranger.shown.split("::")
    assert name.startswith("test_")
    assert name in functions(TESTS / file)
    for text in (stranger.was, stranger.now):
        assert text.endswith(".")
        assert "|" not in text, "it stands in a table"


def test_every_fault_is_listed_once_and_in_its_group() -> None:
    assert len({stranger.shown for stranger in STRANGERS}) == len(STRANGERS)
    assert list(dict.fromkeys(stranger.group for stranger in STRANGERS)) == list(GROUPS)


def test_every_check_is_listed() -> None:
    from defects import anderson, backward, broyden, configuration, inputs, module, names, radius, stopping, transforms

    rooms = (anderson, backward, broyden, configuration, inputs, module, names, radius, stopping, transforms)
    written = {getattr(m, name) for m in rooms for name in vars(m) if name.startswith(("ours_", "theirs_"))}
    listed = {check for d in DEFECTS for check in (d.ours, d.theirs) if check is not None}
    assert written == listed


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text() == page(), "run `PYTHONPATH=tests python -m defects.page` to write it again"
