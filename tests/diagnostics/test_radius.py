"""The spectral radius per row against dense eigenvalues."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqlm.diagnostics import spectral_radius

F64 = torch.float64


def batch(seed: int, rows: int, size: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, size, dtype=F64, generator=draw) / size**0.5


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 12))
def test_it_is_exact_with_as_many_steps_as_unknowns(seed: int, rows: int, size: int) -> None:
    matrices = batch(seed, rows, size)
    got = spectral_radius(lambda z: torch.einsum("bij,bj->bi", matrices, z), torch.zeros(rows, size, dtype=F64))
    torch.testing.assert_close(got, torch.linalg.eigvals(matrices).abs().amax(1), rtol=1e-6, atol=1e-9)


def test_few_steps_come_close() -> None:
    matrices = batch(0, 3, 80)
    z = torch.zeros(3, 80, dtype=F64)
    got = spectral_radius(lambda z: torch.tanh(torch.einsum("bij,bj->bi", matrices, z)), z, steps=30)
    torch.testing.assert_close(got, torch.linalg.eigvals(matrices).abs().amax(1), rtol=0.03, atol=0.0)


def test_rows_do_not_see_each_other_and_a_bad_one_is_nan() -> None:
    z = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [0.5, 0.0]], dtype=F64)
    got = spectral_radius(lambda z: z**2, z)
    assert got[1].isnan()
    assert got[[0, 2]].tolist() == pytest.approx([4.0, 1.0])


def test_arguments_trees_batches_and_constants() -> None:
    scale = torch.tensor([0.5, 0.25], dtype=F64)
    assert spectral_radius(lambda z, s: s[:, None] * z, torch.zeros(2, 3, dtype=F64), scale).tolist() == pytest.approx(
        [0.5, 0.25]
    )
    tree = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}
    assert spectral_radius(lambda z: {"a": 0.5 * z["a"], "b": 0.7 * z["b"]}, tree).tolist() == pytest.approx([0.7] * 2)
    assert spectral_radius(lambda z: 0.5 * z, torch.zeros(2, 3), batch_dims=0).shape == ()
    assert spectral_radius(lambda z: torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    assert spectral_radius(lambda z: z, torch.zeros(0, 3)).shape == (0,)


def test_nothing_is_changed() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    before = torch.get_rng_state()
    with torch.no_grad():
        got = spectral_radius(lambda z: 0.5 * z, z)
    assert torch.equal(before, torch.get_rng_state())
    assert not got.requires_grad
    assert z.grad is None
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        spectral_radius(torch.tanh, z, steps=0)
