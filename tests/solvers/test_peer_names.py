"""The names of other libraries are answered with ours."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import deqlm
from deqlm.layers import Attention, Block
from deqlm.models import Backbone, ImplicitLM
from deqlm_solvers.core.peer_names import HINTS, NAMES

TORCHDEQ = [
    *("core", "ift", "hook_ift", "grad", "tau", "indexing", "n_states", "gamma", "f_solver", "b_solver", "no_stat"),
    *("f_max_iter", "b_max_iter", "f_tol", "b_tol", "f_stop_mode", "b_stop_mode", "eval_factor", "eval_f_max_iter"),
    *("sradius_mode", "return_final", "backward_writer", "solver_kwargs", "stop_mode"),
    *("m", "lam", "beta", "LBFGS_thres", "ls", "norm_type"),
]


@pytest.mark.parametrize("name", TORCHDEQ)
def test_options_of_torchdeq_are_answered_with_our_equal(name):
    for make in (lambda **o: deqlm.DEQ(nn.Tanh(), **o), deqlm.Equilibrium, lambda **o: deqlm.solve(torch.cos, 0, **o)):
        with pytest.raises(TypeError, match=f"unknown option '{name}': {re.escape(HINTS[name])}"):
            make(**{name: 1})


@pytest.mark.parametrize("name", TORCHDEQ)
def test_they_are_answered_in_every_call_and_by_a_model_too(name):
    model = ImplicitLM(Backbone([Block(Attention(8, n_head=2))]), vocab_size=5)
    x = torch.zeros(2, 3)
    calls = (
        lambda **o: deqlm.DEQ(nn.Tanh())(x, **o),
        lambda **o: deqlm.Equilibrium()(lambda z: z, x, **o),
        lambda **o: deqlm.root(torch.cos, x, **o),
        lambda **o: ImplicitLM(model.backbone, vocab_size=5, **o),
        lambda **o: model(torch.zeros(1, 2, dtype=torch.long), **o),
    )
    for call in calls:
        with pytest.raises(TypeError, match=f"unknown option '{name}'.*: {re.escape(HINTS[name])}"):
            call(**{name: 1})
    with pytest.raises(TypeError, match=r"\bmemory=|solver=|stop=|gradient=|solver|states=|layer|diagnose|leave"):
        deqlm.Solve(**{name: 1})


def test_a_map_may_have_arguments_of_such_names():
    y = deqlm.Equilibrium(stop={"rtol": 1e-8})(lambda z, m: 0.5 * z + m, torch.zeros(2, 3, dtype=torch.float64), m=1.0)
    torch.testing.assert_close(y, torch.full((2, 3), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("cls", "name", "told"),
    [
        (deqlm.Anderson, "m", "memory="),
        (deqlm.Anderson, "lam", "ridge="),
        (deqlm.Anderson, "beta", "damping="),
        (deqlm.FixedPoint, "tau", "damping="),
        (deqlm.Phantom, "tau", "damping="),
        (deqlm.Broyden, "ls", "line_search="),
        (deqlm.Broyden, "LBFGS_thres", "memory="),
        (deqlm.Stop, "f_tol", "rtol="),
        (deqlm.Stop, "b_max_iter", "backward solve"),
        (deqlm.Solve, "b_solver", "backward solve"),
        (deqlm.Stop, "stop_mode", "atol="),
    ],
)
def test_options_of_a_class_are_answered_too(cls, name, told):
    with pytest.raises(TypeError, match=f"{cls.__name__} got an unknown option '{name}': .*{told}.*; known: "):
        cls(**{name: 1})


def test_a_slip_of_the_pen_is_answered_with_the_name_that_was_meant():
    with pytest.raises(TypeError, match="did you mean 'max_iter'"):
        deqlm.Stop(max_iters=3)


@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_registered_names_of_others_are_answered(theirs, ours):
    registry = deqlm.GRADIENTS if ours in deqlm.GRADIENTS else deqlm.SOLVERS
    if theirs in registry:
        return  # somebody has registered it since
    with pytest.raises(KeyError, match=f"unknown {registry.kind} '{theirs}': it is '{ours}' here"):
        registry.make(theirs)


def test_hints_name_what_there_is():
    for text in HINTS.values():
        for name in re.findall(r"\b(\w+)\(", text):
            assert hasattr(deqlm, name), name
