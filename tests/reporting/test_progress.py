"""A bar is drawn where somebody looks, and counts what it is told."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from deqlm.reporting.progress import Progress


@pytest.fixture
def eager(monkeypatch):
    """Draw every change at once."""
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm, "tqdm", partial(tqdm.tqdm, mininterval=0))


def test_steps_and_positions_are_drawn_on_stderr(eager, capsys):
    with Progress(10, show=True, name="work", unit="row", first=2) as bar:
        bar.step("begun", count=3)
        bar.reach(9, "nearly")
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("work", "2/10", "5/10", "begun", "9/10", "nearly", "row/s"):
        assert text in err


def test_a_line_of_the_log_goes_to_stdout(eager, capsys):
    for show in (True, False):
        with Progress(1, show=show) as bar:
            bar.log("a line")
        assert capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize("show", [False, None])
def test_nothing_is_drawn_where_nobody_looks(show, capsys):
    with Progress(2, show=show) as bar:
        bar.step("one")
        bar.reach(2)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_drawn_before_the_delay(eager, capsys):
    with Progress(2, show=True, delay=60) as bar:
        bar.step("early")
    assert "early" not in capsys.readouterr().err


def test_it_does_without_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(2, show=True) as bar:
        bar.step("one")
        bar.log("a line")
    assert capsys.readouterr() == ("a line\n", "")
