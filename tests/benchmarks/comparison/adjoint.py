"""The backward solve against torchdeq's implicit differentiation, at an equal true residual of the adjoint."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import deqlm
from benchmarks.comparison.maps import SpeedMap, block_map, radius, symmetric
from benchmarks.comparison.timing import interleaved
from deqlm.comparison.truth import jacobians
from deqlm_solvers import Anderson, Solve, Stop

__all__ = ["adjoint_maps", "measure_adjoint"]

F64 = torch.float64
SLOW = "rho .99: tanh of a symmetric weight, N=64 B=32"
TOLERANCES = {SLOW: 1e-5}
"""Of the adjoint, relative to its right-hand side, per row: 1e-6, but what float32 can reach where w is long."""

MOST = 3000
LARGEST_DENSE = 1024
"""Unknowns up to which the exact adjoint is a dense solve."""

PEER_SOLVERS = ("fixed_point_iter", "anderson", "broyden")
TIGHTER = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


def adjoint_maps(seed: int = 0) -> Iterator[SpeedMap]:
    """Yield the maps on which backward is timed, float32.

    Examples:
        >>> [m.name for m in adjoint_maps()][0]
        'small f: tanh rho .9, N=64 B=32'
    """
    g = torch.Generator().manual_seed(seed + 2)
    w = torch.randn(64, 64, generator=g, dtype=F64)
    b = torch.randn(32, 64, generator=g, dtype=F64)
    # near the origin tanh is nearly the identity, so the adjoint is as slow as the weight's radius says
    for name, weight, size in (
        ("small f: tanh rho .9, N=64 B=32", w * (0.9 / radius(w)), 0.3),
        (SLOW, symmetric(w, 0.99), 0.01),
    ):
        rows = (size * b).float()
        yield SpeedMap(name, "", "tanh", (weight.T.contiguous().float(),), (rows,), torch.zeros(32, 64))
    m = block_map(torch.randn(8, 64, 128, generator=g, dtype=F64), torch.float32, seed)
    name = "transformer layer, B=8 L=64 D=128"
    yield SpeedMap(name, "", m.kind, m.shared, m.args, m.z0)


def measure_adjoint(
    maps: list[SpeedMap] | None = None, rounds: int = 9, step: Callable[[str], None] = lambda name: None
) -> list[dict[str, Any]]:
    """Return a record per map: per contender the time of forward and backward, true residual and error of the adjoint.

    Forward starts at the fixed point, so that everybody has one Jacobian and backward can be told from forward. An
    input is added to f, whose gradient is the adjoint w; its true residual ||J^T w + g - w|| / ||g|| and its error
    are taken in float64. torchdeq is given the tolerance that brings its adjoint to ours, and the backward solver of
    its three that is fastest.

    Args:
        maps: what to differentiate; None takes `adjoint_maps`.
        rounds: interleaved timed rounds.
        step: told the name of each map before it is measured.
    """
    records = []
    for m in list(adjoint_maps()) if maps is None else maps:
        step(m.name)
        subject = _Subject(m)
        entries = [_entry("deqlm, implicit (default)", subject, subject.ours, subject.tol)]
        if _has_torchdeq():
            entries.append(_entry("torchdeq ift, default", subject, subject.theirs, 1e-6))
            entries += [_tightened(subject, name) for name in PEER_SOLVERS]
        ready = [entry for entry in entries if not entry["message"]]
        calls = [call for entry in ready for call in (entry["run"], entry["forward"])]
        taken = [statistics.median(seconds) for seconds in interleaved(calls, rounds)]
        for i, entry in enumerate(ready):
            both, forward = taken[2 * i : 2 * i + 2]
            entry["forward_ms"], entry["backward_ms"] = 1e3 * forward, 1e3 * (both - forward)
        for entry in entries:
            del entry["run"], entry["forward"]
        records.append(
            {
                "map": m.name,
                "rows": m.z0.shape[0],
                "unknowns": m.z0.shape[1],
                "tol": subject.tol,
                "truth": "dense solve" if m.z0.shape[1] <= LARGEST_DENSE else "iterative solve to 1e-12",
                "entries": entries,
            }
        )
    return records


class _Subject:
    """A map at its fixed point with a cotangent of unit rows, and the exact adjoint."""

    def __init__(self, m: SpeedMap) -> None:
        exact = m.exact()
        deep = Solve(Anderson(memory=25), Stop(max_iter=MOST, rtol=1e-13, atol=1e-15))
        self.z64 = deep(exact, m.z0.double()).z
        self.z0 = self.z64.float()
        self.map, self.exact = m, exact
        self.tol = TOLERANCES.get(m.name, 1e-6)
        g = torch.randn(m.z0.shape, generator=torch.Generator().manual_seed(9), dtype=F64)
        self.g64 = g / torch.linalg.vector_norm(g, dim=1, keepdim=True)
        self.g = self.g64.float()
        self.u = torch.zeros_like(self.z0, requires_grad=True)
        self.truth = self._truth()
        self.vjps = 0

    def f(self, z: Tensor) -> Tensor:
        """The map with an input added; the gradient of that input is the adjoint."""
        return self.map.closed(z) + self.u

    def residual(self, w: Tensor) -> float:
        """Return the largest ||J^T w + g - w|| / ||g|| over rows, float64."""
        w = w.double()
        return torch.linalg.vector_norm(self._transposed(w) + self.g64 - w, dim=1).max().item()

    def error(self, w: Tensor) -> float:
        """Return ||w - truth|| / ||truth||."""
        return ((w.double() - self.truth).norm() / self.truth.norm()).item()

    def ours(self, backward: bool = True) -> Tensor | None:
        """Forward and backward of `deqlm.solve` with its defaults."""
        sol = deqlm.solve(
            self.f,
            self.z0,
            stop=Stop(max_iter=50, rtol=1e-5),
            gradient=deqlm.Implicit(solve=Solve(Anderson(), Stop(max_iter=MOST, rtol=self.tol))),
            on_failure="ignore",
        )
        return torch.autograd.grad(sol.z, self.u, self.g)[0] if backward else None

    def theirs(
        self, solver: str = "fixed_point_iter", tol: float = 1e-6, most: int = 40, backward: bool = True
    ) -> Tensor | None:
        """Forward and backward of torchdeq; the defaults are its own."""
        from torchdeq import get_deq

        deq = get_deq(
            ift=True, f_solver="fixed_point_iter", f_max_iter=50, f_tol=1e-5, f_stop_mode="rel",
            b_solver=solver, b_max_iter=most, b_tol=tol,
        )  # fmt: skip
        z, _ = deq(self.f, self.z0)
        return torch.autograd.grad(z[-1], self.u, self.g)[0] if backward else None

    def _transposed(self, w: Tensor) -> Tensor:
        with torch.enable_grad():
            z = self.z64.requires_grad_()
            (jtw,) = torch.autograd.grad(self.exact(z), z, w)
        return jtw

    def _truth(self) -> Tensor:
        unknowns = self.z64.shape[1]
        if unknowns <= LARGEST_DENSE:
            system = torch.eye(unknowns, dtype=F64) - jacobians(self.exact, self.z64).mT
            return torch.linalg.solve(system, self.g64[:, :, None])[:, :, 0]
        deep = Solve(Anderson(memory=25), Stop(max_iter=MOST, rtol=1e-12))
        return deep(lambda w: self._transposed(w) + self.g64, self.g64).z


def _entry(label: str, subject: _Subject, run: Callable[..., Tensor | None], tol: float) -> dict[str, Any]:
    entry: dict[str, Any] = {"gradient": label, "tol": tol, "message": ""}
    entry["run"] = run
    entry["forward"] = (lambda: subject.ours(backward=False)) if label.startswith("deqlm") else (
        lambda: subject.theirs(backward=False)
    )  # fmt: skip
    try:
        w = run()
        assert w is not None
    except Exception as error:  # a peer may raise anything
        entry.update(message=f"{type(error).__name__}: {str(error).splitlines()[0]}", residual=None, error=None)
        return entry
    entry["residual"], entry["error"] = subject.residual(w), subject.error(w)
    entry["reaches"] = entry["residual"] <= 1.05 * subject.tol
    return entry


def _tightened(subject: _Subject, solver: str) -> dict[str, Any]:
    """Return torchdeq with a backward solver and the loosest tolerance that brings its adjoint to ours."""
    entry: dict[str, Any] = {}
    for factor in TIGHTER:
        tol = factor * subject.tol
        run = lambda tol=tol: subject.theirs(solver, tol, 1000)  # noqa: E731
        entry = _entry(f"torchdeq ift, {solver}, converged", subject, run, tol)
        if entry["message"] or entry["reaches"]:
            break
    return entry


def _has_torchdeq() -> bool:
    try:
        import torchdeq  # noqa: F401
    except ImportError:
        return False
    return True
