"""The call-time equilibrium: any callable, noise and buffers of what it reaches held, one mechanism with DEQ."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deqlm
from deqlm import DEQ, Equilibrium, Phantom, Stop

F64 = torch.float64
SHARP = Stop(max_iter=300, rtol=1e-12)
TIGHT = deqlm.Implicit(solve=deqlm.Solve(stop=SHARP))
GRADIENTS = ["implicit", "phantom", "one_step", "unrolled"]


def linear() -> nn.Linear:
    made = nn.Linear(4, 4, dtype=F64)
    with torch.no_grad():
        made.weight.mul_(0.4)
    return made


class Noisy(nn.Module):
    """Dropout and running statistics behind one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = linear()
        self.norm = nn.BatchNorm1d(4, dtype=F64)
        self.drop = nn.Dropout(0.5)
        self.masks: list[Tensor] = []

    def forward(self, z: Tensor) -> Tensor:
        self.masks.append(self.drop(torch.ones_like(z)))
        return 0.3 * self.masks[-1] * self.norm(self.weight(z))

    step = forward


part, halve = Noisy(), nn.Hardtanh(-0.5, 0.5)


def by_name(z: Tensor) -> Tensor:
    return part(z)


@dataclass
class Plain:
    cell: nn.Module

    def step(self, z: Tensor) -> Tensor:
        return self.cell(z)


def closing(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: module(z) + 1


def held_in_an_object(module: nn.Module) -> Callable[[Tensor], Tensor]:
    box = SimpleNamespace(inner={"cell": module})
    return lambda z: box.inner["cell"](z)


def apply(module: nn.Module, z: Tensor) -> Tensor:
    return module(z)


REACHED: dict[str, Callable[[Noisy], Callable[[Tensor], Tensor]]] = {
    "module": lambda m: m,
    "method": lambda m: m.step,
    "partial": lambda m: functools.partial(apply, m),
    "closure": closing,
    "global": lambda m: by_name,
    "method of an object": lambda m: Plain(m).step,
    "object": held_in_an_object,
    "default": lambda m: lambda z, cell=m: cell(z),
    "two": lambda m: lambda z, halve=halve: halve(m(z)),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", REACHED)
def test_noise_is_drawn_and_buffers_move_once_however_a_module_is_reached(way: str, grad: bool) -> None:
    module = part if way == "global" else Noisy()
    before = int(module.norm.num_batches_tracked)
    module.masks.clear()
    eq = Equilibrium(batch_dims=0, stop=Stop(max_iter=6, rtol=0))
    with torch.set_grad_enabled(grad):
        z = eq(REACHED[way](module), torch.randn(6, 4, dtype=F64))
    assert len(module.masks) >= 6
    assert all(torch.equal(mask, module.masks[0]) for mask in module.masks)
    if grad:
        z.sum().backward()
    assert module.norm.num_batches_tracked == before + 1


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("call", ["eq", "solve"])
def test_dropout_of_a_plain_function_is_one_mask_a_call(call: str, gradient: str) -> None:
    masks = []

    def f(z: Tensor) -> Tensor:
        mask = F.dropout(torch.ones_like(z), 0.3)
        masks.append(mask)
        return 0.5 * mask * z + 1

    found = []
    for _ in range(2):
        masks.clear()
        options: dict[str, Any] = {"solver": "fixed_point", "gradient": gradient}
        if call == "eq":
            _, sol = Equilibrium(**options)(f, torch.zeros(3, 8), with_stats=True)
        else:
            sol = deqlm.solve(f, torch.zeros(3, 8), **options)
        assert sol.converged.all()
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        found.append(masks[0])
    assert not torch.equal(*found)


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "one_step"])
def test_a_deq_is_an_equilibrium_of_its_layer_and_injection(gradient: str) -> None:
    layer, x = linear(), torch.randn(3, 4, dtype=F64, requires_grad=True)
    ours = DEQ(layer, gradient=gradient, stop=SHARP)
    eq = Equilibrium(gradient=gradient, stop=SHARP)
    assert isinstance(ours, Equilibrium)
    inputs = [x, *layer.parameters()]
    a, b = ours(x), eq(lambda z, x: layer(z + x), torch.zeros_like(x), x)
    assert torch.equal(a, b)
    for ga, gb in zip(*(torch.autograd.grad(t.square().sum(), inputs) for t in (a, b)), strict=True):
        assert torch.equal(ga, gb)


def test_gradients_reach_arguments_keywords_and_captures() -> None:
    a, b, c, d = (torch.rand(3, 4, dtype=F64, requires_grad=True) for _ in range(4))
    z = Equilibrium(gradient=TIGHT, stop=SHARP)(lambda z, p, *, q: 0.1 * a * z + p * b + q, torch.zeros_like(a), c, q=d)
    want = (c * b + d) / (1 - 0.1 * a)
    for got, true in zip(
        torch.autograd.grad(z.sum(), [a, b, c, d]), torch.autograd.grad(want.sum(), [a, b, c, d]), strict=True
    ):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-9)


def test_rows_with_bad_keywords_are_kept_out_of_shared_gradients() -> None:
    layer, q = linear(), torch.randn(3, 4, dtype=F64)
    q[1] = torch.nan
    z = Equilibrium(on_failure="ignore")(lambda z, q: layer(z) + q, torch.zeros_like(q), q=q)
    z.nan_to_num().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_trees_masks_scales_and_starts() -> None:
    eq = Equilibrium(stop=Stop(rtol=1e-6))
    state = {"a": torch.zeros(2, 3, dtype=F64), "b": torch.zeros(2, 1, dtype=F64)}
    z = eq(lambda z: {"a": 0.5 * z["a"] + z["b"], "b": 0.5 * z["b"] + 1}, state)
    torch.testing.assert_close(z["a"], torch.full((2, 3), 4.0, dtype=F64), rtol=1e-4, atol=0)
    _, sol = eq(lambda z: 0.5 * z + 1, torch.zeros(2, 3), start=torch.full((1, 3), 2.0), with_stats=True)
    assert sol.steps.tolist() == [1, 1]
    mask = torch.tensor([[True, False, True]])
    z = eq(lambda z: 0.5 * z + 1, torch.zeros(1, 3, 2), token_mask=mask, stop=Stop(per="token"))
    assert z[0, 1].eq(0).all()
    _, sol = eq(lambda z: 0.9 * z, torch.ones(2, 3), scale=1.0, stop=Stop(rtol=1e-3), with_stats=True)
    assert sol.converged.all()


def test_an_equilibrium_of_a_model_is_found_through_its_method() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Noisy()
            self.eq = Equilibrium(batch_dims=0)

        def forward(self, x: Tensor) -> Tensor:
            return self.eq(lambda z: self.cell(z) + x, torch.zeros_like(x))

    model = Model()
    model(torch.randn(6, 4, dtype=F64)).sum().backward()
    assert model.cell.norm.num_batches_tracked == 1
    assert set(model.state_dict()) == {f"cell.{name}" for name in model.cell.state_dict()}


def test_what_a_call_is_not_given_right_is_named() -> None:
    eq = Equilibrium()
    with pytest.raises(TypeError, match="f must be a function or a module, got Tensor"):
        eq(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="unknown option 'inject'"):
        Equilibrium(inject="add")
    with pytest.raises(ValueError, match="gradient 'unrolled' cannot differentiate the steps of solver 'anderson'"):
        Equilibrium(gradient="unrolled")
    with pytest.raises(ValueError, match="gradient 'unrolled' cannot differentiate the steps of solver 'anderson'"):
        eq(torch.cos, torch.zeros(2, 3), gradient="unrolled")


@pytest.mark.parametrize("grad", [True, False])
def test_the_last_solve_is_told_without_its_state(grad: bool) -> None:
    deq = DEQ(linear())
    assert deq.last is None
    x = torch.randn(3, 4, dtype=F64)
    with torch.set_grad_enabled(grad):
        y, sol = deq(x, with_stats=True)
    assert deq.last.z is None
    assert torch.equal(deq.last.steps, sol.steps)
    assert deq.last.cost == sol.cost
    if grad:
        y.sum().backward()
        assert deq.last.adjoint.converged.all()
    copied = copy.deepcopy(deq)
    assert torch.equal(copied.last.status, sol.status)
    assert "CONVERGED" in repr(copied.last)
    assert set(deq.state_dict()) == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_solution_is_detached_and_copied(gradient: str) -> None:
    w = torch.tensor(0.5, requires_grad=True)
    start = {"a": torch.zeros(2, 3), "b": (torch.zeros(2, 1),)}
    with torch.enable_grad():
        sol = deqlm.solve(
            lambda z: {"a": w * z["a"] + 1, "b": (w * z["b"][0],)},
            start,
            gradient=gradient,
            solver="fixed_point",
            on_failure="ignore",
        )
    for made in (sol.detach(), copy.deepcopy(sol)):
        assert not made.z["a"].requires_grad
        assert torch.equal(made.z["a"], sol.z["a"])
        assert torch.equal(made.status, sol.status)
        assert made.adjoint is not sol.adjoint
    sol.z["a"].sum().backward()
    assert w.grad is not None
    assert copy.deepcopy(sol).adjoint.ran is sol.adjoint.ran


def test_random_depth_and_no_depth_at_all() -> None:
    deq = DEQ(linear(), solver="fixed_point", gradient=Phantom(2, 1.0))
    x = torch.randn(3, 4, dtype=F64)
    for depth in (0, 1, 5):
        y, sol = deq(x, stop=Stop(max_iter=depth, rtol=0), with_stats=True)
        z = torch.zeros_like(x)
        for _ in range(depth + 2):
            z = deq.layer(z + x)
        assert torch.allclose(y, z)
        assert sol.status.eq(deqlm.Status.BUDGET).all()
        assert sol.steps.eq(depth).all()
        assert sol.cost.evaluations == depth + 2
