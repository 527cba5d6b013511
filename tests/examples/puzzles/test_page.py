"""The page is drawn from records, and says so where there is none."""

from __future__ import annotations

import json

import pytest

from examples.puzzles.page import DOCS, blocks, copy_records, draw_page
from examples.puzzles.report import chosen


def row(evaluations, starts, **more):
    return {"evaluations": evaluations, "starts": starts, "mean": 0.5, "any": 1.0, **more}


def test_a_page_without_records_says_what_to_run(tmp_path):
    drawn = blocks(tmp_path)
    assert drawn["six"] == "No record yet: `python -m examples.puzzles six`."
    assert all(text.startswith("No record yet") for text in drawn.values())


def test_the_page_has_a_place_for_every_block(tmp_path):
    (tmp_path / "puzzles.md").write_text((DOCS / "puzzles.md").read_text())
    assert "No record yet: `python -m examples.puzzles twins`." in draw_page(tmp_path).read_text()


def test_records_are_copied_from_where_the_commands_leave_them(tmp_path):
    for name in ("demo/3/results.json", "six/results.json", "nine/tried.json"):
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"a": 1}))
    written = copy_records(tmp_path / "runs", tmp_path / "docs")
    assert [path.name for path in written] == ["demo-3.json", "six.json", "nine.json"]
    with pytest.raises(FileNotFoundError, match="holds no results"):
        copy_records(tmp_path / "none", tmp_path / "docs")


def test_the_committed_page_is_that_of_the_records(tmp_path):
    page = (DOCS / "puzzles.md").read_text()
    for name, block in blocks().items():
        assert f"<!-- begin {name} -->\n{block}\n<!-- end {name} -->" in page


def test_a_rule_is_chosen_on_validation_and_the_cheapest_of_equals():
    valid = [row(8, 1, **{"least residual": 0.5, "vote": 0.6}), row(8, 2, **{"least residual": 0.5, "vote": 0.6})]
    tested = [row(8, 1, **{"least residual": 0.9, "vote": 0.1}), row(8, 2, **{"least residual": 1.0, "vote": 0.2})]
    rule, best, test = chosen({"breadth_valid": valid, "breadth": tested})
    assert (rule, best["starts"], test["vote"]) == ("vote", 1, 0.1)
