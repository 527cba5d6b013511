"""Dropout with a mask that is shared along dimensions and lives for one call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import deqlm
from deqlm.layers import SharedDropout


@pytest.mark.parametrize("shared", [(), (1,), (1, 2), (-1,)])
def test_a_mask_is_one_along_the_shared_dimensions(shared: tuple[int, ...]) -> None:
    y = SharedDropout(0.5, shared)(torch.ones(3, 4, 5))
    for dim in shared:
        assert (y == y.narrow(dim, 0, 1)).all()
    assert set(y.flatten().tolist()) == {0.0, 2.0}


def test_the_mean_stays() -> None:
    y = SharedDropout(0.3)(torch.ones(100_000))
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)


def test_a_call_has_one_mask_and_the_next_another() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), SharedDropout(0.5, (1,)))
    deq, x = deqlm.DEQ(layer, solver="fixed_point", stop={"max_iter": 5, "rtol": 0.0}), torch.randn(2, 3, 8)
    copy.deepcopy(deq)
    first, second = deq(x), deq(x)
    assert (first == 0).any()
    assert not torch.equal(first == 0, second == 0)
    deq.eval()
    assert torch.equal(deq(x), deq(x))


def test_a_bad_probability_is_refused() -> None:
    for p in (1.0, -0.1, True, "half"):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\)"):
            SharedDropout(p)  # type: ignore[arg-type]
