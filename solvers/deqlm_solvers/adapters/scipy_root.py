"""MINPACK's hybrid method, which reports no iterates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.adapters.extra import load_extra
from deqlm_solvers.adapters.joint import Joint
from deqlm_solvers.adapters.peer import Peer
from deqlm_solvers.core.checks import number, require
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Map, register_solver
from deqlm_solvers.core.stop import Stop

__all__ = ["ScipyHybr"]


@register_solver("scipy.hybr")
@options
class ScipyHybr(Peer):
    """scipy.optimize.root(method="hybr"): Powell's hybrid method, the rows as one joint problem of B*N unknowns.

    An oracle for a handful of unknowns: its dense Jacobian takes B*N evaluations by differences, and B*N squared
    memory. Every evaluated point is tested, since it reports no iterates: the first that passes for all rows is
    returned, else the one whose worst row is nearest to its tolerance.

    Args:
        factor: initial step bound relative to the scaled start, in [0.1, 100].
        eps: relative error of f, which sets the step of the differences to its root, > 0; None is the epsilon of the
            state's dtype.
        band: numbers of sub- and superdiagonals of the joint Jacobian, >= 0; (N-1, N-1) for an f that works row by
            row makes a Jacobian cost 2N-1 evaluations at most. None takes it as full.

    Raises:
        ValueError: an option outside its range.

    Reference:
        M. J. D. Powell (1970), A hybrid method for nonlinear equations, as implemented in MINPACK and SciPy.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import ScipyHybr
        >>> sol = Solve(ScipyHybr(), Stop(rtol=1e-6))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    factor: float = 100.0
    eps: float | None = None
    band: Sequence[int] | None = None

    honours: ClassVar[frozenset[str]] = frozenset({"max_iter", "rtol", "atol", "norm", "per", "token_dim", "trace"})

    def __post_init__(self) -> None:
        number("factor", self.factor, "in [0.1, 100]", lambda f: 0.1 <= f <= 100)
        if self.eps is not None:
            number("eps", self.eps, "> 0, or None", lambda e: e > 0)
        if self.band is not None:
            pair = isinstance(self.band, list | tuple) and len(self.band) == 2
            ok = pair and all(isinstance(n, int) and n >= 0 for n in self.band)
            require(ok, "band", self.band, "two whole numbers >= 0, or None")
            object.__setattr__(self, "band", tuple(self.band))

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        optimize = load_extra("scipy.optimize", self.EXTRA, self.name)
        self.check(z0, stop)
        eps = torch.finfo(z0.dtype).eps if self.eps is None else self.eps
        keywords: dict[str, Any] = {"factor": self.factor, "eps": eps, "band": self.band}
        with torch.no_grad():
            joint = Joint(f, z0, stop, layout)
            keywords |= {"xtol": 0.0, "maxfev": stop.max_iter + 1}
            joint.run(lambda: optimize.root(joint.residual_best, joint.start, method="hybr", options=keywords))
            return joint.solution()
