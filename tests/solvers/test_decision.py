"""A table says what its rules say, for every outcome of the comparisons."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from deqlm_solvers.methods.decision import Decision, tabulate

COLUMNS = ("a", "b", "one", "zero")
TESTS = {"less": ("a", 2.0, "b"), "positive": ("zero", 1.0, "a"), "large": ("one", 5.0, "b")}


def rules(is_: SimpleNamespace) -> Decision:
    both = is_.less & is_.positive
    return Decision((both, ~is_.large), {"a": (both, "b", (is_.large, "one", "a")), "b": "zero"})


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=4))
def test_a_table_says_what_its_rules_say(rows):
    columns = torch.tensor([(a, b, 1.0, 0.0) for a, b in rows], dtype=torch.float64)
    flags, kept = tabulate(TESTS, rules, COLUMNS, columns.device).decide(columns)
    for i, (a, b) in enumerate(rows):
        less, positive, large = a <= 2 * b, a >= 0, 5 * b >= 1
        assert flags[i].tolist() == [less and positive, not large]
        assert kept[i].tolist() == [b if less and positive else 1.0 if large else a, 0.0]


def test_what_is_not_finite_passes_no_comparison():
    columns = torch.tensor([[torch.nan, torch.nan, 1.0, 0.0]], dtype=torch.float64)
    flags, _ = tabulate(TESTS, rules, COLUMNS, columns.device).decide(columns)
    assert flags.tolist() == [[False, True]]
