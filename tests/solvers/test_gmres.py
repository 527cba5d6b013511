"""Batched GMRES against dense least squares over the Krylov space, row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqlm.testing.solvers.problems import normal
from deqlm.testing.solvers.rows import same_bits
from deqlm_solvers.linalg.gmres import BatchedGMRES, _hypotenuse


def yes(rows: int) -> Tensor:
    return torch.ones(rows, 1, dtype=torch.bool)


def systems(B: int, N: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    A = torch.eye(N, dtype=torch.float64) + 0.7 * normal(seed, B, N, N) / N**0.5
    return A, normal(seed + 1, B, N)


def apply(A: Tensor, v: Tensor) -> Tensor:
    """A plain sum, so that the bits of a row do not depend on the batch."""
    return (A.to(v) * v[:, None]).sum(2)


def run(A: Tensor, b: Tensor, size: int, products: int) -> BatchedGMRES:
    space = BatchedGMRES(size, b)
    space.start(yes(len(b)), b)
    for _ in range(products):
        space.extend(yes(len(b)), apply(A, space.newest()))
    return space


def least_residual(A: Tensor, b: Tensor, products: int) -> Tensor:
    """Return the norms of the smallest residuals over b, A b, A^2 b, ..., from an orthonormal basis, float64."""
    columns = [b / b.norm(dim=1, keepdim=True)]
    for _ in range(products - 1):
        v = apply(A, columns[-1])
        for _ in range(2):
            for u in columns:
                v = v - (u * v).sum(1, keepdim=True) * u
        columns.append(v / v.norm(dim=1, keepdim=True))
    image = A @ torch.stack(columns, 2)
    y = torch.linalg.lstsq(image, b[..., None]).solution
    return (b[..., None] - image @ y).squeeze(2).norm(dim=1)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_a_full_space_gives_the_dense_solution(dtype, tol):
    A, b = systems(5, 12)
    x, left = run(A, b.to(dtype), 12, 12).correction(b.to(dtype))
    truth = torch.linalg.solve(A, b)
    assert x.dtype == dtype
    assert ((x - truth).norm(dim=1) <= 20 * tol * truth.norm(dim=1)).all()
    assert (left.norm(dim=1) <= tol * b.norm(dim=1)).all()


@pytest.mark.parametrize("products", [1, 2, 5, 9])
def test_the_residual_is_the_smallest_in_the_space(products):
    A, b = systems(4, 12)
    space = run(A, b, 12, products)
    x, left = space.correction(b)
    want = least_residual(A, b, products)
    torch.testing.assert_close((b - apply(A, x)).norm(dim=1), want, rtol=1e-10, atol=0)
    torch.testing.assert_close(left.norm(dim=1), want, rtol=1e-10, atol=0)
    torch.testing.assert_close(space.estimate()[:, 0], want, rtol=1e-10, atol=0)


def test_the_residual_is_computed_and_not_that_of_the_rotations():
    """In float32 the rotations go on to fall below what is true; what `correction` returns does not."""
    A, b = systems(3, 20, seed=3)
    A = A @ torch.diag(torch.logspace(0, 4, 20, dtype=torch.float64)) / 100
    b32 = b.float()
    space = run(A, b32, 20, 20)
    x, left = space.correction(b32)
    true = (b32.double() - apply(A, x.double())).norm(dim=1)
    rounding = 60 * torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(A, 2) * x.double().norm(dim=1)
    assert ((left.double().norm(dim=1) - true).abs() <= rounding).all()
    assert (space.estimate()[:, 0] < 0.1 * left.double().norm(dim=1)).any(), "the estimate is as good: a poor test"


def test_rows_start_and_grow_on_their_own():
    A, b = systems(3, 9)
    space = BatchedGMRES(9, b)
    late = torch.tensor([[False], [True], [False]])
    space.start(~late, b)
    for k in range(6):
        if k == 2:
            space.start(late, b)
        which = ~late if k < 2 else yes(3) if k < 4 else late
        space.extend(which, apply(A, space.newest()))
    assert space.count.flatten().tolist() == [4, 4, 4]
    x, left = space.correction(b)
    for i in range(3):
        alone, rest = run(A[i : i + 1], b[i : i + 1], 9, 4).correction(b[i : i + 1])
        assert same_bits(alone[0], x[i])
        assert same_bits(rest[0], left[i])


def test_a_space_begun_again_forgets_the_first():
    A, b = systems(2, 7)
    space = run(A, 3 * b.flip(0), 5, 5)
    space.start(yes(2), b)
    for _ in range(3):
        space.extend(yes(2), apply(A, space.newest()))
    fresh = run(A, b, 5, 3)
    assert same_bits(space.correction(b)[0], fresh.correction(b)[0])
    assert not space.exhausted.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_product_that_is_not_finite_ends_its_row_only(value):
    A, b = systems(3, 8)
    space = run(A, b, 8, 3)
    spoiled = apply(A, space.newest())
    spoiled[1] = value
    space.extend(yes(3), spoiled)
    want = run(A, b, 8, 4)
    assert space.exhausted.flatten().tolist() == [False, True, False]
    assert space.count.flatten().tolist() == [4, 3, 4]
    x, left = space.correction(b)
    assert same_bits(x[[0, 2]], want.correction(b)[0][[0, 2]])
    torch.testing.assert_close(left[1], run(A, b, 8, 3).correction(b)[1][1], rtol=0, atol=0)


def test_a_closed_space_is_exhausted_and_exact():
    b = normal(0, 2, 6)
    A = torch.stack((2 * torch.eye(6), torch.diag(torch.tensor([1.0, 1, 1, 3, 3, 3])))).double()
    space = run(A, b, 6, 1)
    assert space.exhausted.flatten().tolist() == [True, False]
    space.extend(yes(2), apply(A, space.newest()))
    assert space.exhausted.all()
    assert space.count.flatten().tolist() == [1, 2]
    assert (space.correction(b)[1].norm(dim=1) <= 1e-14 * b.norm(dim=1)).all()


def test_nothing_to_solve_and_nothing_to_gain():
    """b of zero; b that is not finite; a singular A that maps b to zero."""
    b = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [1.0, 2.0]], dtype=torch.float64)
    space = BatchedGMRES(2, b)
    space.start(yes(3), b)
    assert space.exhausted.flatten().tolist() == [True, True, False]
    space.extend(yes(3), torch.zeros_like(b))
    assert space.exhausted.all()
    x, left = space.correction(b)
    assert same_bits(x, torch.zeros_like(x))
    assert same_bits(left[2], b[2])


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_residuals_never_grow_and_are_true(B, N, size, seed):
    A, b = systems(B, N, seed)
    space = BatchedGMRES(size, b)
    space.start(yes(B), b)
    before = b.norm(dim=1)
    for _ in range(min(size, N)):
        space.extend(yes(B), apply(A, space.newest()))
        x, left = space.correction(b)
        assert (left.norm(dim=1) <= (1 + 1e-12) * before).all()
        torch.testing.assert_close(left, b - apply(A, x), rtol=0, atol=1e-10 * float(1 + x.abs().max()))
        before = left.norm(dim=1)


def test_a_hypotenuse_does_not_depend_on_its_place():
    """torch.hypot takes another path for the last numbers of a tensor."""
    a, b = normal(0, 1999, 1), normal(1, 1999, 1)
    together = _hypotenuse(a, b)
    alone = torch.cat([_hypotenuse(a[i : i + 1].clone(), b[i : i + 1].clone()) for i in range(len(a))])
    assert same_bits(together, alone)
    torch.testing.assert_close(together, torch.hypot(a, b), rtol=4e-16, atol=0)


@pytest.mark.parametrize(("a", "b", "want"), [(0, 0, 0), (0, -2, 2), (3e200, 4e200, 5e200), (3e-200, -4e-200, 5e-200)])
def test_a_hypotenuse_neither_overflows_nor_vanishes(a, b, want):
    column = lambda x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
    torch.testing.assert_close(_hypotenuse(column(a), column(b)), column(want), rtol=1e-15, atol=0)
