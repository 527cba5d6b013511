"""Gives every tutorial of the site a notebook, made from the script that its page is rendered from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File


def notebook(script: str) -> str:
    """Return a script in percent format as a notebook without outputs, of JSON."""
    made = jupytext.reads(script, fmt="py:percent")
    for cell in made.cells:
        cell.metadata.clear()
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return jupytext.writes(made, fmt="ipynb")


def on_files(files: Any, config: Any) -> Any:
    """Add a notebook beside every page that has a script."""
    for page in [file for file in files if _script(file, config) is not None]:
        script = _script(page, config)
        assert script is not None
        name = f"{page.src_uri.removesuffix('.md')}.ipynb"
        files.append(File.generated(config, name, content=notebook(script.read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Say below the title where the notebook is."""
    script = _script(page.file, config)
    if script is None:
        return markdown
    head, title, rest = markdown.partition("\n# ")
    line, _, body = rest.partition("\n")
    return f"{head}{title}{line}\n\n[Download as a notebook]({script.stem}.ipynb){{ download }}\n{body}"


def _script(file: Any, config: Any) -> Path | None:
    """Return the script that a page is rendered from, or None."""
    path = Path(config["docs_dir"]) / file.src_uri
    script = path.with_suffix(".py")
    return script if path.suffix == ".md" and path.parent.name == "tutorials" and script.exists() else None
