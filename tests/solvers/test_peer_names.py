"""The names of other libraries are answered with ours."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import deqlm
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
