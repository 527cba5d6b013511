"""What probes call the same: rounding is no difference, NaN in the same places neither, anything else is."""

from __future__ import annotations

import pytest
import torch

from deqlm_solvers.core.agreement import ROUNDING, rows_agree, rows_changed
from deqlm_solvers.core.dtypes import rounding_slack

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_slack_is_relative_to_the_row(dtype, scale):
    before = scale * torch.ones(1, 64, dtype=dtype)
    slack, ulps = rounding_slack(dtype), ROUNDING * torch.finfo(dtype).eps
    for share, agrees in ((0.5, True), (3.0, False)):
        assert rows_agree(before * (1 + share * slack), before).item() is agrees
    if ulps < 0.5:  # of half precision nothing is left
        for share, changed in ((0.5, False), (3.0, True)):
            assert rows_changed(before * (1 + share * ulps), before).item() is changed


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_must_stay_so(bad):
    before = torch.tensor([[1.0, bad], [1.0, 2.0]])
    assert rows_agree(before.clone(), before).all()
    assert not rows_changed(before.clone(), before).any()
    after = torch.tensor([[1.0, 2.0], [1.0, bad]])
    assert not rows_agree(after, before).any()
    assert rows_changed(after, before).tolist() == [True, True]


def test_rows_are_told_apart():
    before = torch.randn(4, 8)
    after = before.clone()
    after[2, 3] += 1
    assert rows_agree(after, before).tolist() == [True, True, False, True]
    assert rows_changed(after, before).tolist() == [False, False, True, False]


def test_zero_is_exact():
    before = torch.zeros(1, 3)
    assert rows_agree(before, before).all()
    assert not rows_agree(before + 1e-6, before).any()
    assert rows_changed(before + 1e-6, before).all()
