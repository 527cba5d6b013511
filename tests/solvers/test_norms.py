"""Lengths of long rows: right at every magnitude, each row by itself, and without a copy in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deqlm_solvers.core.norms import LONG, lengths

SHAPES = [(5, LONG), (5, LONG + 77), (5, 40, LONG // 32), (5, LONG // 3, 3), (5, LONG // 2)]


def exact(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t.double(), dim=-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-14, 1e-30, 1e-42, 1e25, 0.0])
def test_lengths_are_right_at_every_magnitude(shape, scale):
    t = scale * torch.randn(shape)
    torch.testing.assert_close(lengths(t), exact(t), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_is_measured_by_itself(shape):
    """Rows that are huge, tiny, zero, infinite or NaN leave the others and each other alone, to the bit."""
    t = torch.randn(shape)
    t[1] *= 1e30
    t[2] *= 1e-30
    t[3] = 0.0
    t[4, ..., 0] = torch.nan
    together = lengths(t)
    torch.testing.assert_close(together, exact(t), rtol=1e-6, atol=0, equal_nan=True)
    for i in range(len(t)):
        torch.testing.assert_close(lengths(t[i : i + 1]), together[i : i + 1], rtol=0, atol=0, equal_nan=True)
    t[4] = torch.inf
    assert torch.equal(lengths(t)[:4], together[:4])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_no_copy_is_made_of_long_rows(kind, shape):
    """Copies inside of an operator are hidden from dispatch modes, and not from the profiler."""
    t = torch.randn(shape, dtype=kind)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        lengths(t)
    taken = sum(max(0, event.self_cpu_memory_usage) for event in told.events())
    assert taken < t.nbytes / 8


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, of forward mode
@pytest.mark.parametrize("watched", ["grad", "forward", "vmap"])
def test_whoever_follows_the_operations_gets_them(watched):
    t = torch.randn(2, LONG)
    if watched == "grad":
        given = t.clone().requires_grad_()
        (got,) = torch.autograd.grad(lengths(given).sum(), given)
        torch.testing.assert_close(got, t / exact(t)[:, None].float())
    elif watched == "forward":
        _, got = torch.func.jvp(lengths, (t,), (t,))
        torch.testing.assert_close(got.double(), exact(t), rtol=1e-6, atol=0)
    else:
        got = torch.vmap(lambda row: lengths(row[None]))(t)
        torch.testing.assert_close(got[:, 0], exact(t))
