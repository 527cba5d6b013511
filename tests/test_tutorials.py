"""The renderer of the tutorials does what its pages promise, and no committed page has drifted from its script.

The full check, which runs every tutorial again, is `render.py --check` (tests/test_docs.py, slow). Here prose, code and
pictures of the committed pages are compared with the scripts without running them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs/tutorials"
pytest.importorskip("matplotlib")

SCRIPT = """# %% [markdown]
# # A title
#
# Prose.

# %%
import matplotlib.pyplot as plt
x = 2

# %% volatile
print(f"{x:5d} evaluations in 1.5 ms  ")

# %%
figure, axis = plt.subplots(figsize=(1, 1))
axis.set_title("Two points")
axis.plot([0, 1], [0, 1])
print("drawn")
"""


@pytest.fixture
def renderer(monkeypatch):
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "render", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tutorial(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SCRIPT)
    return path


def commit(renderer, tutorial):
    page = tutorial.with_suffix(".md")
    page.write_text(renderer.render(tutorial, tutorial.parent))
    return page


def test_a_page_holds_prose_code_output_and_picture(renderer, tutorial):
    page = renderer.render(tutorial, tutorial.parent)
    assert "# A title\n\nProse.\n" in page
    assert "```python\nimport matplotlib.pyplot as plt\nx = 2\n```" in page
    assert f"{renderer.VOLATILE}\n```text\n    2 evaluations in 1.5 ms\n```" in page
    assert page.endswith("```text\ndrawn\n```\n\n![Two points](small-1.svg)\n")
    assert (tutorial.parent / "small-1.svg").exists()


def test_rendering_twice_gives_equal_bytes(renderer, tutorial):
    first = renderer.render(tutorial, tutorial.parent), (tutorial.parent / "small-1.svg").read_bytes()
    again = renderer.render(tutorial, tutorial.parent), (tutorial.parent / "small-1.svg").read_bytes()
    assert first == again


def test_a_fresh_page_passes_also_with_other_volatile_numbers(renderer, tutorial):
    page = commit(renderer, tutorial)
    assert renderer.difference(tutorial) == ""
    page.write_text(page.read_text().replace("    2 evaluations in 1.5 ms", "  117 evaluations in 30 us"))
    assert renderer.difference(tutorial) == ""


def test_a_free_output_is_not_compared(renderer, tutorial):
    tutorial.write_text(SCRIPT.replace("# %% volatile", "# %% free"))
    page = commit(renderer, tutorial)
    page.write_text(page.read_text().replace("    2 evaluations in 1.5 ms", "something else"))
    assert renderer.difference(tutorial) == ""
    page.write_text(page.read_text().replace("drawn", "painted"))
    assert renderer.difference(tutorial) != ""


@pytest.mark.parametrize(
    ("old", "new"),
    [("x = 2\n", "x = 3\n"), ("Prose", "Poetry"), ("drawn", "painted"), ("evaluations in", "steps in")],
)
def test_a_changed_page_is_out_of_date(renderer, tutorial, old, new):
    page = commit(renderer, tutorial)
    page.write_text(page.read_text().replace(old, new))
    assert renderer.difference(tutorial) != ""


def test_pictures_that_are_missing_or_left_over_are_named(renderer, tutorial):
    commit(renderer, tutorial)
    (tutorial.parent / "small-1.svg").rename(tutorial.parent / "small-2.svg")
    found = renderer.difference(tutorial)
    assert "small-1.svg: not committed" in found
    assert "small-2.svg: no cell draws it" in found


def test_an_error_in_a_cell_names_the_line_of_the_script(renderer, tutorial):
    tutorial.write_text("# %%\nx = 1\n\n# %%\n\ny = x / 0\n")
    with pytest.raises(ZeroDivisionError) as raised:
        renderer.render(tutorial, tutorial.parent)
    assert raised.traceback[-1].lineno + 1 == 6


def test_a_misspelled_cell_option_is_an_error(renderer):
    with pytest.raises(ValueError, match="line 1: unknown cell option"):
        renderer.read_cells("# %% volatil\nx = 1\n")


def test_committed_pages_hold_the_prose_and_code_of_their_scripts(renderer):
    assert renderer.tutorials(), "there is a tutorial"
    for path in renderer.tutorials():
        page = path.with_suffix(".md").read_text()
        position = 0
        for cell in renderer.read_cells(path.read_text()):
            expected = renderer.prose(cell) if cell.markdown else f"```python\n{cell.text}\n```"
            assert expected in page[position:], f"{path.name}, line {cell.line}: run python docs/tutorials/render.py"
            position = page.index(expected, position) + len(expected)


def test_committed_pages_show_the_committed_pictures(renderer):
    for path in renderer.tutorials():
        shown = set(re.findall(rf"\(({path.stem}-\d+\.svg)\)", path.with_suffix(".md").read_text()))
        there = {picture.name for picture in path.parent.glob(f"{path.stem}-*.svg")}
        assert shown == there != set()
