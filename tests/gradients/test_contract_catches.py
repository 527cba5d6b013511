"""The contract suite catches wrong gradient methods: each one here breaks one promise."""

from __future__ import annotations

import pytest
import torch

from deqlm import Gradient, options
from deqlm.testing import check_gradient, gradient_checks
from deqlm.testing.gradients.layers import sharp


@options
class Right(Gradient):
    """One undamped step, right in everything that is asked of a truncated method."""

    def connect(self, f, z, adjoint):
        return f(z)


@options
class OnePercentOff(Right):
    exact = True

    def connect(self, f, z, adjoint):
        y = sharp("implicit").connect(f, z, adjoint)
        return y + 0.01 * (y - y.detach())


@options
class PointsAway(Right):
    def connect(self, f, z, adjoint):
        y = f(z)
        return 2 * y.detach() - y


@options
class CutsTheGraph(Right):
    def connect(self, f, z, adjoint):
        return f(z).detach()


@options
class MixesRows(Right):
    def connect(self, f, z, adjoint):
        y = f(z)
        return y + 1e-6 * (y - y.detach()).sum(0).nan_to_num()


@options
class AddsUp(Right):
    """Every backward of a call returns more."""

    def connect(self, f, z, adjoint):
        y, backwards = f(z).clone(), []

        def grow(g):
            backwards.append(1)
            return g * len(backwards)

        y.register_hook(grow)
        return y


@options
class ClipsTheLoss(Right):
    def connect(self, f, z, adjoint):
        y = f(z).clone()
        y.register_hook(lambda g: g.clamp(-2.0, 2.0))
        return y


@options
class HoldsOn(Right):
    kept = []

    def connect(self, f, z, adjoint):
        y = f(z)
        self.kept.append(y)
        return y


@options
class ReplacesThePoint(Right):
    def connect(self, f, z, adjoint):
        y = f(z)
        return y + 1e-3


@options
class AlwaysHasAGraph(Right):
    def connect(self, f, z, adjoint):
        return f(z).detach().requires_grad_()


@options
class NeedsWideNumbers(Right):
    def connect(self, f, z, adjoint):
        y = f(z)
        return y + 0 * torch.linalg.qr(y).Q.sum()


@options
class NeedsRows(Right):
    def connect(self, f, z, adjoint):
        return f(z) + 0 * z.max()


def parameters_of(y):
    """Return the leaves that the graph of y ends at."""
    found, nodes = [], [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [following for following, _ in node.next_functions if following is not None]
    return found


@options
class WritesOnParameters(Right):
    def connect(self, f, z, adjoint):
        y = f(z)
        for leaf in parameters_of(y):
            leaf.register_hook(lambda g: g)
        return y


@options
class SharesAmongParameters(Right):
    def connect(self, f, z, adjoint):
        y = f(z)
        return y.detach() + (y - y.detach()) / len(parameters_of(y))


@options
class ChangesItsMind(Right):
    calls = []

    def connect(self, f, z, adjoint):
        self.calls.append(1)
        y = f(z)
        return y.detach() + (y - y.detach()) * len(self.calls)


@options
class MovesTheStart(Right):
    def attach(self, forward, f, z0, failures):
        return super().attach(forward, f, z0.add_(1.0), failures)


class ConstantInTransforms(Right):
    """Has no derivative where torch.func asks for it."""

    def transform(self, at):
        return at.f.given(at.z)


CAUGHT = [
    (OnePercentOff, "matches_a_dense_solve"),
    (OnePercentOff, "finite_differences_agree"),
    (OnePercentOff, "a_solve_feeds_the_next"),
    (PointsAway, "reaches_parameters_arguments_and_captured_tensors"),
    (PointsAway, "a_solve_feeds_the_next"),
    (CutsTheGraph, "reaches_parameters_arguments_and_captured_tensors"),
    (CutsTheGraph, "layer_keywords_get_gradients"),
    (CutsTheGraph, "grad_mode_decides"),
    (MixesRows, "neighbours_do_not_matter"),
    (AddsUp, "a_second_backward_gives_the_same"),
    (AddsUp, "several_solves_stand_in_one_graph"),
    (ClipsTheLoss, "the_scale_of_the_loss_changes_nothing"),
    (HoldsOn, "the_graph_goes_with_its_last_reference"),
    (ReplacesThePoint, "a_start_may_be_the_solution"),
    (AlwaysHasAGraph, "no_graph_where_nothing_asks"),
    (NeedsRows, "empty_batches_and_rows_pass"),
    (NeedsWideNumbers, "half_precision_has_gradients"),
    (WritesOnParameters, "nothing_stays_on_the_module"),
    (SharesAmongParameters, "frozen_parameters_may_be_mixed"),
    (ChangesItsMind, "eval_mode_has_gradients"),
    (MovesTheStart, "caller_tensors_are_left_alone"),
    (ConstantInTransforms, "transforms_are_right_or_refused"),
]


@pytest.mark.parametrize(("wrong", "promise"), CAUGHT)
def test_wrong_gradients_are_caught(wrong: type[Gradient], promise: str) -> None:
    check = dict(gradient_checks(wrong))[promise]
    with pytest.raises(AssertionError, match=rf"{wrong.__name__}\(\) breaks '{promise}'\n  asked: .+\n  seen: .+"):
        check()


@options
class NeedsNewton(Right):
    """Refuses what it cannot work with, as it should."""

    def check(self, solve):
        if solve.solver.name != "newton":
            raise ValueError("give it the solver 'newton'")


def test_a_method_may_refuse_solvers() -> None:
    check_gradient(NeedsNewton)


def test_every_promise_is_broken_by_one_of_them() -> None:
    assert {promise for _, promise in CAUGHT} == {label for label, _ in gradient_checks("implicit")}


def test_a_right_gradient_passes() -> None:
    check_gradient(Right)
    check_gradient(Right())


def test_checks_leave_the_caller_as_he_was() -> None:
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            check_gradient(Right)
            assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [3, torch.nn.Linear, None])
def test_what_is_no_gradient_is_refused(other: object) -> None:
    with pytest.raises(TypeError, match="gradient must be"):
        check_gradient(other)  # type: ignore[arg-type]
