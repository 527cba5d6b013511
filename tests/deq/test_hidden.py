"""A function that uses a module hides its parameters; whoever makes a DEQ of one is told."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqlm import DEQ
from deqlm.wrap.hidden import hidden_modules

mlp = nn.Linear(3, 3)
norm = nn.LayerNorm(3)
activation = nn.Tanh()


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return z


class Stepping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 3)

    def step(self, z: Tensor) -> Tensor:
        return self.cell(z)


@dataclass
class Held:
    cell: nn.Module

    def __call__(self, z: Tensor) -> Tensor:
        return self.cell(z)


def by_global(z: Tensor) -> Tensor:
    return mlp(z)


def inside(z: Tensor) -> Tensor:
    return torch.stack([mlp(each) for each in z])


def closing(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def f(z: Tensor) -> Tensor:
        return module(z)

    return f


def twice(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(f)
    def wrapped(z: Tensor) -> Tensor:
        return f(f(z))

    return wrapped


HIDING: dict[str, tuple[Any, str]] = {
    "a global": (by_global, "'mlp' (Linear)"),
    "a global of an inner function": (inside, "'mlp' (Linear)"),
    "a closure": (closing(nn.Linear(3, 3)), "'module' (Linear)"),
    "a lambda": (lambda z: mlp(z), "'mlp' (Linear)"),
    "a default": (lambda z, layers=[mlp]: layers[0](z), "'layers' (Linear)"),
    "a keyword": (lambda z, *, layer=mlp: layer(z), "'layer' (Linear)"),
    "a decorator": (twice(by_global), "'mlp' (Linear)"),
    "a partial": (functools.partial(mlp), "'func' (Linear)"),
    "an argument of a partial": (functools.partial(lambda m, z: m(z), mlp), "'args' (Linear)"),
    "a method": (Stepping().step, "'step.__self__' (Stepping)"),
    "forward": (mlp.forward, "'forward.__self__' (Linear)"),
    "an object": (Held(mlp), "'cell' (Linear)"),
    "two": (lambda z: norm(mlp(z)), "'norm' (LayerNorm) and 'mlp' (Linear)"),
    "buffers alone": (closing(Counter()), "'module' (Counter)"),
    "compiled": (torch.compile(by_global, backend="eager"), "'mlp' (Linear)"),
}


@pytest.mark.parametrize(("f", "named"), HIDING.values(), ids=HIDING)
def test_a_function_that_uses_a_module_gets_one_warning(f: Any, named: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DEQ(f)
    ((text, file),) = [(str(each.message), each.filename) for each in caught]
    assert text.startswith(f"layer is a function that uses the module {named}, which is no part of this DEQ")
    assert "DEQ(module)" in text
    assert file == __file__


def unrelated(z: Tensor) -> Tensor:
    return z.norm() * torch.tanh(z)  # an attribute that is called like a module here


PLAIN = {
    "a module": mlp,
    "a module without parameters": closing(activation),
    "an attribute of the same name": unrelated,
    "torch": torch.tanh,
    "a builtin": abs,
    "a partial": functools.partial(torch.clamp, max=1.0),
    "a parameter": functools.partial(torch.mul, nn.Parameter(torch.ones(3))),
    "a class of callables": Held,
    "a compiled module": torch.compile(nn.Linear(3, 3), backend="eager"),
}


@pytest.mark.parametrize("f", PLAIN.values(), ids=PLAIN)
def test_others_get_none(f: Any) -> None:
    DEQ(f)
    assert hidden_modules(f) == {}


def test_a_module_that_makes_a_layer_of_its_own_method_owns_it() -> None:
    class Model(Stepping):
        def __init__(self) -> None:
            super().__init__()
            self.by_method = DEQ(self.step)
            self.by_lambda = DEQ(lambda z: 0.5 * self.step(z))

    model = Model()
    with pytest.warns(UserWarning, match=r"'step.__self__' \(Model\)"):
        DEQ(model.step)


def test_a_start_hides_modules_too() -> None:
    with pytest.warns(UserWarning, match=r"^start is a function that uses the module 'mlp'"):
        DEQ(nn.Tanh(), start=lambda u: mlp(u))


def test_a_function_that_refers_to_itself_ends() -> None:
    def f(z: Tensor) -> Tensor:
        return f(z)

    cycle: list[Any] = [f]
    cycle.append(cycle)
    assert hidden_modules(lambda z: cycle[0](z)) == {}
