"""The guide "It does not converge" has a section on every code, and on no other."""

from __future__ import annotations

import re
from pathlib import Path

from deqlm.diagnostics import Cause

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/not_converging.md"


def test_every_code_has_a_section():
    headings = re.findall(r"^### `([A-Z_]+)`$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(Cause)


def test_no_other_code_is_named():
    text = PAGE.read_text()
    statuses = {"CONVERGED", "MAX_ITER", "STALLED", "DIVERGED", "NONFINITE", "BUDGET", "DEQ"}
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", text)) | set(re.findall(r"Cause\.([A-Z_]+)", text))
    assert named <= {*Cause, *statuses}


def test_each_section_says_symptom_cause_and_cure():
    for section in PAGE.read_text().split("\n### ")[1:]:
        for part in ("**Symptom.**", "**Cause.**", "**Try.**"):
            assert section.count(part) == 1, section.splitlines()[0]
