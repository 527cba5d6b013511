"""Spectral radius, norms and conditioning against dense float64 truth and known spectra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import deqlm
from deqlm.diagnostics import Probes
from deqlm.diagnostics.diagnosis.jacobian import Jacobian
from deqlm.diagnostics.diagnosis.krylov import arnoldi

KRYLOV = Probes(dense=0, starts=1)


def rotation(radius: float, n: int, angles: int = 1) -> torch.Tensor:
    blocks = []
    for k in range(n // 2):
        angle = math.pi / 3 + (k % angles) * math.pi / (2 * angles)
        c, s = radius * math.cos(angle), radius * math.sin(angle)
        blocks.append(torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
    return torch.block_diag(*blocks)


def linear(A: torch.Tensor, rows: int = 2):
    b = torch.randn(rows, len(A), dtype=A.dtype)
    return (lambda z: z @ A.T + b), torch.zeros_like(b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "angles", "probes"), [(64, 1, Probes()), (256, 1, Probes()), (256, 8, KRYLOV)])
def test_a_rotation_of_point_nine_reports_point_nine(n, angles, probes, dtype):
    f, z0 = linear(rotation(0.9, n, angles).to(dtype))
    c = deqlm.diagnose(f, z0, probes=probes).contraction
    assert c.radius == pytest.approx((0.9, 0.9), abs=1e-3)
    assert c.norm == pytest.approx((0.9, 0.9), abs=1e-3)
    assert c.eigenvalue[0][1] > 0.3
    assert c.method == ("dense" if n == 64 else "arnoldi")


def test_a_nilpotent_chain_is_told_from_a_slow_one_by_its_token_blocks():
    def chain(z):
        return torch.cat([torch.ones_like(z[:, :1]), z[:, :-1]], dim=1)

    diagnosis = deqlm.diagnose(chain, torch.zeros(2, 200, 1, dtype=torch.float64))
    c = diagnosis.contraction
    assert c.method == "arnoldi"
    assert "estimate" in str(diagnosis)
    assert c.radius[0] > 0.5
    assert c.radius_error[0] > 0.01
    assert c.token_radius == 0
    assert diagnosis.causality == "causal"
    assert diagnosis.cause.name == "CAUSAL_FRONTIER"
    assert diagnosis.suggestion.worked


def test_all_token_blocks_are_seen_where_the_jacobian_is_dense():
    gain = torch.tensor([0.1, 0.2, 0.8, 0.3, 0.1], dtype=torch.float64)[None, :, None]

    def f(z):
        return gain * z + 0.5 * torch.nn.functional.pad(z, (0, 0, 1, 0))[:, :-1] + 1

    c = deqlm.diagnose(f, torch.zeros(1, 5, 3, dtype=torch.float64)).contraction
    assert (c.method, c.tokens) == ("dense", 5)
    assert c.token_radius == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize("n", [12, 60, 150])
def test_norm_and_conditioning_match_the_dense_svd(n):
    A = torch.randn(n, n, dtype=torch.float64)
    A *= 0.95 / torch.linalg.eigvals(A).abs().max()
    f, z0 = linear(A, rows=1)
    c = deqlm.diagnose(f, z0, probes=Probes(dense=0, krylov=60, starts=1)).contraction
    gains = torch.linalg.svdvals(A)
    left = torch.linalg.svdvals(torch.eye(n, dtype=torch.float64) - A)
    assert c.norm[0] <= gains[0].item() * (1 + 1e-9)
    assert c.norm[0] == pytest.approx(gains[0].item(), rel=1e-2)
    assert c.kappa[0] <= 1 / left[-1].item() * (1 + 1e-6)
    assert c.kappa[0] == pytest.approx(1 / left[-1].item(), rel=2e-2)
    assert c.lipschitz[0] <= gains[0].item() * (1 + 1e-6)
    assert c.lipschitz[0] == pytest.approx(gains[0].item(), rel=1e-2)


def test_dense_and_krylov_agree_on_a_tanh_layer():
    torch.manual_seed(3)
    layer = nn.Sequential(nn.Linear(40, 40), nn.Tanh()).double()
    deq = deqlm.DEQ(layer, stop=deqlm.Stop(rtol=1e-10))
    x = torch.randn(3, 40, dtype=torch.float64)
    full, sparse = (deqlm.diagnose(deq, x, probes=p).contraction for p in (Probes(), Probes(dense=0)))
    assert (full.method, sparse.method) == ("dense", "arnoldi")
    by_row = {c: dict(zip(c.rows, zip(c.radius, c.norm, c.kappa, strict=True), strict=True)) for c in (full, sparse)}
    for row, (radius, norm, kappa) in by_row[full].items():
        estimate = by_row[sparse][row]
        assert estimate[:2] == pytest.approx((radius, norm), rel=1e-2)
        assert 0.8 * kappa < estimate[2] <= kappa * (1 + 1e-9)
    z = deq(x).detach()
    J = torch.func.jacrev(lambda z0: layer((z0 + x[0])[None])[0])(z[0])
    assert full.radius[full.rows.index(0)] == pytest.approx(torch.linalg.eigvals(J).abs().max().item(), rel=1e-6)


def test_transient_growth_is_reported():
    A = torch.tensor([[0.9, 8.0, 0.0], [0.0, 0.8, 8.0], [0.0, 0.0, 0.7]], dtype=torch.float64)
    f, z0 = linear(A, rows=1)
    c = deqlm.diagnose(f, z0).contraction
    powers = [torch.linalg.matrix_norm(torch.linalg.matrix_power(A, k), 2).item() for k in range(1, 17)]
    assert c.radius[0] == pytest.approx(0.9, abs=1e-9)
    assert 0.5 * max(powers) < c.growth[0] <= max(powers) * (1 + 1e-9)
    assert c.numerical_radius[0] > 4


def test_the_error_estimate_is_near_the_true_error():
    A = torch.diag(torch.tensor([0.99, 0.5, -0.3], dtype=torch.float64))
    f, z0 = linear(A, rows=1)
    diagnosis = deqlm.diagnose(f, z0, stop=deqlm.Stop(rtol=1e-3), solver="fixed_point", probes=Probes(starts=1))
    sol = deqlm.solve(f, z0, stop=deqlm.Stop(rtol=1e-3), solver="fixed_point", on_failure="ignore")
    assert bool(sol.converged) == diagnosis.converged
    if diagnosis.converged:
        exact = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - A, f(z0).T).T
        assert diagnosis.contraction.error[0] == pytest.approx((sol.z - exact).norm().item(), rel=0.5)


def test_arnoldi_is_exact_after_n_steps_and_stops_at_an_invariant_subspace():
    A = torch.randn(3, 7, 7, dtype=torch.float64)
    A[1] = torch.diag(torch.tensor([2.0] * 4 + [1.0] * 3, dtype=torch.float64))
    H, rest, _ = arnoldi(lambda v: (A @ v[..., None])[..., 0], torch.randn(3, 7, dtype=torch.float64), 7)
    assert rest.max().item() < 1e-12
    for k in range(3):
        largest = torch.linalg.eigvals(A[k]).abs().max().item()
        assert torch.linalg.eigvals(H[k]).abs().max().item() == pytest.approx(largest, rel=1e-9)


def twice(z):
    return torch.tanh(z) * 0.5 + z.roll(1, dims=1) * z


class Once(torch.autograd.Function):
    """A map without a second derivative."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return twice(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        inside = g * z
        return g * 0.5 * (1 - torch.tanh(z) ** 2) + g * z.roll(1, dims=1) + inside.roll(-1, dims=1)


@pytest.mark.parametrize(
    ("f", "exact", "transposable"),
    [(twice, True, True), (Once.apply, False, True), (lambda z: twice(z.detach()), False, False)],
)
def test_products_with_the_jacobian(f, exact, transposable):
    z, v, w = torch.randn(3, 4, 6, dtype=torch.float64)
    dense = torch.stack([torch.func.jacrev(lambda row: twice(row[None])[0])(row) for row in z])
    J = Jacobian(f, z, rows=[2, 0])
    assert (J.exact, J.transposable) == (exact, transposable)
    truth = torch.einsum("bij,bj->bi", dense, v)
    assert torch.allclose(J.forward(v[[2, 0]]), truth[[2, 0]], atol=1e-8)
    if transposable:
        truth = torch.einsum("bij,bi->bj", dense, w)
        assert torch.allclose(J.transposed(w[[2, 0]]), truth[[2, 0]], atol=1e-12)
