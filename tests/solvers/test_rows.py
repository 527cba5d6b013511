"""A row's answer never depends on its neighbours, whatever the options (numerics 7)."""

from __future__ import annotations

import pytest
import torch

from deqlm.testing.solvers.problems import exact_rows, normal
from deqlm.testing.solvers.rows import (
    alone_agrees_with_blas,
    alone_is_together,
    assert_same_rows,
    neighbours_do_not_matter,
)
from deqlm_solvers import Anderson, Broyden, FixedPoint, Layout, Solve, Status, Stop
from solvers.problems import parity_chain

SOLVERS = {
    "damped": FixedPoint(damping=0.7, first_damping=1.0),
    "anderson_1": Anderson(memory=1),
    "anderson_3_damped": Anderson(memory=3, damping=0.7),
    "anderson_25": Anderson(memory=25),
    "broyden_1": Broyden(memory=1),
    "broyden_bad": Broyden(memory=5, update="bad"),
    "broyden_armijo": Broyden(line_search="armijo"),
    "broyden_bad_armijo": Broyden(memory=4, update="bad", line_search="armijo", damping=0.7),
}
each = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@each
def test_neighbours_do_not_matter(solver):
    neighbours_do_not_matter(solver)


@each
def test_alone_is_together(solver):
    alone_is_together(solver)


@each
def test_alone_agrees_where_f_uses_blas(solver):
    alone_agrees_with_blas(solver)


@each
def test_the_order_of_rows_does_not_matter(solver):
    b = normal(1, 5, 9)
    gain = torch.tensor([[0.9], [0.3], [0.95], [0.6], [0.8]], dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 2, 1])
    stop = Stop(max_iter=200, rtol=1e-6)
    plain = Solve(solver, stop)(exact_rows(b, gain), torch.zeros_like(b))
    turned = Solve(solver, stop)(exact_rows(b[order], gain[order]), torch.zeros_like(b))
    assert_same_rows(plain, order, turned, slice(None))


@each
def test_one_hard_row_costs_the_others_no_steps(solver):
    b = normal(1, 8, 6)
    gain = torch.full((8, 1), 0.5, dtype=torch.float64)
    stop = Stop(max_iter=300, rtol=1e-6)
    easy = Solve(solver, stop)(exact_rows(b, gain), torch.zeros_like(b))
    gain[2] = 0.999
    hard = Solve(solver, stop)(exact_rows(b, gain), torch.zeros_like(b))
    others = [0, 1, 3, 4, 5, 6, 7]
    assert_same_rows(easy, others, hard, others)
    assert hard.converged[2]


@pytest.mark.parametrize("name", ["fixed_point", "anderson", "broyden"])
@pytest.mark.parametrize(
    "fields", [{"per": "token"}, {"per": "leaf"}, {"norm": "rms"}, {"per": "token", "patience": 8}]
)
def test_every_measure_keeps_rows_apart(name, fields):
    b = normal(1, 4, 12)
    gain = torch.tensor([[0.9], [0.3], [0.95], [0.6]], dtype=torch.float64)
    leaves = ((6, 2),) if fields.get("per") == "token" else ((6,), (3, 2))
    layout = Layout(leaves=leaves)
    stop = Stop(max_iter=200, rtol=1e-6, **fields)
    plain = Solve(name, stop)(exact_rows(b, gain), torch.zeros_like(b), layout)
    for bad in (torch.nan, 1e20):
        other = b.clone()
        other[[0, 2]] = bad
        changed = Solve(name, stop)(exact_rows(other, gain), torch.zeros_like(b), layout)
        assert_same_rows(plain, [1, 3], changed, [1, 3])
        if plain.token_steps is not None:
            assert torch.equal(plain.token_steps[[1, 3]], changed.token_steps[[1, 3]])
    alone = Solve(name, stop)(exact_rows(b[1:2], gain[1:2]), torch.zeros_like(b[:1]), layout)
    assert_same_rows(plain, [1], alone, [0])


@pytest.mark.parametrize("name", ["fixed_point", "anderson", "broyden"])
def test_the_loop_ends_when_the_lost_rows_are_lost(name):
    """torchdeq: one NaN sample keeps the whole batch running to max_iter (its defect 7)."""
    b = normal(1, 4, 6)
    b[1] = torch.nan
    gain = torch.full((4, 1), 0.5, dtype=torch.float64)
    sol = Solve(name, Stop(max_iter=500))(exact_rows(b, gain), torch.zeros_like(b))
    assert sol.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
    assert sol.cost.evaluations == sol.steps.max() < 60
    assert sol.steps[1] == 1


def test_best_f_does_not_freeze_but_keeps_rows_apart():
    """Its rows stop together; the answer of each is still its own best."""
    f, truth = parity_chain(3, 8)
    sol = Solve(FixedPoint(), Stop(max_iter=20, keep="best_f"))(f, torch.zeros_like(truth))
    assert torch.equal(sol.z, truth)
    assert (sol.steps == sol.steps[0]).all()
