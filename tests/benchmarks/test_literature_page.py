"""The page "Problems of the literature" is drawn from its record."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.comparison.__main__ import main
from benchmarks.comparison.literature import draw_literature, literature_blocks
from deqlm.comparison import compare_literature
from deqlm.comparison.literature.entry import LiteratureEntry, LiteratureRow
from deqlm.comparison.literature.result import LiteratureComparison
from deqlm.comparison.problems.literature import literature_problems

THREE = "boggs,dottie,chebyquad_8"
MACHINE = {
    "environment": {"cpu": "", "cores": 1, "platform": "", "python": "3", "deqlm": "0", "commit": None, "packages": {}}
}
DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_drawn_from_the_record(tmp_path):
    result = compare_literature(THREE, "newton,fixed_point", progress=False)
    result.save(tmp_path / "records", plots=False)
    page = draw_literature(tmp_path)
    text = page.read_text()
    calls = [e.evaluations for e in result["boggs"].entries if e.solver == "newton"]
    assert f"| boggs | {result['boggs'].title} | 2 | {calls[0]} / {calls[1]} | - / - |" in text
    assert "| newton | 2 | 2 | 2 | 0 | 0 |" in text
    page.write_text(text.replace("| newton | 2", "| spoiled | 2").replace("# Problems", "# My problems"))
    assert draw_literature(tmp_path).read_text() == text.replace("# Problems", "# My problems")
    assert literature_blocks(result.to_dict()) == literature_blocks(json.loads(json.dumps(result.to_dict())))


def test_the_page_names_who_is_not_installed():
    entry = LiteratureEntry("scipy.hybr", "F", "not installed")
    record = LiteratureComparison(problems=[LiteratureRow("boggs", "Boggs", 1, 2, entries=[entry])]).to_dict()
    assert "Not installed here: scipy.hybr." in literature_blocks({**record, **MACHINE})["scores"]


def test_the_part_of_the_command_writes_record_and_page(tmp_path, capsys, monkeypatch):
    small = compare_literature("dottie", "newton", progress=False)
    monkeypatch.setattr("benchmarks.comparison.literature.compare_literature", lambda progress: small)
    assert main(["--parts", "literature", "--no-plots", "--out", str(tmp_path)]) == 0
    assert str(tmp_path / "literature.md") in capsys.readouterr().out
    assert (tmp_path / "records/literature.json").exists()


def test_the_page_of_the_documents_is_that_of_its_record():
    record = json.loads((DOCS / "records/literature.json").read_text())
    text = (DOCS / "literature.md").read_text()
    for name, block in literature_blocks(record).items():
        assert f"<!-- begin {name} -->\n{block}\n<!-- end {name} -->" in text
    assert len(record["problems"]) == len(list(literature_problems()))
