"""Newton along a sequence, solved by a parallel scan."""

from deqlm_solvers.methods.deer.deer import Deer

__all__ = ["Deer"]
