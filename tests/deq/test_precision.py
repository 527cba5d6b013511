"""Autocast and states of several dtypes: whose precision is used where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import deqlm
from deqlm import Stop


class Products(TorchDispatchMode):
    """Collects the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if "bmm" in str(func):
            self.dtypes.add(out.dtype)
        return out


@pytest.mark.parametrize("solver", [deqlm.Anderson(impl="torch"), deqlm.Broyden(impl="torch")])
def test_the_algebra_of_a_solver_is_not_autocast(solver: deqlm.Solver) -> None:
    A = 0.5 * torch.eye(8)
    inside = []

    def f(z: Tensor) -> Tensor:
        inside.append(torch.is_autocast_enabled("cpu"))
        return z @ A + 1

    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        deqlm.solve(f, torch.zeros(2, 8), solver=solver, stop=Stop(rtol=2e-2), on_failure="ignore")
    assert all(inside)
    assert products.dtypes == {torch.float32}


def test_a_tolerance_below_the_precision_of_autocast_warns() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="below what bfloat16 resolves"):
        deqlm.solve(lambda z: 0.5 * z + 1, torch.zeros(2, 3), on_failure="ignore")


def test_leaves_of_several_dtypes_are_tested_as_they_are_returned() -> None:
    gain = torch.linspace(-0.9, 0.9, 8)

    def f(state: dict[str, Tensor]) -> dict[str, Tensor]:
        a, b = state["a"], state["b"]
        return {"a": torch.tanh(gain * a + b.float()), "b": (0.7 * b.float() + 0.3 * a + 0.2).bfloat16()}

    start = {"a": torch.zeros(50, 8), "b": torch.randn(50, 8).bfloat16()}
    sol = deqlm.solve(f, start, stop=Stop(rtol=6e-3, max_iter=200), on_failure="ignore")
    image = f(sol.z)
    r = torch.cat([(image[k].double() - sol.z[k].double()) for k in "ab"], dim=1).norm(dim=1)
    size = torch.cat([image[k].double() for k in "ab"], dim=1).norm(dim=1)
    assert sol.converged.any()
    torch.testing.assert_close(sol.residual, r, rtol=1e-6, atol=1e-12)
    assert (r[sol.converged] <= 6e-3 * size[sol.converged] * (1 + 1e-6)).all()
