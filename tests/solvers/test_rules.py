"""Stopping rules of one's own, the max norm, a share of the rows, a looser first token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, ReadOut, Rule, Solve, Status, Stop, options
from deqlm_solvers import SOLVERS, Layout

F64 = torch.float64
GAIN = torch.tensor([[0.3], [0.6], [0.9]], dtype=F64)


def slow(z: Tensor) -> Tensor:
    return GAIN * z + 1


@options
class Largest(Rule):
    """The largest change, absolutely."""

    tol: float = 1e-3

    def ratio(self, z: Any, fz: Any) -> Tensor:
        return (fz - z).abs().flatten(1).amax(1) / self.tol


@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point", "newton_krylov", "fallback", "newton"])
def test_a_rule_says_what_passes(solver: str) -> None:
    sol = Solve(solver, Stop(criterion=Largest()))(slow, torch.zeros(3, 4, dtype=F64))
    assert sol.converged.all()
    assert (slow(sol.z) - sol.z).abs().amax(1).le(1e-3).all()
    torch.testing.assert_close(sol.residual, (slow(sol.z) - sol.z).norm(dim=1), rtol=1e-6, atol=1e-15)


def test_a_rule_for_the_largest_unknown_is_the_max_norm() -> None:
    z0 = torch.zeros(3, 4, dtype=F64)
    ours = Solve("fixed_point", Stop(norm="max", rtol=0, atol=1e-3))(slow, z0)
    rule = Solve("fixed_point", Stop(criterion=Largest()))(slow, z0)
    assert torch.equal(ours.steps, rule.steps)
    assert torch.equal(ours.z, rule.z)
    assert torch.equal(ours.residual, (slow(ours.z) - ours.z).abs().amax(1))


def test_a_rule_sees_states_in_their_shape() -> None:
    shapes = []

    @options
    class Seeing(Rule):
        def ratio(self, z: Any, fz: Any) -> Tensor:
            leaves = z if isinstance(z, tuple) else (z,)
            shapes.append([tuple(leaf.shape) for leaf in leaves])
            assert not any(leaf.requires_grad for leaf in leaves)
            return torch.zeros(leaves[0].shape[0])

    deqlm.solve(torch.cos, torch.zeros(2, 3, 4), stop=Stop(criterion=Seeing()))
    tree = {"a": torch.zeros(2, 3, 4), "b": torch.zeros(2, 1)}
    deqlm.solve(lambda z: {k: v.cos() for k, v in z.items()}, tree, stop=Stop(criterion=Seeing()))
    assert shapes[0] == [(2, 3, 4)]
    assert shapes[-1] == [(2, 3, 4), (2, 1)]


@pytest.mark.parametrize("measure", ["kl", "entropy", "argmax"])
def test_a_read_out_that_stands_ends_the_solve(measure: str) -> None:
    head = nn.Linear(4, 5, dtype=F64)
    u = torch.randn(3, 2, 4, dtype=F64)
    stop = Stop(criterion=ReadOut(head, measure), max_iter=200)
    sol = deqlm.solve(lambda z: 0.9 * torch.tanh(z) + u, torch.zeros_like(u), solver="fixed_point", stop=stop)
    assert sol.converged.all()
    after = 0.9 * torch.tanh(sol.z) + u
    p, q = head(sol.z).softmax(-1), head(after).softmax(-1)
    if measure == "argmax":
        assert torch.equal(p.argmax(-1), q.argmax(-1))
    elif measure == "kl":
        assert (q * (q / p).log()).sum(-1).amax() <= 5e-4
    else:
        entropies = [-(t * t.log()).sum(-1) for t in (p, q)]
        assert (entropies[0] - entropies[1]).abs().amax() <= 5e-4
    tight = deqlm.solve(
        lambda z: 0.9 * torch.tanh(z) + u, torch.zeros_like(u), solver="fixed_point", stop=Stop(rtol=1e-8, max_iter=900)
    )
    assert (sol.steps < tight.steps).all()
    assert head.weight.grad is None


def test_a_row_that_no_rule_lets_pass_is_told_so() -> None:
    never = Stop(criterion=Largest(tol=1e-300), max_iter=5)
    sol = deqlm.solve(slow, torch.zeros(3, 4, dtype=F64), solver="fixed_point", stop=never, on_failure="ignore")
    assert sol.status.eq(Status.MAX_ITER).all()
    nan = torch.zeros(3, 4, dtype=F64)
    nan[1] = torch.nan
    sol = deqlm.solve(slow, nan, stop=Stop(criterion=Largest()), on_failure="ignore")
    assert sol.status.tolist() == [0, Status.NONFINITE, 0]


def test_a_deq_trains_by_a_rule_and_a_causal_one_too() -> None:
    layer, head = nn.Linear(4, 4), nn.Linear(4, 3)
    deq = DEQ(nn.Sequential(layer, nn.Tanh()), stop=Stop(criterion=ReadOut(head)))
    deq(torch.randn(2, 4)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    causal = DEQ(nn.Tanh(), causal=True, stop=Stop(criterion=ReadOut(head)), mode=deqlm.Chunked(2))
    assert causal(torch.randn(2, 5, 4)).shape == (2, 5, 4)


@pytest.mark.parametrize("solver", ["anderson", "broyden", "fixed_point", "newton_krylov"])
@pytest.mark.parametrize("compact", [True, False, "at_once"])
def test_a_share_of_the_rows_ends_the_solve(solver: str, compact: bool | str) -> None:
    gain = torch.tensor([0.1, 0.2, 0.3, 0.99], dtype=F64)[:, None]
    if compact == "at_once" and SOLVERS[solver].steps_evaluate:
        pytest.skip("its steps evaluate f on all rows")
    stop = Stop(share=0.75, rtol=1e-8, max_iter=400, compact=compact)
    f = lambda z: gain * z + 1  # noqa: E731
    if solver != "fixed_point":
        f = lambda z: gain * torch.tanh(z) + 1  # noqa: E731
    sol = Solve(solver, stop)(f, torch.zeros(4, 6, dtype=F64))
    assert sol.converged.sum() >= 3
    assert sol.steps.max() < 400
    whole = Solve(solver, stop.replace(share=1.0))(f, torch.zeros(4, 6, dtype=F64))
    assert sol.steps.max() <= whole.steps.max()
    if solver == "fixed_point":
        assert sol.status.tolist() == [0, 0, 0, Status.MAX_ITER]
        assert sol.residual[3] > 1e-8


def test_the_first_token_may_be_looser() -> None:
    gain = torch.tensor([0.9, 0.2, 0.2], dtype=F64)[:, None].expand(3, 2).reshape(1, 6)
    layout = Layout(leaves=((3, 2),))
    stop = Stop(per="token", rtol=1e-6, max_iter=300)
    strict = Solve("fixed_point", stop)(lambda z: gain * z + 1, torch.zeros(1, 6, dtype=F64), layout)
    loose = Solve("fixed_point", stop.replace(first_tokens=(1e4,)))(
        lambda z: gain * z + 1, torch.zeros(1, 6, dtype=F64), layout
    )
    assert strict.converged.all()
    assert loose.converged.all()
    assert loose.steps[0] < strict.steps[0]
    longer = Solve("fixed_point", stop.replace(first_tokens=[1e4] * 9))
    assert longer(lambda z: gain * z + 1, torch.zeros(1, 6, dtype=F64), layout).converged.all()
    with pytest.raises(ValueError, match="first_tokens must be left away with several chunks"):
        DEQ(nn.Tanh(), causal=True, mode=deqlm.Chunked(2), stop=Stop(per="token", first_tokens=(9,)))(
            torch.ones(1, 5, 2)
        )


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"criterion": 3}, ValueError, r"criterion must be a Rule, such as ReadOut\(head\), got 3"),
        ({"criterion": Largest(), "rtol": 1e-3}, ValueError, "rtol=0.001 is not used with a criterion"),
        ({"criterion": Largest(), "norm": "rms"}, ValueError, "norm='rms' is not used with a criterion"),
        ({"criterion": Largest(), "per": "token"}, ValueError, "per='token' is not used with a criterion"),
        ({"share": 0}, ValueError, r"share must be in \(0, 1\], got 0"),
        ({"share": 0.5, "check_every": 0}, ValueError, "share=0.5 needs check_every >= 1"),
        ({"share": 0.5, "test_every": "auto"}, ValueError, "share=0.5 needs check_every >= 1"),
        ({"share": 0.5, "rtol": 0}, ValueError, "share=0.5 is not used by a budget"),
        ({"first_tokens": (2,)}, ValueError, r"first_tokens=\(2.0,\) is not used unless per='token'"),
        ({"first_tokens": (0,), "per": "token"}, ValueError, "first_tokens must be a sequence of factors > 0"),
        ({"first_tokens": 3, "per": "token"}, ValueError, "first_tokens must be a sequence of factors > 0"),
    ],
)
def test_what_would_be_ignored_is_refused(given: dict, error, text: str) -> None:
    with pytest.raises(error, match=text):
        Stop(**given)


def test_rules_are_checked_where_they_are_used() -> None:
    @options
    class Wrong(Rule):
        shape: tuple[int, ...] | None = None

        def ratio(self, z: Any, fz: Any) -> Any:
            return 0.0 if self.shape is None else torch.zeros(self.shape)

    with pytest.raises(TypeError, match="the ratio of Wrong must be a tensor, got float"):
        deqlm.solve(torch.cos, torch.zeros(2, 3), stop=Stop(criterion=Wrong()))
    with pytest.raises(
        ValueError, match=r"the shape of the ratio of Wrong must be one value per row, \(2,\), got \(3,\)"
    ):
        deqlm.solve(torch.cos, torch.zeros(2, 3), stop=Stop(criterion=Wrong(shape=(3,))))
    with pytest.raises(TypeError, match="head must be a function or a module, got int"):
        ReadOut(3)
    with pytest.raises(ValueError, match="tol must be None with measure='argmax'"):
        ReadOut(nn.Tanh(), "argmax", 0.1)
    with pytest.raises(ValueError, match=r"solve\.stop\.criterion must be None: a cotangent is no state"):
        deqlm.Implicit(solve=Solve(stop=Stop(criterion=Largest())))
    with pytest.raises(ValueError, match="it does not know Stop"):
        Solve(deqlm.Anderson(impl="cpp"), Stop(criterion=Largest()))(slow, torch.zeros(3, 4, dtype=F64))
    assert DEQ(nn.Tanh(), stop=Stop(criterion=Largest()), memory_cap="1GiB")(torch.zeros(2, 3)).shape == (2, 3)
