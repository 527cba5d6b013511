"""What Newton along a sequence holds: the forecast, the cap, and what no machine can hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.problems import normal
from deqlm_solvers import Deer, Solve, forecast_solve
from deqlm_solvers.memory.meter import MemoryMeter
from solvers.test_deer import TIGHT, layout, on_rows, rnn, shifted


def steep(B: int, L: int, D: int) -> Callable[[Tensor], Tensor]:
    """Return a map whose derivative at the start, zero, is so large that the first step is damped."""
    u = normal(3, B, L, D)
    return on_rows(lambda z: 0.6 * shifted(z) / (shifted(z).square().mean(2, keepdim=True) + 1e-8).sqrt() + u, L, D)


def held(solve: Solve, f: Callable[[Tensor], Tensor], B: int, L: int, D: int, inside: bool) -> int:
    """Return the most bytes held during a solve, with or without what is born inside f."""
    meter = MemoryMeter()

    def outside(z: Tensor) -> Tensor:
        with meter._tracker.paused():
            return f(z)

    z0 = torch.zeros(B, L * D, dtype=torch.float64)
    with meter:
        solve(f if inside else outside, z0, layout(L, D))
    return meter.peak


@pytest.mark.slow
def test_the_forecast_is_near_what_is_held_and_the_cap_names_both():
    exact = Deer(colours=32, damping=0.0)
    for deer, B, L, D in ((Deer(colours=2), 1, 32, 16), (exact, 2, 32, 8), (exact.replace(lags=0), 1, 32, 8)):
        solve, f = Solve(deer, TIGHT.replace(rtol=1e-6)), steep(B, L, D) if deer.damping else rnn(B, L, D)
        told = forecast_solve(solve, B, L * D, torch.float64, layout=layout(L, D)).total
        assert told is not None
        solve(f, torch.zeros(B, L * D, dtype=torch.float64), layout(L, D))
        most = held(solve, f, B, L, D, inside=True)
        assert held(solve, f, B, L, D, inside=False) <= told
        assert told <= (1.2 if deer.damping else 1.0) * most
    with pytest.raises(MemoryError, match=r"64 tokens of width 8: \d+\.\d KiB is above memory_cap=97\.7 KiB"):
        Solve(Deer(memory_cap="100kB"), TIGHT)(rnn(1, 64, 8), torch.zeros(1, 512), layout(64, 8))
    assert Solve(Deer(colours=2, memory_cap="4MiB"), TIGHT)(rnn(1, 64, 8), torch.zeros(1, 512).double(), layout(64, 8))


def test_what_the_machine_cannot_hold_is_refused_with_numbers_and_a_way_out(monkeypatch):
    monkeypatch.setattr("deqlm_solvers.methods.deer.deer.installed_bytes", lambda device: 2**18)
    f, z0 = rnn(1, 64, 16, own=0.0), torch.zeros(1, 1024, dtype=torch.float64)
    with pytest.raises(
        MemoryError, match=r"64 tokens of width 16: .* KiB is above what the machine has, 256\.0 KiB; use st"
    ):
        Solve(Deer(), TIGHT)(f, z0, layout(64, 16))
    assert Solve(Deer(structure="diagonal"), TIGHT)(f, z0, layout(64, 16)).converged.all()
