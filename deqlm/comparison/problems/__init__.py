"""The built-in problems, one file per family, and which of them a run takes by default."""

from deqlm.comparison.problem import Problem
from deqlm.comparison.problems.chain import Parity
from deqlm.comparison.problems.layers import Tanh, TwoCycle
from deqlm.comparison.problems.linear import HardRow, NonNormal, Rotation, Symmetric
from deqlm.comparison.problems.published import Published
from deqlm.comparison.problems.transformer import Transformer
from deqlm.comparison.problems.user import UserProblem

__all__ = [
    "DEFAULT",
    "DIFFERENTIABLE",
    "QUICK",
    "HardRow",
    "NonNormal",
    "Parity",
    "Published",
    "Rotation",
    "Symmetric",
    "Tanh",
    "Transformer",
    "TwoCycle",
    "UserProblem",
]

DEFAULT: tuple[Problem, ...] = (
    Symmetric(rho=0.5),
    Symmetric(rho=0.9),
    Symmetric(rho=0.99),
    NonNormal(rho=0.5),
    NonNormal(rho=0.9),
    NonNormal(rho=0.99),
    Tanh(rho=0.9),
    Tanh(rho=0.9, unknowns=256),
    Tanh(rho=1.2),
    TwoCycle(),
    Rotation(),
    HardRow(),
    Parity(),
    Transformer(),
)
"""What a run compares on when nothing is asked for."""

QUICK: tuple[Problem, ...] = (Symmetric(rho=0.9), NonNormal(rho=0.9), Tanh(rho=0.9), TwoCycle(), HardRow())
"""What ``--quick`` takes: a few seconds, one of each difficulty."""

DIFFERENTIABLE: tuple[Problem, ...] = (
    Symmetric(rho=0.9),
    NonNormal(rho=0.9),
    Symmetric(rho=0.99),
    Tanh(rho=0.9),
    Transformer(),
)
"""What ``--gradients`` compares on by default."""
