"""Everything the documentation shows runs.

Each Python fence of README.md and docs/ runs, a page's fences in order in one namespace. A fence that cannot run says
why in a comment on the line above it: ``<!-- not run: needs two GPUs -->``. Pages rendered from a script of the same
name are rendered again instead and compared. A page of commands names the packages that it needs,
``<!-- needs: trl -->``; all its fences run in one folder, each as a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RENDER = ROOT / "docs/tutorials/render.py"
SCRIPTS = [path for path in sorted(RENDER.parent.glob("*.py")) if path != RENDER]
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.exists() and page.with_suffix(".py") not in SCRIPTS
]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", flags=re.MULTILINE | re.DOTALL
)
NEEDS = re.compile(r"^<!-- needs: (?P<packages>[\w ]+) -->$", flags=re.MULTILINE)
COMMANDS = [page for page in PAGES if NEEDS.search(page.read_text())]
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*\Z")


FIRST = ("README", "index", "install", "cheat_sheet", "faq", "gallery", "which_solver", "fixed_points", "schedules")
NARROW = [ROOT / "README.md"]
NARROW += [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name == "how_to" or page.stem in FIRST]


def fences(text: str) -> list[tuple[int, str, str, bool]]:
    """Return (first line, info string, code without indent, runs) of every fence of a page."""
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        runs = not NOT_RUN.search(text[: match.start()])
        found.append((line, match["info"].strip(), code, runs))
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in COMMANDS], ids=name)
def test_fences_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, info, code, runs in fences(page.read_text()):
        if info == "python" and runs:
            exec(compile("\n" * (line - 1) + code, page, "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS, ids=name)
def test_commands_run(page, tmp_path):
    text = page.read_text()
    found = NEEDS.search(text)
    assert found is not None
    missing = [each for each in found["packages"].split() if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(f"needs {missing}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for line, info, code, runs in fences(text):
        start = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}.get(info)
        if start is not None and runs:
            given = {"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL}
            done = subprocess.run([*start, code], capture_output=True, text=True, **given)
            assert done.returncode == 0, f"line {line}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_fences_are_python_or_say_what_else_they_are(page):
    known = {"python", "bash", "text", "json", "toml", "yaml", "bibtex"}
    unknown = [f"line {line - 1}: {info!r}" for line, info, _, _ in fences(page.read_text()) if info not in known]
    assert not unknown, f"{name(page)}: {unknown}; a fence that cannot run has <!-- not run: why --> above it"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_tutorials_run_and_their_pages_are_fresh(script):
    command = [sys.executable, "-W", "error", str(RENDER), "--check", script.stem]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_fences_are_found_with_their_lines_and_reasons():
    run, skipped = "```python\nx = 1\n```\n", "<!-- not run: no GPU -->\n```python\ny\n```\n"
    text = f'a\n{run}{skipped}=== "tab"\n    ```bash\n    ls\n    ```\n'
    assert fences(text) == [
        (3, "python", "x = 1\n", True),
        (7, "python", "y\n", False),
        (11, "bash", "ls\n", True),
    ]


@pytest.mark.parametrize("page", NARROW, ids=lambda page: page.stem)
def test_code_of_the_first_pages_is_at_most_100_columns(page):
    wide = [line for _, _, code, _ in fences(page.read_text()) for line in code.splitlines() if len(line) > 100]
    assert not wide
