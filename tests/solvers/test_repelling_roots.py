"""Anderson leaves roots that repel, whose scale vanishes with the residual, so that no relative tolerance can pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import exact_rows, normal
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm_solvers import Anderson, FixedPoint, Layout, Solve, Stop
from deqlm_solvers.methods.plain_phase import LONGEST_WAY, PlainPhase
from deqlm_solvers.native import library

F64 = torch.float64
IMPLS = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(library.load().library is None, reason="not built"))]
impls = pytest.mark.parametrize("impl", IMPLS)


def start(size: float, rows: int, unknowns: int) -> Tensor:
    return size * normal(7, rows, unknowns).float()


MAPS = {
    "tanh": (lambda z: torch.tanh(2 * z), torch.tensor([[0.1]])),
    "tanh from near zero": (lambda z: torch.tanh(2 * z), torch.tensor([[1e-4], [-1e-3], [1e-2]])),
    "weak tanh": (lambda z: torch.tanh(1.2 * z), start(0.3, 64, 1)),
    "weak tanh, four unknowns": (lambda z: torch.tanh(1.2 * z), start(0.3, 64, 4)),
    "weak tanh, many unknowns": (lambda z: torch.tanh(1.2 * z), start(0.3, 16, 64)),
    "sine": (lambda z: torch.sin(2 * z), start(0.2, 32, 2)),
    "logistic": (lambda z: 2.5 * z * (1 - z), start(0.02, 32, 1).abs()),
    "pitchfork": (lambda z: 1.3 * z - z**3, start(0.1, 32, 2)),
    "radial pitchfork": (lambda z: z * (1.5 - (z * z).sum(1, keepdim=True)), start(0.1, 32, 2)),
    "mean field": (lambda z: torch.tanh(1.5 * z.mean(1, keepdim=True) + 0.1 * z), start(0.3, 32, 8)),
    "rectified": (lambda z: torch.tanh(1.5 * z.relu()), start(0.2, 32, 5).abs()),
}


@impls
@pytest.mark.parametrize("name", MAPS)
def test_it_finds_what_plain_steps_find(name, impl):
    f, z0 = MAPS[name]
    plain = Solve(FixedPoint(), Stop())(f, z0)
    assert plain.converged.all(), "plain iteration solves it"
    sol = Solve(Anderson(impl=impl), Stop())(f, z0)
    assert sol.converged.all(), sol.summary()
    assert (sol.z.norm(dim=1) > 0.1).all(), "not the root that repels"


@impls
def test_it_costs_little_more_than_plain_steps(impl):
    f, z0 = MAPS["tanh"]
    assert Solve(Anderson(impl=impl), Stop())(f, z0).steps.item() <= 12


@impls
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_linear_maps_that_expand_are_still_solved(impl, size):
    """From far away their scale collapses too, while the relative residual stays; plain steps lead nowhere there."""
    slopes = torch.tensor([1.5, 0.3, -0.4, 0.2, 1.2, 0.5, 0.1, 0.6], dtype=F64)
    for f in (lambda z: slopes * z + 1, lambda z: 3 * z + 1):
        sol = Solve(Anderson(impl=impl), Stop(rtol=1e-6))(f, size * normal(3, 16, 8))
        assert sol.converged.all(), sol.summary()
        assert sol.steps.max() <= 20 + LONGEST_WAY + 8


@impls
def test_ways_of_one_row_change_no_bit_of_others(impl):
    b, gain = normal(5, 6, 4), torch.tensor([[0.9], [0.5], [-2.0], [0.95], [0.7], [1.4]], dtype=F64)
    calm, rows = exact_rows(b, gain), torch.tensor([0, 2, 3, 5])

    def f(z: Tensor) -> Tensor:
        fz = calm(z)
        fz[1], fz[4] = torch.tanh(2 * z[1]), torch.tanh(1.2 * z[4])
        return fz

    z0 = torch.full((6, 4), 0.1, dtype=F64)
    stop = Stop(rtol=1e-6, compact=False)
    one, two = (Solve(Anderson(impl=impl), stop)(g, z0) for g in (calm, f))
    assert one.converged.all()
    assert two.converged.all()
    assert_same_rows(one, rows, two, rows)


@impls
def test_a_budget_takes_the_same_steps(impl):
    f, z0 = MAPS["pitchfork"]
    tested, blind = Counted(f), Counted(f)
    Solve(Anderson(impl=impl), Stop(max_iter=20, rtol=0, atol=1e-30))(tested, z0)
    Solve(Anderson(impl=impl), Stop(max_iter=20, rtol=0))(blind, z0)
    assert all(torch.equal(a, b) for a, b in zip(tested.points, blind.points, strict=True))


@pytest.mark.skipif(library.load().library is None, reason="not built")
@pytest.mark.parametrize("name", MAPS)
def test_the_compiled_step_goes_the_same_way(name):
    f, z0 = MAPS[name]
    runs = []
    for impl in ("torch", "cpp"):
        seen = Counted(f)
        Solve(Anderson(impl=impl), Stop(max_iter=10, rtol=0))(seen, z0.double(), Layout())
        runs.append(torch.stack(seen.points))
    torch.testing.assert_close(*runs, rtol=1e-3, atol=1e-4)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


ONE = column(1.0)


def mixing(norm: float = 1.0, size: float = 2.0, eps: float = 0.0) -> PlainPhase:
    """Return a watch whose row has left plain steps, at the given residual and scale."""
    watch = PlainPhase(0.45, ONE, eps)
    watch.look(column(norm), column(size), ONE, ONE)
    assert not watch.move.plain.item()
    return watch


@pytest.mark.parametrize(
    ("norm", "size", "along", "back"),
    [
        (0.1, 0.2, 1.0, True),
        (0.1, 0.2, -1.0, False),
        (0.1, 0.2, 0.4, False),
        (0.1, 0.6, 1.0, False),
        (0.01, 0.2, 1.0, False),
        (torch.nan, torch.nan, torch.nan, False),
    ],
    ids=[
        "collapse",
        "the residual fell along the step",
        "it grew aside of the step",
        "the scale is there",
        "it converges",
        "not finite",
    ],
)
def test_what_counts_as_a_collapse(norm, size, along, back):
    watch = mixing()
    assert watch.look(column(norm), column(size), column(along), ONE).back.item() is back


def test_a_way_ends_where_it_has_arrived():
    watch = mixing()
    watch.look(column(0.1), column(0.2), ONE, ONE)
    for norm, size in ((1.0, 2.2), (2.0, 4.5), (1.5, 6.0)):
        move = watch.look(column(norm), column(size), ONE, ONE)
        assert move.plain.item()
        assert move.bears.item()
        assert not move.arrived.item()
    assert watch.look(column(0.9), column(7.0), -ONE, ONE).arrived.item()
    assert watch.look(column(0.7), column(7.0), -ONE, ONE).plain.item(), "plain steps do well from here on"
    assert not watch.look(column(0.6), column(7.0), -ONE, ONE).plain.item()


@pytest.mark.parametrize(("size", "arrives"), [(2.0, True), (1.7, False)])
def test_a_way_has_arrived_only_where_it_is_as_near_as_before(size, arrives):
    """||r|| / ||f(z)|| was .5 at best."""
    watch = mixing()
    watch.look(column(0.1), column(0.2), ONE, ONE)
    watch.look(column(2.0), column(3.0), ONE, ONE)
    assert watch.look(column(0.9), column(size), -ONE, ONE).arrived.item() is arrives


@pytest.mark.parametrize(("norm", "plain"), [(0.7, True), (0.71, False)])
def test_mixing_that_gains_nothing_ends_where_the_residual_falls(norm, plain):
    watch = mixing()
    for _ in range(3):
        watch.judge(0 * ONE, ONE)
    assert watch.look(column(norm), column(2.0), -ONE, ONE).plain.item() is plain


def test_a_way_is_lost_where_the_residual_explodes_and_no_other_is_taken():
    watch = mixing()
    watch.look(column(0.1), column(0.2), ONE, ONE)
    move = watch.look(column(1.1e4), column(2e4), ONE, ONE)
    assert move.lost.item()
    assert not move.plain.item()
    assert not watch.look(column(0.1), column(0.2), ONE, ONE).back.item()


def test_a_way_is_lost_after_its_longest():
    watch = mixing()
    watch.look(column(0.1), column(0.2), ONE, ONE)
    moves = [watch.look(ONE, column(2.0), ONE, ONE) for _ in range(LONGEST_WAY + 1)]
    assert not any(move.lost.item() for move in moves[:-1])
    assert moves[-1].lost.item()


def test_slow_mixing_tries_plain_steps_where_the_residual_grows_along_its_steps():
    for along, leaves in ((ONE, True), (-ONE, False)):
        watch = mixing()
        moves = [watch.look(ONE, column(2.0), along, ONE) for _ in range(9)]
        assert any(move.sets_out.item() for move in moves) is leaves
        assert not any(move.back.item() for move in moves)


@pytest.mark.parametrize(("norm", "eps"), [(0.004, 1e-7), (0.03, 2**-7)], ids=["float32", "bfloat16"])
def test_a_row_that_is_close_to_a_root_takes_no_way(norm, eps):
    watch = mixing(eps=eps)
    moves = [watch.look(column(norm), ONE, ONE, ONE) for _ in range(20)]
    assert not any(move.sets_out.item() for move in moves)


def h_equation(c: Tensor, unknowns: int) -> Callable[[Tensor], Tensor]:
    """Return Chandrasekhar's H-equation, one albedo c a row, whose Jacobian becomes singular as c goes to 1."""
    mu = (torch.arange(unknowns) + 0.5) / unknowns
    kernel = mu[:, None] / (mu[:, None] + mu)
    return lambda z: 1 / (1 - c[:, None] / (2 * unknowns) * (kernel * z[:, None]).sum(2))


@impls
def test_healthy_rows_take_no_way(impl):
    """Where nearly singular rows come close, or a map that is not normal pushes to the side, mixing goes on."""
    c = torch.linspace(0.9, 0.9999, 16)
    sol = Solve(Anderson(impl=impl), Stop(rtol=1e-5))(h_equation(c, 50), torch.ones(16, 50))
    assert sol.converged.all(), sol.summary()
    assert sol.steps.max() <= 20
    gen = torch.Generator().manual_seed(3)
    matrix = torch.randn(16, 5, 5, generator=gen).triu(1) + 0.9 * torch.eye(5)
    b, z0 = torch.randn(2, 16, 5, generator=gen)
    sol = Solve(Anderson(impl=impl), Stop(rtol=1e-5))(lambda z: (matrix * z[:, None]).sum(2) + b, 1e3 * z0)
    assert sol.steps.max() <= 20, sol.summary()
