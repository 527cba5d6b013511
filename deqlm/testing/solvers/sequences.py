"""Recurrences along tokens: solved as the loop over tokens solves them, each row by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deqlm.testing.check import expect
from deqlm.testing.solvers.problems import normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Layout, Solution, Solve, Solver, Status, Stop

__all__ = ["recurrences_are_solved", "rows_of_sequences_keep_apart"]

TOKENS, GROUPS, WIDTH, ROWS = 19, 3, 2, 4
LAYOUT = Layout(leaves=((TOKENS, GROUPS, WIDTH),))
STOP = Stop(max_iter=3000, rtol=1e-5, per="token")
SHORT = STOP.replace(max_iter=120)


def recurrences_are_solved(solver: Solver) -> None:
    """Recurrences whose numbers see themselves, their group or all of the last token, are solved to the loop's answer.

    So is a map that sees the token itself too, in float32 and float64.
    """
    for name, f in _maps(_inputs()):
        truth = _looped(f, _start(torch.float64))
        for dtype, rtol, error in ((torch.float32, 1e-5, 1e-3), (torch.float64, 1e-11, 1e-8)):
            sol = _solve(solver, f, dtype, STOP.replace(rtol=rtol))
            expect(sol.converged.all(), "{} in {}: {}", name, dtype, sol.summary())
            worst = (sol.z.double() - truth).abs().max()
            expect(worst <= error * truth.abs().max(), "{} in {}: error {}", name, dtype, worst)


def rows_of_sequences_keep_apart(solver: Solver) -> None:
    """A row of a recurrence has the same bits alone, beside other rows and beside broken ones, which are told."""
    u, broken = _inputs(), torch.tensor([1])
    keep = torch.tensor([0, 2, 3])
    changes = [u.index_fill(0, broken, value) for value in (torch.nan, 1e30)]
    spoiled = [dict(_maps(changed)) for changed in changes]
    for name, f in _maps(u):
        plain = _solve(solver, f, torch.float64, SHORT)
        rarely = _solve(solver, f, torch.float64, SHORT.replace(check_every=3))
        assert_same_rows(plain, slice(None), rarely, slice(None))
        for maps in spoiled:
            assert_same_rows(plain, keep, _solve(solver, maps[name], torch.float64, SHORT), keep)
        lost = _solve(solver, spoiled[0][name], torch.float64, SHORT).status[1]
        expect(lost == Status.NONFINITE, "{}: a row of NaN ends {}", name, Status(int(lost)).name)
        alone = _solve(solver, dict(_maps(u[-1:]))[name], torch.float64, SHORT, rows=1)
        assert_same_rows(plain, slice(ROWS - 1, ROWS), alone, slice(0, 1))


def _inputs() -> Tensor:
    return normal(3, ROWS, TOKENS, GROUPS, WIDTH)


def _maps(u: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield maps on rows whose bits depend on no other row: no matrix products, and no function but quotients."""
    mixes: dict[str, Callable[[Tensor], Tensor]] = {
        "elementwise": lambda h: h,
        "groups": lambda h: 0.7 * h + 0.4 * h.roll(1, dims=3),
        "dense": lambda h: 0.7 * h + 0.2 * h.roll(1, dims=3) + 0.2 * h.roll(1, dims=2),
    }
    for name, mix in mixes.items():
        yield name, _recurrence(u, mix, own=0.0)
    yield "with itself", _recurrence(u, mixes["elementwise"], own=0.3)


def _recurrence(u: Tensor, mix: Callable[[Tensor], Tensor], own: float) -> Callable[[Tensor], Tensor]:
    def f(z: Tensor) -> Tensor:
        here = z.reshape(-1, TOKENS, GROUPS, WIDTH)
        last = torch.cat([torch.zeros_like(here[:, :1]), here[:, :-1]], dim=1)
        seen = mix(last) + own * here if own else mix(last)
        return (0.8 * seen / (1 + 0.2 * seen * seen) + u.to(z)).reshape(z.shape)

    return f


def _start(dtype: torch.dtype, rows: int = ROWS) -> Tensor:
    return torch.zeros(rows, TOKENS * GROUPS * WIDTH, dtype=dtype)


def _solve(solver: Solver, f: Callable[[Tensor], Tensor], dtype: torch.dtype, stop: Stop, rows: int = ROWS) -> Solution:
    return Solve(solver, stop)(f, _start(dtype, rows), LAYOUT)


def _looped(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return what a loop over tokens gives: every evaluation settles one more of them, up to what it sees of itself."""
    for _ in range(TOKENS + 60):
        z = f(z)
    return z
