"""Broyden's method: giving up, limited memory, line search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import deqlm
from defects.maps import F64, residual, symmetric
from deqlm import Broyden, Stop

F32 = torch.float32


def ours_does_not_give_up_on_a_single_row() -> None:
    f, z0, _ = symmetric(64, 0.99, 1)
    for tol in (1e-2, 1e-4, 1e-6):
        sol = deqlm.solve(f, z0, solver="broyden", stop=Stop(max_iter=300, rtol=0, atol=tol))
        assert sol.converged.all()
        assert residual(f, sol.z).max() <= tol


def theirs_gives_up_on_a_single_row() -> None:
    """With B = 1 its "no progress" always holds: it ends at the first step beyond 30 whose residual is under 3 tol."""
    from defects import peer

    f, z0, _ = symmetric(64, 0.99, 1)
    _, free = peer.run("broyden", f, z0, max_iter=120, tol=0.0)
    curve = free["abs_trace"][0].tolist()
    tol = min(curve[1:33]) / 2
    z, info = peer.run("broyden", f, z0, max_iter=120, tol=tol)
    assert 30 < int(info["nstep"]) < 120
    assert residual(f, z).item() > 1.2 * tol
    assert min(curve) < tol, "it would have got there"


def ours_drops_old_pairs_exactly() -> None:
    f, z0, _ = symmetric(64, 0.95, 4, F32)
    sol = deqlm.solve(f, z0, solver=Broyden(memory=4), stop=Stop(max_iter=400, rtol=1e-5))
    assert sol.converged.all()
    assert residual(f, sol.z).isfinite().all()


def theirs_ends_in_nan_with_limited_memory() -> None:
    from defects import peer

    f, z0, _ = symmetric(64, 0.95, 4, F32)
    _, whole = peer.run("broyden", f, z0, max_iter=200, tol=1e-5, stop_mode="rel")
    _, limited = peer.run("broyden", f, z0, max_iter=200, tol=1e-5, stop_mode="rel", LBFGS_thres=4)
    assert (whole["rel_lowest"] < 1e-5).all()
    assert not limited["rel_lowest"].isfinite().all()


def mild_and_wild() -> tuple[Tensor, Tensor]:
    """Return W (2, 4, 4) and b (2, 4) of a contraction and of a map on which the search shortens the step."""
    W = torch.randn(2, 4, 4, dtype=F64) * torch.tensor([0.4, 3.0], dtype=F64)[:, None, None]
    return W, torch.randn(2, 4, dtype=F64)


def rowwise(z: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return tanh(W z + b) by sums whose bits do not depend on the batch."""
    return torch.tanh((W * z[:, None, :]).sum(-1) + b)


def ours_searches_row_by_row() -> None:
    W, b = mild_and_wild()
    stop = Stop(max_iter=60, rtol=1e-9)

    def solved(rows: slice) -> deqlm.Solution:
        z0 = torch.zeros_like(b[rows])
        solver = Broyden(line_search="armijo")
        return deqlm.solve(rowwise, z0, args=(W[rows], b[rows]), solver=solver, stop=stop, on_failure="ignore")

    alone, together = solved(slice(0, 1)), solved(slice(0, 2))
    assert torch.equal(alone.z[0], together.z[0])
    assert int(alone.steps[0]) == int(together.steps[0])


def theirs_searches_for_the_whole_batch() -> None:
    from defects import peer

    W, b = mild_and_wild()

    def solved(rows: slice) -> Tensor:
        z0 = torch.zeros_like(b[rows])
        options = {"max_iter": 2, "tol": 1e-9, "ls": True, "return_final": True}
        return peer.run("broyden", lambda z: rowwise(z, W[rows], b[rows]), z0, **options)[0]

    assert not math.isclose(solved(slice(0, 1))[0, 0], solved(slice(0, 2))[0, 0], rel_tol=1e-3)
