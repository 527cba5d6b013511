"""The bracket: it solves whatever changes its sign in reach, and says where it does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqlm_solvers import Bracket, Solve, Status, Stop

F64 = torch.float64


def roots(F, z0, **stop):
    """Return the solution of F(z) = 0 from starts z0, (B, 1)."""
    start = torch.tensor(z0, dtype=F64).reshape(-1, 1)
    return Solve(Bracket(), Stop(**{"rtol": 0.0, "atol": 1e-10, "max_iter": 200, **stop}))(lambda z: z - F(z), start)


@given(
    root=st.floats(-1e3, 1e3),
    slope=st.floats(0.01, 50) | st.floats(-50, -0.01),
    bend=st.floats(0, 3),
    start=st.floats(-1e3, 1e3),
)
def test_any_monotone_function_is_solved_whether_its_root_attracts_or_repels(root, slope, bend, start):
    sol = roots(lambda z: slope * ((z - root) + bend * torch.tanh(z - root)), [start], rtol=1e-9)
    assert sol.converged.all()
    assert sol.z.item() == pytest.approx(root, abs=1e-5 + 1e-6 * abs(root) / abs(slope))


def test_each_unknown_of_each_row_has_its_own_bracket():
    root = torch.tensor([[1.0, -2.0, 300.0], [1e-3, 5.0, -7.0]], dtype=F64)
    sol = Solve(Bracket(), Stop(rtol=1e-12, max_iter=100))(lambda z: z + torch.tanh(z - root), 0 * root)
    torch.testing.assert_close(sol.z, root, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("F", "start", "root", "near"),
    [
        (lambda z: z**3 - 2 * z - 5, 0.0, 2.0945514815423265, 1e-8),
        (lambda z: torch.cos(z) - z, 0.0, 0.7390851332151607, 1e-8),
        (lambda z: torch.exp(z) / 1e6 - 1, 0.0, 13.815510557964274, 1e-8),
        (lambda z: (z - 1) ** 9, 3.0, 1.0, 0.06),
        (lambda z: torch.where(z < -1, torch.nan, torch.sqrt(z + 1) - 2), 0.0, 3.0, 1e-8),
        (lambda z: z * torch.exp(-(z**2)), 0.7, 0.0, 1e-8),
        (lambda z: 0 * z, 4.0, 4.0, 0.0),
    ],
)
def test_known_roots(F, start, root, near):
    sol = roots(F, [start], atol=1e-12)
    assert sol.converged.all()
    assert sol.z.item() == pytest.approx(root, abs=near)


def test_it_takes_fewer_evaluations_than_bisection():
    assert roots(lambda z: z**3 - 2 * z - 5, [2.0], atol=1e-13).steps.item() < 20


def test_a_jump_is_no_root_and_is_told():
    sol = roots(lambda z: torch.where(z > 1.3, 1.0, -1.0).to(z), [0.0], max_iter=100)
    assert sol.status.tolist() == [Status.MAX_ITER]
    assert sol.z.item() == pytest.approx(1.3, abs=1e-6) or sol.residual.item() == 1.0


def test_a_function_without_a_root_is_told():
    sol = roots(lambda z: z**2 + 1, [0.5], max_iter=60)
    assert sol.failed.all()


def test_rows_of_other_lengths_and_a_bad_row_do_not_matter():
    start = torch.tensor([[0.0], [torch.nan], [3.0]], dtype=F64)
    sol = Solve(Bracket(), Stop(rtol=1e-10))(lambda z: torch.cos(z), start)
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert sol.z[0].item() == pytest.approx(sol.z[2].item(), abs=1e-8)
