"""What a user is told: hints for misplaced options, one warning per place, and where it points."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import deqlm
from deqlm import DEQ, Stop

Z = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: DEQ(nn.Tanh(), tol=1e-3), TypeError, r"unknown option 'tol': give it as stop=Stop"),
        (lambda: DEQ(nn.Tanh(), max_iter=3), TypeError, r"unknown option 'max_iter': give it as stop=Stop"),
        (lambda: DEQ(nn.Tanh(), memory=3), TypeError, r"unknown option 'memory': give it to the solver"),
        (lambda: DEQ(nn.Tanh(), solvr="anderson"), TypeError, r"unknown option 'solvr': did you mean 'solver'"),
        (lambda: deqlm.solve(torch.cos, Z, gradeint="phantom"), TypeError, r"did you mean 'gradient'"),
        (lambda: deqlm.solve(torch.cos, Z, tol=1), TypeError, r"give it as stop=Stop"),
        (lambda: deqlm.solve(torch.add, Z, args=Z), TypeError, r"args must be a tuple, args=\(x,\), got Tensor"),
        (lambda: deqlm.solve(torch.cos, Z, solver=deqlm.Anderson), TypeError, r"write Anderson\(\)"),
        (lambda: deqlm.solve(torch.cos, Z, solver="anderson:memory=5"), KeyError, r"options go into a dict"),
        (lambda: deqlm.solve(torch.cos, Z, scale="big"), ValueError, r"scale must be a number or one value per row"),
        (lambda: deqlm.Anderson(damping="half"), ValueError, r"damping must be a number in \(0, 1\], got 'half'"),
        (lambda: deqlm.Anderson(memory=True), ValueError, r"memory must be a whole number >= 1, got True"),
        (lambda: Stop(rtol="1e-3"), ValueError, r"rtol must be a number finite and >= 0, or 'auto', got '1e-3'"),
        (lambda: DEQ(nn.Tanh())([1.0]), TypeError, r"x must be a tensor or a tree of tensors, got list"),
        (lambda: DEQ(nn.Tanh())(torch.zeros(3)), ValueError, r"batch_dims must be given for a 1-d z0"),
        (
            lambda: DEQ(nn.GRU(3, 3))(torch.zeros(2, 3, 3)),
            TypeError,
            r"whose forward returns .*layer\(z\)\[0\]",
        ),
        (lambda: deqlm.register_solver(deqlm.Anderson), TypeError, r"@register_solver\('name'\)"),
    ],
)
def test_mistakes_are_explained(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_a_class_without_options_is_refused(registries: None) -> None:
    with pytest.raises(TypeError, match=r"write @options between @register_solver\('bare'\) and class Bare"):

        @deqlm.register_solver("bare")
        class Bare(deqlm.StepSolver):
            def init(self, z):  # type: ignore[no-untyped-def]
                return None

            def step(self, f, at, state):  # type: ignore[no-untyped-def]
                return at.fz, state


def test_a_warning_is_shown_once_per_place_and_points_at_the_caller() -> None:
    deq = DEQ(lambda z: 2 * z + 1, solver="fixed_point", stop=Stop(max_iter=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for scale in (1.0, 2.0, 3.0):
            deq(scale * torch.ones(2, 3))
    assert len(caught) == 1
    assert caught[0].category is deqlm.ConvergenceWarning
    assert caught[0].filename == __file__


def test_a_reassigned_buffer_moves_once_per_call() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.calls = self.calls + 1
            return 0.5 * z

    layer = Counting()
    DEQ(layer)(torch.ones(2, 3))
    assert layer.calls == 1
