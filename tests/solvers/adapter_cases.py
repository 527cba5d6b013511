"""Names, variants, a counting map and the check of honesty for the tests of adapters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deqlm_solvers import Solution, Stop
from deqlm_solvers.loop.criterion import SMALLEST

SCIPY_NONLIN = ("scipy.anderson", "scipy.broyden1", "scipy.broyden2", "scipy.krylov")
SCIPY = (*SCIPY_NONLIN, "scipy.hybr")
LEAST = {"torchdeq.fixed_point_iter": 1, "torchdeq.anderson": 3, "torchdeq.broyden": 2}
NAMES = (*SCIPY, *LEAST)
VARIANTS = [
    *({"name": name} for name in NAMES),
    {"name": "scipy.anderson", "memory": 1, "alpha": 1.0, "line_search": None},
    {"name": "scipy.anderson", "w0": 0.0, "line_search": "wolfe"},
    {"name": "scipy.broyden1", "alpha": 1.0, "max_rank": 4, "line_search": None},
    {"name": "scipy.broyden1", "max_rank": 4, "reduction_method": "svd", "line_search": "wolfe"},
    {"name": "scipy.broyden2", "max_rank": 4, "reduction_method": "simple"},
    *({"name": "scipy.krylov", "method": m} for m in ("gmres", "bicgstab", "cgs", "minres", "tfqmr")),
    {"name": "scipy.krylov", "line_search": None, "inner_maxiter": 5, "rdiff": 1e-6},
    {"name": "scipy.hybr", "band": (5, 5), "factor": 1.0},
    {"name": "torchdeq.fixed_point_iter", "tau": 0.5},
    {"name": "torchdeq.anderson", "memory": 2, "lam": 0.0, "tau": 0.5},
    {"name": "torchdeq.broyden", "memory": 3},
    {"name": "torchdeq.broyden", "line_search": True},
]

each = pytest.mark.parametrize("name", NAMES)
each_scipy = pytest.mark.parametrize("name", SCIPY)
each_torchdeq = pytest.mark.parametrize("name", list(LEAST))
each_variant = pytest.mark.parametrize("spec", VARIANTS, ids=lambda s: "-".join(map(str, s.values())))


class Counter:
    """The map of a test, with what its caller did."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.f = f
        self.calls = 0
        self.rows = 0
        self.points: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.rows += z.shape[0]
        self.points.append(z.clone())
        return self.f(z)


def linear(rho: float, dtype: torch.dtype = torch.float64, rows: int = 3, n: int = 6) -> tuple[Counter, Tensor]:
    """Return f(z) = A z + b with a symmetric A of spectral radius rho, and its fixed point in float64."""
    g = torch.Generator().manual_seed(7)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g))[0]
    a = (q * torch.linspace(-rho, rho, n, dtype=torch.float64)) @ q.T
    b = torch.randn(rows, n, dtype=torch.float64, generator=g)
    answer = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - a, b.T).T
    a, b = a.to(dtype), b.to(dtype)
    return Counter(lambda z: z @ a + b), answer


def check_honest(sol: Solution, f: Counter, stop: Stop) -> None:
    """Residual, counts and status of a solution agree with what f really did and does."""
    assert sol.cost.evaluations == f.calls <= stop.max_iter
    assert sol.cost.row_evaluations == f.rows
    assert (sol.steps == f.calls).all()
    fz = f.f(sol.z)
    residual = torch.linalg.vector_norm((fz - sol.z).double(), dim=1)
    residual = torch.where(residual.isfinite(), residual, torch.inf)
    size = torch.linalg.vector_norm(fz.double(), dim=1)
    eps = 4 * torch.finfo(sol.z.dtype).eps
    assert sol.residual.dtype == sol.relative.dtype == torch.float64
    assert sol.status.dtype == torch.int8
    torch.testing.assert_close(sol.residual, residual, rtol=eps, atol=0)
    torch.testing.assert_close(
        sol.relative, torch.where(size.isfinite(), residual / size.clamp(min=SMALLEST), torch.inf), rtol=8 * eps, atol=0
    )
    passing = residual <= stop.atol + stop.rtol * size
    assert torch.equal(sol.converged, passing)
    assert sol.residual_of == "z"
