"""Fallback: every row ends with the member it needs (numerics 9)."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deqlm
from deqlm.testing.solvers.counting import Counted
from deqlm.testing.solvers.problems import normal, spectrum
from deqlm.testing.solvers.rows import assert_same_rows
from deqlm.testing.solvers.truth import true_residuals
from deqlm_solvers import (
    SOLVERS,
    Anderson,
    Broyden,
    Fallback,
    FixedPoint,
    Layout,
    Map,
    Solution,
    Solve,
    Solver,
    Status,
    StepSolver,
    Stop,
    options,
)
from solvers.fallback_cases import F64, GAIN, Selectable, affine
from solvers.problems import parity_chain


@options
class Jump(StepSolver):
    """Goes to one point and stays there."""

    to: float = 10.0

    def init(self, z: Tensor) -> None:
        return None

    def step(self, f: Map, at: object, state: None) -> tuple[Tensor, None]:
        return torch.full_like(at.z, self.to), state  # type: ignore[attr-defined]


@options
class Humble(Solver):
    """A whole solver that honours little."""

    honours = frozenset({"max_iter", "rtol"})

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        return FixedPoint().solve(f, z0, stop, layout)


def test_members_are_names_dicts_and_objects():
    made = Fallback("fixed_point", {"name": "anderson", "memory": 3}, Broyden(update="bad"))
    assert made.solvers == (FixedPoint(), Anderson(memory=3), Broyden(update="bad"))
    assert SOLVERS["fallback"] is Fallback is deqlm.Fallback


def test_round_trips():
    made = Fallback("fixed_point", Anderson(memory=3))
    data = made.to_dict()
    assert data == {"name": "fallback", "solvers": [FixedPoint().to_dict(), Anderson(memory=3).to_dict()]}
    for again in (Fallback.from_dict(data), SOLVERS.make(data), made.replace(), pickle.loads(pickle.dumps(made))):
        assert again == made
        assert hash(again) == hash(made)
        assert again.honours == made.honours  # type: ignore[attr-defined]
    assert made.replace(solvers=["broyden"]) == Fallback("broyden") != made
    assert Solve.from_dict(Solve(made, Stop(rtol=1e-3)).to_dict()) == Solve(made, Stop(rtol=1e-3))
    with pytest.raises(AttributeError):
        made.solvers = ()  # type: ignore[misc]


def test_the_default_chain_is_that_of_the_docstring():
    names = ["anderson", "broyden", "fixed_point", "newton_krylov", "newton", "dogleg"]
    assert [member.name for member in Fallback().solvers] == names
    assert Fallback() == SOLVERS["fallback"]()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Fallback("andersen"), KeyError, "did you mean 'anderson'"),
        (lambda: Fallback(["anderson", "broyden"]), TypeError, "solver must be a name"),  # type: ignore[arg-type]
        (lambda: Fallback(solvers=()), ValueError, "solvers must be at least one solver"),
        (lambda: Fallback(solvers="anderson"), ValueError, "solvers must be a sequence of solvers.*got 'anderson'"),
        (lambda: Fallback(solvers={"name": "anderson"}), ValueError, "solvers must be a sequence of solvers"),
        (lambda: Fallback(solvers=3), ValueError, "solvers must be a sequence of solvers.*got 3"),  # type: ignore[arg-type]
        (lambda: Fallback("anderson", Fallback("broyden")), ValueError, "list the members of that one"),
        (lambda: Fallback("anderson", Anderson()), ValueError, "without a repetition"),
        (lambda: Fallback("anderson", solvers=["broyden"]), TypeError, "members twice"),
        (lambda: Fallback(solver="anderson"), TypeError, "unknown option 'solver': did you mean 'solvers'"),  # type: ignore[call-arg]
        (lambda: Solve(Fallback(), Stop(keep="best_f")), ValueError, r"cannot honour Stop\(keep='best_f'\)"),
        (lambda: Solve(Fallback("anderson", Humble()), Stop(atol=1.0)), ValueError, r"cannot honour Stop\(atol=1.0\)"),
    ],
)
def test_what_is_refused_at_once(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("stop", "text"), [(Stop(rtol=0), "cannot run a budget"), (Stop(max_iter=2), "max_iter must be >= 3 for fallback")]
)
def test_what_a_solve_refuses(stop, text):
    with pytest.raises(ValueError, match=text):
        Solve(Fallback(), stop)(affine(GAIN), torch.zeros(5, 2))


def test_one_member_is_that_member():
    stop = Stop(max_iter=2)
    sol = Solve(Fallback("anderson"), stop)(affine(GAIN), torch.zeros(5, 2))
    assert_same_rows(sol, slice(None), Solve("anderson", stop)(affine(GAIN), torch.zeros(5, 2)), slice(None))
    assert sol.choices == ("anderson",)


def test_each_row_ends_with_the_member_it_needs():
    """Anderson misses 32 angles of rotation within 300 evaluations and never solves a chain of signs."""
    angles = torch.linspace(0.3, 2.8, 32, dtype=F64)
    cos, sin = 0.99 * angles.cos(), 0.99 * angles.sin()
    chain, truth = parity_chain(1, 64)
    shift = normal(3, 1, 64)

    def turn(z: Tensor) -> Tensor:
        x, y = z.view(-1, 32, 2).unbind(2)
        return torch.stack((cos * x - sin * y, sin * x + cos * y), 2).flatten(1) + shift

    def f(z: Tensor) -> Tensor:
        return torch.cat((-3.0 * z[:1] + shift, chain(z[1:2]), turn(z[2:])))

    z0 = torch.zeros(3, 64, dtype=F64)
    stop = Stop(max_iter=300, rtol=1e-10)
    solved = {name: Solve(name, stop)(f, z0).converged.tolist() for name in ("anderson", "fixed_point", "broyden")}
    assert solved["anderson"] == [True, False, False]
    assert solved["fixed_point"] == [False, True, False]
    assert solved["broyden"][2]
    sol = Solve(Fallback("anderson", "fixed_point", "broyden"), stop)(f, z0)
    assert sol.converged.all()
    assert sol.picked is not None
    assert sol.picked.dtype == torch.int8
    assert [sol.choices[i] for i in sol.picked] == ["anderson", "fixed_point", "broyden"]
    assert torch.equal(sol.z[1], truth[0])
    assert torch.allclose(sol.z[0], shift[0] / 4, rtol=1e-9)
    residual, size = true_residuals(f, sol.z)
    assert (residual <= 1.01e-10 * size).all()
    assert "picked: 1 anderson, 1 fixed_point, 1 broyden" in sol.summary()
    assert "picked: 1 anderson" in repr(sol)


def trap(z: Tensor) -> Tensor:
    """The residual beyond 5 is small and leads nowhere; from 0 plain iteration finds 1."""
    return torch.where(z > 5, z + 0.01, 0.5 * z + 0.5)


def test_a_member_that_solves_from_z0_only_gets_its_chance():
    stop = Stop(max_iter=30, rtol=1e-6)
    z0 = torch.zeros(1, 1, dtype=F64)
    lost = Solve(Jump(), stop)(trap, z0)
    assert lost.z.item() == 10
    sol = Solve(Fallback(Jump(), "fixed_point"), stop)(trap, z0)
    alone = Solve("fixed_point", stop)(trap, z0)
    assert sol.picked is not None
    assert sol.picked.item() == 1
    assert torch.equal(sol.z, alone.z)
    assert sol.steps.item() == 30 + 30 + alone.steps.item() == sol.cost.evaluations


def test_a_member_goes_on_from_the_best_point():
    """From z0 alone the second member would need 30 evaluations."""
    f = affine(torch.tensor([[0.5]], dtype=F64))
    z0 = torch.full((1, 1), 1e6, dtype=F64)
    alone = Solve("fixed_point", Stop(rtol=1e-6))(f, z0)
    sol = Solve(Fallback(Jump(to=2 + 1e-5), "fixed_point"), Stop(max_iter=8, rtol=1e-6))(f, z0)
    assert alone.steps.item() > 30
    assert sol.converged.all()
    assert sol.steps.item() < 8 + 8


def test_an_answer_is_kept_if_nothing_better_is_found():
    sol = Solve(Fallback(Jump(), Jump(to=7.0)), Stop(max_iter=4, rtol=1e-6))(trap, torch.zeros(1, 1))
    first = Solve(Jump(), Stop(max_iter=4, rtol=1e-6))(trap, torch.zeros(1, 1))
    assert sol.picked is not None
    assert sol.picked.item() == 0
    assert sol.status.item() == Status.MAX_ITER
    assert_same_rows(sol.replace(steps=first.steps), [0], first, [0])


MEMBERS = (Anderson(memory=4), FixedPoint(), Broyden(memory=3), FixedPoint(damping=0.3))


@given(
    kind=st.sampled_from(["symmetric", "rotation", "non_normal"]),
    rho=st.sampled_from([0.3, 0.9, 0.99, 1.1, 3.0]),
    bounded=st.booleans(),
    seed=st.integers(0, 99),
    B=st.integers(1, 4),
    order=st.permutations(range(4)),
    size=st.integers(1, 4),
)
def test_never_worse_than_the_best_member_alone(kind, rho, bounded, seed, B, order, size):
    N = 8
    A, b = spectrum(kind, rho, N, seed), normal(seed + 1, B, N)
    gain = torch.linspace(0.5, 1.5, B, dtype=F64)[:, None]

    def f(z: Tensor) -> Tensor:
        fz = gain * (z[:, None] * A).sum(2) + b
        return torch.tanh(fz) if bounded else fz

    chain = [MEMBERS[i] for i in order[:size]]
    stop = Stop(max_iter=25, rtol=1e-8)
    z0 = torch.zeros_like(b)
    seen = Counted(f)
    sol = Solve(Fallback(*chain), stop)(seen, z0)
    alone = [Solve(member, stop)(f, z0) for member in chain]
    assert torch.equal(sol.converged | torch.stack([s.converged for s in alone]).any(0), sol.converged)
    best = torch.stack([s.relative for s in alone]).amin(0)
    assert (sol.relative <= best * (1 + 1e-9))[~sol.converged].all()
    residual, _ = true_residuals(f, sol.z)
    assert torch.allclose(residual, sol.residual, rtol=1e-6, atol=1e-13)
    assert (sol.converged == (sol.relative <= 1e-8)).all()
    assert sol.cost.evaluations == seen.calls <= 2 * size * stop.max_iter
    assert sol.cost.row_evaluations == seen.rows
    assert (sol.steps <= seen.calls).all()


@pytest.mark.parametrize("name", ["newton", "newton_krylov"])
@pytest.mark.parametrize("make", [affine, Selectable], ids=["held", "narrowed"])
def test_members_that_differentiate_the_map(name, make):
    gain = torch.tensor([[0.5], [-3.0], [0.9], [-40.0]], dtype=F64)
    calls = Counted(affine(gain)) if make is affine else Selectable(gain)
    sol = Solve(Fallback("fixed_point", name), Stop(max_iter=60, rtol=1e-9))(calls, torch.zeros(4, 3, dtype=F64))
    assert sol.converged.all()
    assert sol.picked is not None
    assert sol.picked.tolist() == [0, 1, 1, 1]
    assert torch.allclose(sol.z, 1 / (1 - gain).expand(4, 3), rtol=1e-7)
    assert sol.cost.jvps > 0
    if isinstance(calls, Selectable):
        assert sol.cost.evaluations == len(calls.seen)
        assert sol.cost.row_evaluations == sum(calls.seen)
        assert calls.seen[-2:] == [3, 4], "the failed rows, and one look at all answers together"
    else:
        assert sol.cost.evaluations == calls.calls
        assert sol.cost.row_evaluations == calls.rows == 4 * calls.calls


def test_it_solves_forward_and_backward():
    gain = torch.tensor([[0.5], [-3.0], [0.9]], dtype=F64, requires_grad=True)
    solver = Fallback("fixed_point", "anderson")
    how = Solve(solver, Stop(max_iter=300, rtol=1e-10))
    sol = deqlm.solve(
        lambda z: gain * z + 1, torch.zeros(3, 2, dtype=F64), solver=how.solver, stop=how.stop,
        gradient=deqlm.Implicit(solve=how),
    )  # fmt: skip
    assert sol.converged.all()
    assert sol.picked is not None
    assert sol.picked.tolist() == [0, 1, 0]
    sol.z.sum().backward()
    truth = 2 / (1 - gain.detach()) ** 2
    assert gain.grad is not None
    assert torch.allclose(gain.grad, truth, rtol=1e-8)
    assert sol.adjoint is not None
    assert sol.adjoint.converged is not None
    assert sol.adjoint.converged.all()


def test_a_layer_takes_it_by_dict():
    layer = torch.nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.copy_(-3.0 * torch.eye(3))
    solver = {"name": "fallback", "solvers": ["fixed_point", "anderson"]}
    deq = deqlm.DEQ(layer, solver=solver, stop=Stop(rtol=1e-5))
    x = torch.ones(2, 5, 3)
    y, sol = deq(x, with_stats=True)
    assert sol.converged.all()
    assert sol.picked.tolist() == [1, 1]
    assert torch.allclose(layer(y + x), y, atol=1e-4)
