"""Tutorials as notebooks: the site makes them from the scripts that its pages are rendered from."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("mkdocs")

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCRIPT = "# %% [markdown]\n# # A title\n#\n# Words.\n\n# %% volatile\nprint(1)\n"


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_script_becomes_a_notebook_of_its_cells(hook):
    made = json.loads(hook.notebook(SCRIPT))
    assert [cell["cell_type"] for cell in made["cells"]] == ["markdown", "code"]
    assert "".join(made["cells"][0]["source"]) == "# A title\n\nWords."
    assert "".join(made["cells"][1]["source"]) == "print(1)"
    assert made["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize(
    "script", [p for p in DOCS.glob("tutorials/*.py") if p.name != "render.py"], ids=lambda p: p.stem
)
def test_every_tutorial_becomes_one_whose_code_is_python(hook, script):
    made = json.loads(hook.notebook(script.read_text()))
    code = ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]
    compile("\n".join(code), str(script), "exec")
    assert not any(cell.get("outputs") for cell in made["cells"])


def test_its_page_links_to_it_and_other_pages_do_not(hook, tmp_path):
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "tutorials/first.py").write_text(SCRIPT)
    config = {"docs_dir": str(tmp_path)}
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/first.md"))
    text = hook.on_page_markdown("<!-- rendered -->\n\n# A title\n\nWords.", page, config, [])
    assert text == "<!-- rendered -->\n\n# A title\n\n[Download as a notebook](first.ipynb){ download }\n\nWords."
    for other in ("tutorials/second.md", "guides/first.md"):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=other))
        assert hook.on_page_markdown("# A title\n\nWords.", page, config, []) == "# A title\n\nWords."
