"""The audit of gradients: right where the truth is known, loud where a gradient is wrong, and without a trace."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm import Implicit, OneStep, Phantom, Stop, audit_gradient

F64 = torch.float64


class LinearMap(nn.Module):
    """z J^T + x, with J a parameter: the gradient for x is (I - J^T)^-1 g."""

    def __init__(self, J: Tensor) -> None:
        super().__init__()
        self.J = nn.Parameter(J)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z @ self.J.mT + x


class Tanh(nn.Module):
    def __init__(self, n: int = 6, size: float = 0.7, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        W = torch.randn(n, n, dtype=F64)
        self.W = nn.Parameter((size * W / torch.linalg.matrix_norm(W, 2)).to(dtype))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.mT)


def linear(J: Tensor, **options: Any) -> deqlm.DEQ:
    sharp = Stop(max_iter=500, rtol=1e-13)
    return deqlm.DEQ(LinearMap(J), inject="argument", **{"stop": sharp, "start": torch.zeros_like, **options})


def jacobian(kind: str, n: int = 7) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    A = torch.randn(n, n, generator=draw, dtype=F64)
    if kind == "contraction":
        return 0.8 * A / torch.linalg.matrix_norm(A, 2)
    if kind == "non_normal":
        return 0.5 * torch.eye(n, dtype=F64) + torch.triu(A, 1)
    Q = torch.linalg.qr(A).Q
    return Q @ torch.diag(torch.linspace(-2.5, 0.5, n, dtype=F64)) @ Q.mT  # expands


class TestExact:
    @pytest.mark.parametrize("kind", ["contraction", "non_normal", "expanding"])
    def test_gradients_of_linear_maps_are_those_of_a_dense_solve(self, kind: str) -> None:
        J, x = jacobian(kind), torch.randn(3, 7, dtype=F64)
        audit = audit_gradient(linear(J), x, gradients=["implicit", "phantom"], loss=lambda y: y.sum(), repeats=1)
        assert (audit.no_exact, audit.exact_by, audit.mixes_rows) == ("", "dense", False)
        assert audit.fixed_point_residual < 1e-12
        eye = torch.eye(7, dtype=F64)
        assert audit.kappa == pytest.approx(torch.linalg.matrix_norm(torch.linalg.inv(eye - J), 2).item(), rel=1e-3)
        w = torch.linalg.solve(eye - J.mT, torch.ones(7, dtype=F64))
        A = 0.2 * eye + 0.8 * J.mT
        series = w - torch.linalg.matrix_power(A, 4) @ w
        phantom = audit["phantom"]
        assert phantom.error["x"] == pytest.approx(((series - w).norm() / w.norm()).item(), rel=1e-6)
        assert phantom.cosine["x"] == pytest.approx((series @ w / series.norm() / w.norm()).item(), rel=1e-6)
        assert audit["implicit"].error["x"] < 1e-5
        assert audit["implicit"].verdict == "exact"

    def test_a_big_row_takes_the_converged_adjoint_and_agrees_with_the_dense_one(self, monkeypatch: Any) -> None:
        x = torch.randn(3, 6)
        deq = deqlm.DEQ(Tanh())
        dense = audit_gradient(deq, x, repeats=1)
        monkeypatch.setattr("deqlm.diagnostics.audit.exact.DENSE", 5)
        iterated = audit_gradient(deq, x, repeats=1)
        assert (dense.exact_by, iterated.exact_by) == ("dense", "adjoint")
        assert iterated.adjoint_residual < 1e-8
        for ours, truth in zip(iterated.methods, dense.methods, strict=True):
            assert ours.verdict == truth.verdict
            for group in ("parameters", "x"):
                assert ours.error[group] == pytest.approx(truth.error[group], rel=1e-4, abs=1e-7)
        assert iterated["phantom"].series_norm is None
        assert iterated["phantom"].series_error == pytest.approx(dense["phantom"].series_error, rel=1e-6)

    def test_rows_that_mix_are_one_system(self) -> None:
        layer = nn.Sequential(Tanh(), nn.BatchNorm1d(6))
        with torch.no_grad():
            layer[1].weight.fill_(0.4)
        # one history per row fits rows that are mixed badly: anderson is not done after 100 evaluations, broyden is
        deq, x = deqlm.DEQ(layer, solver="broyden", stop=Stop(rtol=1e-6)), torch.randn(5, 6)
        assert deq(x, with_stats=True)[1].converged.all()
        audit = audit_gradient(deq, x, repeats=1)
        assert audit.mixes_rows
        assert audit["implicit"].verdict == "exact"
        assert audit["implicit"].error["parameters"] < 1e-5

    def test_no_fixed_point_is_said_and_nothing_is_compared(self) -> None:
        deq = deqlm.DEQ(lambda z: z.abs() + 1, on_failure="ignore", stop=Stop(max_iter=10))
        audit = audit_gradient(deq, torch.randn(2, 3), repeats=1)
        assert "no fixed point found" in audit.no_exact
        assert all(entry.cosine == {} and entry.verdict == "" for entry in audit.methods)
        assert all(entry.forward > 0 for entry in audit.methods)
        assert "No exact gradient" in str(audit)
        assert audit.suggestion == ""

    def test_a_singular_system_is_said(self) -> None:
        audit = audit_gradient(deqlm.DEQ(lambda z: z, inject="add", on_failure="ignore"), torch.zeros(2, 3), repeats=1)
        assert "singular" in audit.no_exact

    def test_trees_and_several_dtypes(self) -> None:
        class Pair(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.tensor(0.4))

            def forward(self, z: Any) -> Any:
                return {"u": torch.tanh(self.a * z["u"] + z["v"].float().mean(1, keepdim=True)), "v": 0.3 * z["v"]}

        x = {"u": torch.randn(3, 4), "v": torch.randn(3, 2, dtype=F64)}
        audit = audit_gradient(deqlm.DEQ(Pair(), stop=Stop(rtol=1e-6)), x, repeats=1)
        assert audit.unknowns == 6
        assert audit["implicit"].verdict == "exact"

    def test_a_layer_without_parameters_is_audited_for_x(self) -> None:
        audit = audit_gradient(deqlm.DEQ(lambda z: 0.5 * torch.sin(z)), torch.randn(2, 3), repeats=1)
        assert audit.parameters == 0
        assert set(audit["implicit"].cosine) == {"x"}


class TestSeries:
    """The error of a truncated series is ||((1 - tau) I + tau J^T)^k||, in norm and not by spectral radius."""

    @pytest.mark.parametrize("kind", ["contraction", "non_normal", "expanding"])
    @pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (4, 0.8), (10, 0.5), (25, 0.3)])
    def test_phantom_follows_the_norm(self, kind: str, steps: int, damping: float) -> None:
        J, x = jacobian(kind), torch.randn(3, 7, dtype=F64)
        entry = audit_gradient(linear(J), x, gradients=Phantom(steps, damping), repeats=1)["phantom"]
        A = (1 - damping) * torch.eye(7, dtype=F64) + damping * J.mT
        norm = torch.linalg.matrix_norm(torch.linalg.matrix_power(A, steps), 2).item()
        assert entry.series_norm == pytest.approx(norm, rel=1e-9)
        assert entry.error["x"] == pytest.approx(entry.series_error, rel=1e-5)
        assert entry.error["x"] <= norm * (1 + 1e-6)
        assert entry.verdict == "truncated"

    def test_the_worst_cotangent_reaches_the_norm(self) -> None:
        J = jacobian("non_normal")
        power = torch.linalg.matrix_power(J.mT, 1)
        worst = torch.linalg.svd(power).Vh[0]
        g = (torch.eye(7, dtype=F64) - J.mT) @ worst
        x = torch.randn(1, 7, dtype=F64)
        entry = audit_gradient(linear(J), x, gradients=OneStep(), loss=lambda y: (y.to(F64) @ g).sum(), repeats=1)
        assert entry["one_step"].error["x"] == pytest.approx(entry["one_step"].series_norm, rel=1e-6)

    def test_more_steps_diverge_where_the_norm_grows(self) -> None:
        J, x = jacobian("expanding"), torch.randn(3, 7, dtype=F64)
        errors = [
            audit_gradient(linear(J), x, gradients=Phantom(k, 1.0), repeats=1)["phantom"].error["x"] for k in (2, 6)
        ]
        assert errors[1] > 10 * errors[0] > 1


@pytest.mark.usefixtures("registries")
class TestWrong:
    def register(self, factor: float) -> None:
        @deqlm.register_gradient("crooked")
        @deqlm.options
        class Crooked(Implicit):
            """Claims to be exact; what comes back is scaled."""

            def connect(self, f: Any, z: Tensor, adjoint: Any) -> Tensor:
                y = super().connect(f, z, adjoint)
                return y.detach() + factor * (y - y.detach())

    @pytest.mark.parametrize("factor", [1.01, 0.5, -1.0])
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_a_wrong_gradient_is_flagged(self, factor: float, dtype: torch.dtype) -> None:
        self.register(factor)
        audit = audit_gradient(deqlm.DEQ(Tanh(dtype=dtype)), torch.randn(3, 6, dtype=dtype), repeats=1)
        assert audit.wrong == ["crooked"]
        assert audit["crooked"].own_error["x"] == pytest.approx(abs(1 - factor), rel=0.05)
        assert audit["implicit"].verdict == "exact"
        assert "WRONG: crooked" in str(audit)

    def test_a_gradient_that_forgets_the_inverse_is_flagged_if_it_claims_to_be_exact(self) -> None:
        @deqlm.register_gradient("forgetful")
        @deqlm.options
        class Forgetful(OneStep):
            exact = True

        assert audit_gradient(deqlm.DEQ(Tanh()), torch.randn(3, 6), repeats=1).wrong == ["forgetful"]

    def test_a_loose_backward_solve_is_explained_and_not_wrong(self) -> None:
        loose = Implicit(solve=deqlm.Solve("fixed_point", Stop(max_iter=50, rtol=1e-2)))
        entry = audit_gradient(deqlm.DEQ(Tanh(size=0.9), gradient=loose), torch.randn(3, 6), repeats=1)["implicit"]
        assert entry.error["x"] > 1e-4
        assert entry.verdict == "exact"

    def test_a_loose_forward_solve_is_not_the_methods_fault(self) -> None:
        deq = deqlm.DEQ(Tanh(size=0.95), solver="fixed_point", stop=Stop(rtol=0.05))
        entry = audit_gradient(deq, torch.randn(3, 6), repeats=1)["implicit"]
        assert entry.error["x"] > 10 * entry.own_error["x"]
        assert entry.verdict == "exact"

    def test_a_backward_solve_that_tells_nothing_is_untold(self) -> None:
        hopeless = Implicit(solve=deqlm.Solve("fixed_point", Stop(max_iter=1, rtol=1e-6)))
        deq = deqlm.DEQ(Tanh(size=0.95), gradient=hopeless, on_failure="ignore")
        entry = audit_gradient(deq, torch.randn(3, 6), repeats=1)["implicit"]
        assert entry.verdict == "untold"
        assert any("backward not converged" in note for note in entry.notes)

    def test_a_method_that_raises_does_not_stop_the_others(self) -> None:
        @deqlm.register_gradient("broken")
        @deqlm.options
        class Broken(deqlm.Gradient):
            def connect(self, f: Any, z: Tensor, adjoint: Any) -> Tensor:
                raise ArithmeticError("no such luck")

        audit = audit_gradient(deqlm.DEQ(Tanh()), torch.randn(3, 6), repeats=1)
        assert audit["broken"].outcome == "raised"
        assert "no such luck" in audit["broken"].notes[0]
        assert audit["implicit"].verdict == "exact"


def test_methods_are_paired_with_a_solver_that_fits_and_it_is_said() -> None:
    audit = audit_gradient(deqlm.DEQ(Tanh(), solver="broyden"), torch.randn(3, 6), repeats=1)
    assert [e.gradient for e in audit.methods] == sorted(deqlm.GRADIENTS)
    assert audit["implicit"].solver == audit["phantom"].solver == "broyden"
    assert audit["unrolled"].solver == "fixed_point"
    assert "cannot differentiate broyden" in audit["unrolled"].notes


def test_the_modules_own_method_keeps_its_options() -> None:
    deq = deqlm.DEQ(Tanh(), gradient=Phantom(7, 0.5))
    assert audit_gradient(deq, torch.randn(3, 6), repeats=1)["phantom"].options == "Phantom(steps=7, damping=0.5)"


@pytest.mark.parametrize("train", [True, False])
def test_the_module_is_left_as_it_was(train: bool) -> None:
    layer = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh())
    deq = deqlm.DEQ(layer, on_failure="ignore").train(train)
    x = torch.randn(4, 6, requires_grad=True)
    deq(x).sum().backward()
    grads = [p.grad.clone() for p in deq.parameters()]
    x_grad, x_before = x.grad.clone(), x.detach().clone()
    state = copy.deepcopy(deq.state_dict())
    solve, gradient, training = deq.solve, deq.gradient, [m.training for m in deq.modules()]
    generator, python = torch.get_rng_state(), random.getstate()
    audit_gradient(deq, x, repeats=1)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), deq.state_dict().values(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, deq.parameters(), strict=True))
    assert torch.equal(x.grad, x_grad)
    assert torch.equal(x.detach(), x_before)
    assert (deq.solve, deq.gradient) == (solve, gradient)
    assert [m.training for m in deq.modules()] == training
    assert all(p.dtype == torch.float32 for p in deq.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert random.getstate() == python


def test_dropout_is_the_same_for_every_method_and_for_the_truth() -> None:
    deq = deqlm.DEQ(nn.Sequential(Tanh(), nn.Dropout(0.4)), stop=Stop(rtol=1e-6)).train()
    audit = audit_gradient(deq, torch.randn(3, 6), repeats=2)
    assert audit.no_exact == ""
    assert audit["implicit"].error["parameters"] < 1e-4


def test_noise_of_another_kind_is_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 0.5 * z + random.random()

    with pytest.raises(ValueError, match=r"no two runs compare; call deq.eval\(\)"):
        audit_gradient(deqlm.DEQ(Noisy(), on_failure="ignore"), torch.randn(3, 6))


def test_noise_that_differs_in_float64_leaves_no_truth() -> None:
    class Noisy(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 0.5 * z + torch.randn_like(z)

    audit = audit_gradient(deqlm.DEQ(Noisy()), torch.randn(3, 6), repeats=1)
    assert "computes something else" in audit.no_exact


def test_times_memory_and_counts() -> None:
    x = torch.randn(16, 64)
    audit = audit_gradient(deqlm.DEQ(Tanh(64), stop=Stop(rtol=1e-5)), x, repeats=2)
    for entry in audit.methods:
        assert entry.forward > 0
        assert entry.backward > 0
        assert entry.evaluations > 0
        assert entry.row_evaluations <= 16 * entry.evaluations
        assert entry.peak_bytes > 3 * x.nbytes
    assert audit["implicit"].vjps > 0
    assert audit["one_step"].peak_bytes <= audit["phantom"].peak_bytes
    assert audit["one_step"].vjps == 0


def test_report_reads_well_and_is_plain_data() -> None:
    audit = audit_gradient(deqlm.DEQ(Tanh(), stop=Stop(rtol=1e-6)), torch.randn(3, 6), repeats=1)
    text = str(audit)
    for part in (
        "Gradients of Tanh: 3 rows of 6 unknowns",
        "Exact: float64",
        "cos par",
        "error x",
        "series",
        "cheapest",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 200
    data = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert [m["gradient"] for m in data["methods"]] == [m.gradient for m in audit.methods]
    with pytest.raises(KeyError, match="did you mean 'phantom'"):
        audit["fantom"]


def test_the_cheapest_good_method_is_suggested() -> None:
    good = audit_gradient(deqlm.DEQ(Tanh(size=0.05), stop=Stop(rtol=1e-6)), torch.randn(3, 6), repeats=1)
    named = good.suggestion.split(": ")[1]
    cheapest = min((m for m in good.methods if m.least_cosine > 0.99), key=lambda m: m.seconds)
    assert named.startswith(cheapest.options)
    none = audit_gradient(linear(jacobian("expanding")), torch.randn(2, 7, dtype=F64), gradients="one_step", repeats=1)
    assert "no method has a cosine above" in none.suggestion


def test_bad_arguments_are_explained() -> None:
    with pytest.raises(TypeError, match="wrap the map"):
        audit_gradient(nn.Tanh(), torch.zeros(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="repeats"):
        audit_gradient(deqlm.DEQ(nn.Tanh()), torch.zeros(2, 2), repeats=0)
    with pytest.raises(TypeError, match="x must be"):
        audit_gradient(deqlm.DEQ(nn.Tanh()), None)


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, z: Tensor, adjacency: Tensor) -> Tensor:
        return torch.tanh(adjacency @ self.linear(z))


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc"])
@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta state")
def test_a_sparse_argument_is_measured_too(layout: str) -> None:
    adjacency = (torch.rand(6, 6).softmax(1)).to_sparse(layout=getattr(torch, layout))
    report = audit_gradient(deqlm.DEQ(Graph(), batch_dims=0), torch.randn(6, 4), adjacency, repeats=1)
    assert "raised" not in str(report)
    assert report["implicit"].verdict == "exact"


def test_complex_parameters_have_a_truth() -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(0.2 * torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, z: Tensor) -> Tensor:
            return z @ self.w

    report = audit_gradient(deqlm.DEQ(Wave()), torch.randn(3, 4, dtype=torch.complex64), repeats=1)
    assert report["implicit"].verdict == "exact"
