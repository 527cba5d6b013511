"""Anderson's method: ridge, first steps, window of one, complex states, half precision, singular rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqlm
from defects.maps import F64, Map, distance, relative, residual, symmetric, tanh_map
from deqlm import Anderson, Stop
from deqlm.testing.solvers.counting import Counted

F32 = torch.float32
EASY = Stop(max_iter=500, rtol=1e-5)


def easy_maps() -> list[tuple[Map, Tensor]]:
    linear = [symmetric(64, radius, 4, F32)[:2] for radius in (0.5, 0.9)]
    return linear + [tanh_map(64, size, 4, F32) for size in (0.5, 0.9)]


def ours_is_no_slower_than_plain_iteration() -> None:
    for f, z0 in easy_maps():
        plain = deqlm.solve(f, z0, solver="fixed_point", stop=EASY)
        sol = deqlm.solve(f, z0, solver="anderson", stop=EASY)
        assert relative(f, sol.z).max() <= 1.05e-5
        assert int(sol.steps.max()) <= int(plain.steps.max())


def theirs_is_slower_than_plain_iteration() -> None:
    from defects import peer

    for f, z0 in easy_maps():
        plain, mixed = Counted(f), Counted(f)
        peer.run("fixed_point_iter", plain, z0, max_iter=500, tol=1e-5, stop_mode="rel")
        peer.run("anderson", mixed, z0, max_iter=500, tol=1e-5, stop_mode="rel")
        assert mixed.calls > 1.2 * plain.calls


def ours_uses_one_and_two_evaluations() -> None:
    f, z0, _ = symmetric(8, 0.5, 3)
    for most, want in ((1, z0), (2, f(z0))):
        with torch.no_grad():
            sol = deqlm.solve(f, z0, solver="anderson", stop=Stop(max_iter=most), on_failure="ignore")
        assert sol.cost.evaluations == most
        torch.testing.assert_close(sol.z, want)
        torch.testing.assert_close(sol.residual, residual(f, want))


def theirs_returns_the_start_with_residual_1e8() -> None:
    from defects import peer

    f, z0, _ = symmetric(8, 0.5, 3)
    for most in (1, 2):
        counted = Counted(f)
        z, info = peer.run("anderson", counted, z0, max_iter=most)
        assert counted.calls == 2
        assert torch.equal(z, z0)
        assert (info["abs_lowest"] == 1e8).all()


def ours_needs_one_evaluation_at_the_solution() -> None:
    with torch.no_grad():
        sol = deqlm.solve(lambda z: 0.5 * z + 1, torch.full((2, 3), 2.0), solver="anderson")
    assert sol.converged.all()
    assert sol.cost.evaluations == 1


def theirs_needs_three_evaluations_at_the_solution() -> None:
    from defects import peer

    counted = Counted(lambda z: 0.5 * z + 1)
    peer.run("anderson", counted, torch.full((2, 3), 2.0))
    assert counted.calls == 3


def ours_takes_a_window_of_one() -> None:
    f, z0, truth = symmetric(8, 0.8, 3)
    sharp = Stop(max_iter=300, rtol=1e-10)
    for damping in (1.0, 0.5):
        plain = deqlm.solve(f, z0, solver=deqlm.FixedPoint(damping=damping), stop=sharp)
        sol = deqlm.solve(f, z0, solver=Anderson(memory=1, damping=damping), stop=sharp)
        assert distance(sol.z, truth) < 1e-9
        assert torch.equal(sol.steps, plain.steps)


def theirs_fails_with_a_window_of_one() -> None:
    from defects import peer

    f, z0, _ = symmetric(8, 0.8, 3)
    with pytest.raises(IndexError):
        peer.run("anderson", f, z0, m=1)


def complex_map() -> tuple[Map, Tensor, Tensor]:
    """Return z -> -.9 z + (1, i): every residual g is a multiple of (1, i), so g^T g = 0 while g^H g is not."""
    b = torch.tensor([[1.0, 1.0j]], dtype=torch.complex64)
    return lambda z: -0.9 * z + b, torch.zeros_like(b), b / 1.9


def ours_takes_complex_states_as_pairs_of_reals() -> None:
    f, z0, truth = complex_map()
    sol = deqlm.solve(f, z0, solver="anderson", stop=Stop(rtol=1e-5))
    assert sol.z.dtype == torch.complex64
    torch.testing.assert_close(sol.z, truth, rtol=1e-4, atol=1e-5)
    assert int(sol.steps.max()) <= 4


def theirs_forgets_the_conjugate() -> None:
    from defects import peer

    f, z0, _ = complex_map()
    counted, real = Counted(f), Counted(lambda z: -0.9 * z + 1)
    peer.run("anderson", counted, z0, tol=1e-4, max_iter=100, lam=1e-8)
    peer.run("anderson", real, torch.zeros(1, 2), tol=1e-4, max_iter=100, lam=1e-8)
    assert real.calls <= 4
    assert counted.calls > 20


def ours_takes_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for solver in ("fixed_point", "anderson", "broyden"):
            f, z0, truth = symmetric(16, 0.5, 4, dtype)
            sol = deqlm.solve(f, z0, solver=solver, stop=Stop(rtol=1e-2))
            assert sol.z.dtype == dtype
            assert sol.converged.all()
            assert relative(f, sol.z).max() <= 1.05e-2
            # 1 / (1 - rho) = 2 times the tolerance, and the rounding of A and b
            assert distance(sol.z, truth) < 0.03


def theirs_has_no_factorisation_in_half_precision() -> None:
    from defects import peer

    for dtype in (torch.bfloat16, torch.float16):
        f, z0, _ = symmetric(16, 0.5, 4, dtype)
        with pytest.raises((NotImplementedError, RuntimeError), match="lu_cpu"):
            peer.run("anderson", f, z0, tol=1e-2, stop_mode="rel")


def constant_beside_slow(z: Tensor) -> Tensor:
    """Row 0 is constant, so its differences are singular from the second step on; row 1 is linear."""
    spectrum = torch.tensor([0.1, 0.5, 0.9, -0.7], dtype=z.dtype)
    return torch.stack([torch.ones_like(z[0]), spectrum * z[1] + 1])


def ours_keeps_a_singular_row_to_itself() -> None:
    z0 = torch.zeros(2, 4, dtype=F64)
    for solver in (Anderson(), Anderson(ridge=0.0)):
        sol = deqlm.solve(constant_beside_slow, z0, solver=solver, stop=Stop(rtol=1e-9))
        assert sol.converged.all()
        assert int(sol.steps[0]) == 2
        truth = torch.stack([torch.ones(4, dtype=F64), 1 / torch.tensor([0.9, 0.5, 0.1, 1.7], dtype=F64)])
        torch.testing.assert_close(sol.z, truth, rtol=1e-6, atol=1e-7)


def theirs_fails_for_all_rows_when_one_is_singular() -> None:
    from defects import peer

    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        peer.run("anderson", constant_beside_slow, torch.zeros(2, 4, dtype=F64), lam=0.0)
