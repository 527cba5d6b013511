"""The page "Choose a gradient" holds what its record holds."""

from __future__ import annotations

import json

from benchmarks.gradient_methods import DOCS, METHODS, PAGE, blocks


def test_the_tables_of_the_page_are_those_of_the_record():
    record = json.loads((DOCS / "records" / "gradient_methods.json").read_text(encoding="utf-8"))
    assert blocks(record)["tables"] in PAGE.read_text(encoding="utf-8")
    assert [entry["method"] for case in record["cases"] for entry in case["entries"]] == [*METHODS] * 4
