"""How a solved point is tied to autograd."""

from deqlm.gradients.base import GRADIENTS, Gradient, register_gradient
from deqlm.gradients.implicit import Implicit
from deqlm.gradients.neumann import Neumann
from deqlm.gradients.one_step import OneStep
from deqlm.gradients.phantom import Phantom
from deqlm.gradients.reversible import Reversible
from deqlm.gradients.shine import Shine
from deqlm.gradients.unrolled import Unrolled

__all__ = [
    "GRADIENTS",
    "Gradient",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "Reversible",
    "Shine",
    "Unrolled",
    "register_gradient",
]
