"""The module: defaults, what is given back, how it starts, what it does when rows fail."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Status, Stop

F64 = torch.float64
SHARP = Stop(max_iter=400, rtol=1e-12)


def small_linear(n: int = 4, dtype: torch.dtype = F64) -> nn.Linear:
    layer = nn.Linear(n, n, dtype=dtype)
    with torch.no_grad():
        layer.weight.mul_(0.5 / torch.linalg.matrix_norm(layer.weight, 2))
    return layer


def fixed_point(f, z: Tensor, steps: int = 100) -> Tensor:
    """Iterate a contraction of 1/2 to rounding."""
    for _ in range(steps):
        z = f(z)
    return z


def test_defaults_are_those_of_the_design() -> None:
    deq = DEQ(nn.Identity())
    assert deq.solve == deqlm.Solve(deqlm.Anderson(memory=12), Stop(max_iter=100, rtol="auto"))
    assert deq.gradient == deqlm.Implicit()
    assert (deq.failures.on_failure, deq.failures.failed_grad, deq.batch_dims) == ("warn", "drop", None)


def test_output_is_the_fixed_point_with_true_statistics() -> None:
    layer = small_linear()
    x = torch.randn(3, 4, dtype=F64)
    y, sol = DEQ(layer, stop=Stop(rtol=1e-6, trace=True))(x, with_stats=True)
    assert y is sol.z
    with torch.no_grad():
        residual = (layer(y + x) - y).norm(dim=1)
        torch.testing.assert_close(sol.residual, residual, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(sol.relative, residual / layer(y + x).norm(dim=1), rtol=1e-9, atol=1e-15)
    assert (sol.relative <= 1e-6).all()
    assert sol.steps.dtype == torch.int64
    assert sol.status.tolist() == [Status.CONVERGED] * 3
    assert sol.trace.shape == (sol.steps.max(), 3)
    assert "3 CONVERGED" in repr(sol)


def test_state_of_any_shape_and_half_precision() -> None:
    for shape, batch_dims in (((2, 3, 4, 5), 1), ((2, 3, 5), 2), ((6, 5), 0)):
        x = torch.randn(shape)
        y, sol = DEQ(lambda z: 0.5 * torch.tanh(z), batch_dims=batch_dims)(x, with_stats=True)
        assert y.shape == x.shape
        assert sol.status.shape == shape[:batch_dims]
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    loose = deqlm.Implicit(solve=deqlm.Solve("anderson", Stop(rtol=0.02)))
    assert DEQ(lambda z: 0.5 * torch.tanh(z), stop=Stop(rtol=0.02), gradient=loose)(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_further_arguments_reach_the_layer_at_every_evaluation_and_get_gradients() -> None:
    layer = small_linear()

    def f(z: Tensor, shift: Tensor, *, gain: Tensor) -> Tensor:
        return gain * torch.tanh(layer(z) + shift)

    x, shift = torch.randn(2, 3, 4, dtype=F64)
    gain = torch.rand(3, 1, dtype=F64)
    inputs = [t.requires_grad_() for t in (x, shift, gain, layer.weight)]
    y = DEQ(f, stop=SHARP, gradient=deqlm.Implicit(solve=deqlm.Solve(stop=SHARP)))(x, shift, gain=gain)
    truth = fixed_point(lambda z: f(z + x, shift, gain=gain), torch.zeros_like(x))
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(truth.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_two_gradients_through_one_module_add_up() -> None:
    layer = small_linear()
    deq = DEQ(layer)
    a, b = torch.randn(2, 3, 4, dtype=F64)
    (deq(a).sum() + deq(b).sum()).backward()
    together = layer.weight.grad.clone()
    layer.weight.grad = None
    deq(a).sum().backward()
    deq(b).sum().backward()
    torch.testing.assert_close(layer.weight.grad, together, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:layer is a function that uses the module")
def test_a_deq_inside_a_deq() -> None:
    inner, outer = small_linear(), small_linear()
    method = deqlm.Implicit(solve=deqlm.Solve(stop=Stop(max_iter=200, rtol=1e-11)))
    nested = DEQ(inner, stop=SHARP, gradient=method)
    deq = DEQ(lambda z: nested(torch.tanh(outer(z))), stop=Stop(max_iter=200, rtol=1e-10), gradient=method)
    x = torch.randn(2, 4, dtype=F64, requires_grad=True)

    def unrolled(v: Tensor) -> Tensor:
        v = torch.tanh(outer(v + x))
        return fixed_point(lambda z: inner(z + v), torch.zeros_like(x), 50)

    inputs = [x, inner.weight, outer.weight]
    ours = torch.autograd.grad(deq(x).sum(), inputs)
    truth = torch.autograd.grad(fixed_point(unrolled, torch.zeros_like(x), 50).sum(), inputs)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_training_lowers_a_loss() -> None:
    deq = DEQ(small_linear(dtype=torch.float32))
    x, target = torch.randn(8, 4), 0.1 * torch.randn(8, 4)
    optimizer = torch.optim.Adam(deq.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (deq(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class TestStart:
    x = torch.ones(3, 4, dtype=F64)

    def first_point(self, start: object, x: object = None, **options: object) -> Tensor:
        """Return where the layer is evaluated first."""
        seen: list[Tensor] = []

        def layer(z: Tensor, u: Tensor) -> Tensor:
            seen.append(z.detach().clone())
            return 0.5 * z + u

        DEQ(layer, inject="argument", start=start, stop=Stop(max_iter=2, rtol=0), **options)(self.x if x is None else x)
        return seen[0]

    def test_zero_like_the_input(self) -> None:
        assert torch.equal(self.first_point(None), torch.zeros(3, 4, dtype=F64))

    @pytest.mark.parametrize("kind", ["tensor", "parameter"])
    @pytest.mark.parametrize("shape", [(4,), (3, 4)])
    def test_tensor_with_and_without_the_batch(self, kind: str, shape: tuple[int, ...]) -> None:
        start = torch.randn(shape, dtype=F64)
        given = nn.Parameter(start) if kind == "parameter" else start
        assert torch.equal(self.first_point(given), start.expand(3, 4))

    def test_callable_gets_the_injected_input(self) -> None:
        assert torch.equal(self.first_point(lambda u: 2 * u), 2 * self.x)

    def test_module_start_is_part_of_the_module(self) -> None:
        deq = DEQ(nn.Tanh(), start=nn.Linear(4, 4, dtype=F64))
        assert {"start.weight", "start.bias"} <= set(deq.state_dict())
        deq(self.x)

    def test_tensor_start_of_a_state_with_more_dimensions_than_the_input(self) -> None:
        start = torch.randn(3, 2, 4, dtype=F64)
        seen = []

        def layer(z: Tensor, u: Tensor) -> Tensor:
            seen.append(z.detach().clone())
            return 0.5 * z + u[:, None]

        DEQ(layer, inject="argument", start=start, stop=Stop(max_iter=2, rtol=0))(self.x)
        assert torch.equal(seen[0], start)

    def test_a_tensor_start_moves_and_is_saved_with_the_module(self) -> None:
        deq = DEQ(nn.Tanh(), start=torch.ones(4))
        assert "start" in deq.state_dict()
        assert deq.double().start.dtype == F64

    def test_a_parameter_start_is_trained_by_unrolled_and_not_by_implicit(self) -> None:
        for gradient, trained in (("unrolled", True), ("implicit", False)):
            start = nn.Parameter(torch.ones(4, dtype=F64))
            stop = Stop(max_iter=3, rtol=0)
            deq = DEQ(small_linear(), start=start, solver="fixed_point", gradient=gradient, stop=stop)
            deq(self.x).sum().backward()
            assert (start.grad is not None and bool((start.grad != 0).any())) == trained

    def test_wrong_shapes_are_explained(self) -> None:
        for shape in ((1, 2, 3, 4), (1, 4)):
            with pytest.raises(ValueError, match=r"start must have the shapes of u.*got"):
                DEQ(nn.Tanh(), start=torch.zeros(shape, dtype=F64))(self.x)


class TestFailure:
    """Rows 0 and 2 converge; row 1 would need many more evaluations."""

    x = torch.tensor([[0.1], [0.999999], [0.2]], dtype=F64)
    options = {"inject": "argument", "solver": "fixed_point", "stop": Stop(max_iter=30, rtol=1e-6)}

    @staticmethod
    def layer(z: Tensor, slope: Tensor) -> Tensor:
        return slope * z + 1

    def test_warn_is_the_default_and_names_rows_and_remedy(self) -> None:
        with pytest.warns(
            deqlm.ConvergenceWarning, match=r"solve: some rows ended MAX_ITER; .*summary.*raise max_iter"
        ) as caught:
            sol = DEQ(self.layer, **self.options)(self.x, with_stats=True)[1]
        assert len(caught) == 1
        assert sol.converged.tolist() == [True, False, True]
        assert sol.failed.tolist() == [False, True, False]
        with pytest.raises(deqlm.ConvergenceError, match=r"rows 1"):
            sol.raise_if_failed()

    def test_raise(self) -> None:
        deq = DEQ(self.layer, on_failure="raise", **self.options)
        with pytest.raises(deqlm.ConvergenceError, match=r"1 MAX_ITER \(rows 1\)"):
            deq(self.x)
        with torch.no_grad(), pytest.raises(deqlm.ConvergenceError):
            deq(self.x)

    def test_ignore(self) -> None:
        DEQ(self.layer, on_failure="ignore", **self.options)(self.x)

    def test_python_filters_apply(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", deqlm.ConvergenceWarning)
            DEQ(self.layer, **self.options)(self.x)

    def test_a_budget_is_no_failure(self) -> None:
        options = {**self.options, "stop": Stop(max_iter=3, rtol=0)}
        sol = DEQ(self.layer, on_failure="raise", **options)(self.x, with_stats=True)[1]
        assert sol.status.tolist() == [Status.BUDGET] * 3
        assert sol.raise_if_failed() is sol

    def test_a_row_that_does_not_converge_still_has_a_gradient(self) -> None:
        x = self.x.clone().requires_grad_()
        DEQ(self.layer, on_failure="ignore", **self.options)(x).sum().backward()
        assert (x.grad != 0).all()


def test_repr_shows_solver_stop_and_gradient() -> None:
    text = repr(DEQ(nn.Tanh(), gradient=deqlm.Phantom(3)))
    assert all(part in text for part in ("Anderson(memory=12", "Stop(max_iter=100", "Phantom(steps=3", "Tanh"))
