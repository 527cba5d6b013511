"""Small batched algebra: right, the same bits in any batch, and no bad row stops the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.problems import normal
from deqlm.testing.solvers.rows import same_bits
from deqlm_solvers.linalg.small_systems import finite_or_identity, push_column, push_row, solve_general, solve_leading


def gram(B: int, M: int) -> Tensor:
    """Return scaled Gram matrices (B, M, M) of independent columns."""
    Y = normal(M, B, M + 4, M)
    Y = Y / Y.norm(dim=1, keepdim=True)
    return Y.mT @ Y + 1e-6 * torch.eye(M, dtype=torch.float64)


def leading(matrix: Tensor, rhs: Tensor) -> Tensor:
    return solve_leading(matrix.clone(), rhs.clone(), 1e-9)


def general(matrix: Tensor, rhs: Tensor) -> Tensor:
    return solve_general(matrix.clone(), rhs.clone())


each = pytest.mark.parametrize("solve", [leading, general])


@each
@pytest.mark.parametrize("M", [1, 2, 5, 12])
def test_solves(solve, M):
    matrix, rhs = gram(3, M), normal(1, 3, M)
    want = torch.linalg.solve(matrix, rhs[..., None])[..., 0]
    assert torch.allclose(solve(matrix, rhs), want, rtol=1e-9)


@each
@pytest.mark.parametrize("M", [1, 2, 5, 11, 12, 20, 24])
def test_a_row_has_the_same_bits_in_any_batch_and_at_any_place(solve, M):
    """BLAS picks its kernel by alignment and batch size: which calls are safe has to be tried."""
    matrix, rhs = gram(5, M), normal(1, 5, M)
    together = solve(matrix, rhs)
    for i in range(5):
        assert same_bits(solve(matrix[i : i + 1], rhs[i : i + 1]), together[i : i + 1])
    order = torch.tensor([3, 0, 4, 2, 1])
    assert same_bits(solve(matrix[order], rhs[order]), together[order])


@each
@pytest.mark.parametrize("bad", ["zero", "singular", "nan", "inf", "huge", "indefinite"])
def test_a_bad_row_leaves_the_others_alone(solve, bad):
    matrix, rhs = gram(4, 6), normal(1, 4, 6)
    before = solve(matrix, rhs)
    matrix[1] = {
        "zero": torch.zeros(6, 6, dtype=torch.float64),
        "singular": torch.ones(6, 6, dtype=torch.float64),
        "nan": torch.full((6, 6), torch.nan, dtype=torch.float64),
        "inf": torch.full((6, 6), torch.inf, dtype=torch.float64),
        "huge": torch.full((6, 6), 1e300, dtype=torch.float64),
        "indefinite": -torch.eye(6, dtype=torch.float64),
    }[bad]
    after = solve(matrix, rhs)
    assert same_bits(after[[0, 2, 3]], before[[0, 2, 3]])
    assert after[1].isfinite().all()


def test_unknowns_that_depend_on_those_before_them_are_left_out():
    Y = normal(0, 1, 8, 5)
    Y[..., 3] = Y[..., 0] + Y[..., 1]
    Y = Y / Y.norm(dim=1, keepdim=True)
    matrix, rhs = Y.mT @ Y, normal(1, 1, 5)
    x = leading(matrix, rhs)
    assert (x[0, 3:] == 0).all()
    want = torch.linalg.solve(matrix[0, :3, :3], rhs[0, :3])
    assert torch.allclose(x[0, :3], want, rtol=1e-8)


def test_products_move_with_the_age_of_their_pairs():
    products = torch.arange(9.0, dtype=torch.float64).reshape(1, 3, 3)
    new = torch.tensor([[100.0, 101.0, 102.0]], dtype=torch.float64)
    column, row = push_column(products, new), push_row(products, new)
    assert same_bits(column[:, :, 0], new)
    assert same_bits(row[:, 0], new)
    for moved in (column, row):
        assert same_bits(moved[:, 1:, 1:], products[:, :2, :2])


def test_matrices_that_are_not_finite_become_the_identity():
    matrix = gram(3, 4)
    matrix[1, 2, 3] = torch.nan
    matrix[2, 0, 0] = -torch.inf
    out = finite_or_identity(matrix)
    assert same_bits(out[0], matrix[0])
    assert same_bits(out[1], torch.eye(4, dtype=torch.float64))
    assert same_bits(out[2], torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_unknown_that_overflows_is_zero(sign):
    matrix = torch.diag(torch.tensor([1e-300, 1.0], dtype=torch.float64))[None]
    assert general(matrix, torch.tensor([[sign * 1e300, 2.0]], dtype=torch.float64)).tolist() == [[0.0, 2.0]]
