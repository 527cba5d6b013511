"""The logo and the favicon are those that their script draws."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", ["logo.svg", "favicon.svg"])
def test_pictures_are_those_of_the_script(name):
    drawing = runpy.run_path(str(DOCS / "draw_logo.py"))["drawing"]
    committed = (DOCS / "assets" / name).read_text()
    assert committed in {drawing("#ffffff", "#ffb454"), drawing("#4051b5", "#d55e00")}
