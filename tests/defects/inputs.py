"""Shapes, dtypes, trees and maps that break the contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from defects.maps import F64
from deqlm import Stop
from deqlm.testing.solvers.counting import Counted

SOLVERS = ("fixed_point", "anderson", "broyden")
PEERS = ("fixed_point_iter", "anderson", "broyden")


def ours_keeps_a_0d_state_0d() -> None:
    for solver in SOLVERS:
        sol = deqlm.solve(torch.cos, torch.tensor(1.0, dtype=F64), solver=solver, stop=Stop(rtol=1e-10))
        assert sol.z.shape == sol.steps.shape == ()
        assert abs(sol.z.item() - 0.7390851332151607) < 1e-9


def theirs_changes_the_shape_of_a_0d_state() -> None:
    from defects import peer

    for name in PEERS:
        z, _ = peer.run(name, torch.cos, torch.tensor(1.0))
        assert z.shape == (1,)


ROTATION = 0.9 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)


def coupled(z: Tensor) -> Tensor:
    return ROTATION @ z + 1


def ours_asks_what_a_1d_state_means() -> None:
    z0 = torch.zeros(2, dtype=F64)
    with pytest.raises(ValueError, match=r"batch_dims .* 0 for one problem .* 1 for N scalar problems"):
        deqlm.solve(coupled, z0)
    truth = torch.linalg.solve(torch.eye(2, dtype=F64) - ROTATION, torch.ones(2, dtype=F64))
    for solver in ("anderson", "broyden"):
        sol = deqlm.solve(coupled, z0, batch_dims=0, solver=solver, stop=Stop(rtol=1e-9))
        assert sol.converged.shape == ()
        assert int(sol.steps) <= 8
        torch.testing.assert_close(sol.z, truth, rtol=1e-8, atol=1e-8)


def theirs_takes_a_1d_state_for_scalar_problems() -> None:
    from defects import peer

    entries, row = Counted(coupled), Counted(lambda z: z @ ROTATION.T + 1)
    _, as_entries = peer.run("broyden", entries, torch.zeros(2, dtype=F64), max_iter=60, tol=1e-5)
    _, as_row = peer.run("broyden", row, torch.zeros(1, 2, dtype=F64), max_iter=60, tol=1e-5)
    assert as_entries["abs_lowest"].shape == (2,)
    assert (as_entries["abs_lowest"] > 1e-3).all()
    assert row.calls < 10
    assert (as_row["abs_lowest"] < 1e-5).all()


def ours_names_an_integer_start_and_solves_no_rows() -> None:
    for solver in SOLVERS:
        with pytest.raises(ValueError, match=r"z0 must be floating point or complex.*float\(\)"):
            deqlm.solve(lambda z: z // 2, torch.ones(2, 3, dtype=torch.int64), solver=solver)
        sol = deqlm.solve(lambda z: z / 2, torch.ones(0, 3), solver=solver)
        assert sol.z.shape == (0, 3)


def theirs_fails_obscurely_on_integers_and_on_no_rows() -> None:
    from defects import peer

    for name in ("anderson", "broyden"):
        with pytest.raises(RuntimeError, match=r"linalg\."):
            peer.run(name, lambda z: z // 2, torch.ones(2, 3, dtype=torch.int64))
    for name in PEERS:
        with pytest.raises(RuntimeError, match=r"max\(\)"):
            peer.run(name, lambda z: z / 2, torch.ones(0, 3))


def two_leaves(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return 0.5 * z[0] + 1, 0.25 * z[1] + 1


def ours_keeps_dtype_and_shape_of_every_leaf() -> None:
    sol = deqlm.solve(two_leaves, (torch.zeros(2, 3), torch.zeros(2, dtype=F64)), stop=Stop(rtol=1e-6), batch_dims=1)
    a, b = sol.z
    assert (a.dtype, b.dtype, a.shape, b.shape) == (torch.float32, F64, (2, 3), (2,))
    torch.testing.assert_close(a, torch.full((2, 3), 2.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(b, torch.full((2,), 4 / 3, dtype=F64), rtol=1e-5, atol=0)
    named = deqlm.solve(lambda z: {"a": 0.5 * z["a"] + 1}, {"a": torch.zeros(2, 3)})
    assert named.converged.all()


def theirs_changes_dtypes_and_refuses_dicts() -> None:
    from defects import peer

    z0 = [torch.zeros(2, 3), torch.zeros(2, 2, dtype=F64)]
    a, b = peer.point(peer.deq(), lambda a, b: list(two_leaves((a, b))), z0)
    assert (a.dtype, b.dtype) == (F64, F64)
    with pytest.raises(AssertionError):
        peer.point(peer.deq(), lambda a: {"a": a}, {"a": torch.zeros(2, 3)})


def in_place(z: Tensor) -> Tensor:
    return z.mul_(0.5).add_(1)


def ours_finds_work_in_place() -> None:
    for solver in SOLVERS:
        z0 = torch.zeros(1, 2)
        with pytest.raises(ValueError, match="in place"):
            deqlm.solve(in_place, z0, solver=solver)
        assert (z0 == 0).all()


def theirs_stops_at_once_on_work_in_place() -> None:
    from defects import peer

    for name in PEERS:
        z, info = peer.run(name, in_place, torch.zeros(1, 2))
        assert info["abs_lowest"].item() == 0, "reported as solved"
        assert (z - 2).abs().min() >= 0.25, "the solution is 2"


def narrow(z: Tensor) -> Tensor:
    return 0.5 * z[:1] + torch.ones_like(z[:1])


def ours_refuses_another_shape() -> None:
    for solver in SOLVERS:
        with pytest.raises(ValueError, match=r"the shape of f\(z\) must be that of z, \(3, 2\), got \(1, 2\)"):
            deqlm.solve(narrow, torch.zeros(3, 2), solver=solver)


def theirs_broadcasts_another_shape() -> None:
    from defects import peer

    z, info = peer.run("fixed_point_iter", narrow, torch.tensor([[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]]))
    assert z.shape == (3, 2)
    assert (info["abs_lowest"] < 1e-3).all(), "reported as solved for three rows, of which f saw one"
