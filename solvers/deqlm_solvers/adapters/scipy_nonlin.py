"""The nonlinear solvers of scipy.optimize that report their iterates."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from deqlm_solvers.adapters.extra import load_extra
from deqlm_solvers.adapters.joint import Joint
from deqlm_solvers.adapters.peer import Peer
from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Map, register_solver
from deqlm_solvers.core.stop import Stop

__all__ = ["ScipyAnderson", "ScipyBroyden1", "ScipyBroyden2", "ScipyKrylov"]


class Nonlin(Peer):
    """One joint problem of all B*N unknowns, so one hard row costs every row; float64 inside, on the host.

    Our tolerance is tested at every iterate of the peer, for every row; the peer's own tolerances are off. The last
    finite iterate is returned. The joint solve ends when a row is not finite or has diverged.
    """

    FUNCTION: ClassVar[str]

    honours: ClassVar[frozenset[str]] = frozenset(
        {"max_iter", "rtol", "atol", "norm", "per", "token_dim", "trace", "divergence"}
    )

    @abstractmethod
    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return the keywords of the peer, for a state of ``dtype``."""

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        optimize = load_extra("scipy.optimize", self.EXTRA, self.name)
        quiet = load_extra("scipy.linalg", self.EXTRA, self.name).LinAlgWarning
        self.check(z0, stop)
        method = getattr(optimize, self.FUNCTION)
        with torch.no_grad():
            joint = Joint(f, z0, stop, layout)
            common = {"maxiter": stop.max_iter, "f_tol": 0.0, "callback": joint.iterate}
            joint.run(lambda: method(joint.residual, joint.start, **common, **self.arguments(z0.dtype)), quiet)
            return joint.solution()


@register_solver("scipy.anderson")
@options
class ScipyAnderson(Nonlin):
    """scipy.optimize.anderson: Anderson mixing with a line search, the rows as one joint problem of B*N unknowns.

    An oracle for Anderson acceleration; slow on batches, whose rows share one history and one step length.

    Args:
        memory: M, residual differences kept, >= 1.
        alpha: the initial Jacobian is -1/alpha, > 0; None scales it from the first residual.
        w0: regularisation relative to the diagonal of the Gram matrix, >= 0.
        line_search: "armijo", "wolfe" or None; trials are evaluations of f.

    Raises:
        ValueError: an option outside its range.

    Reference:
        V. Eyert (1996), J. Comp. Phys. 124, as implemented in SciPy.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import ScipyAnderson
        >>> sol = Solve(ScipyAnderson(), Stop(rtol=1e-6))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    memory: int = 5
    alpha: float | None = None
    w0: float = 0.01
    line_search: Literal["armijo", "wolfe"] | None = "armijo"

    FUNCTION: ClassVar[str] = "anderson"

    def __post_init__(self) -> None:
        whole("memory", self.memory, 1)
        number("w0", self.w0, ">= 0", lambda w: w >= 0)
        _check_alpha(self.alpha)
        _check_line_search(self.line_search)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"M": self.memory, "alpha": self.alpha, "w0": self.w0, "line_search": self.line_search}


class Broyden(Nonlin):
    """What scipy's two Broyden methods share."""

    alpha: float | None
    max_rank: int | None
    reduction_method: Literal["restart", "simple", "svd"]
    line_search: Literal["armijo", "wolfe"] | None

    def __post_init__(self) -> None:
        rank, method = self.max_rank, self.reduction_method
        if rank is not None:
            whole("max_rank", rank, 1)
        require(method in ("restart", "simple", "svd"), "reduction_method", method, "'restart', 'simple' or 'svd'")
        if rank is None and method != "restart":
            raise ValueError(f"reduction_method={method!r} is not used unless max_rank is set")
        _check_alpha(self.alpha)
        _check_line_search(self.line_search)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        names = ("alpha", "max_rank", "reduction_method", "line_search")
        return {name: getattr(self, name) for name in names}


@register_solver("scipy.broyden1")
@options
class ScipyBroyden1(Broyden):
    """scipy.optimize.broyden1: Broyden's good method, the rows as one joint problem of B*N unknowns.

    An oracle for `Broyden(update="good")`.

    Args:
        alpha: the initial Jacobian is -1/alpha, > 0; None scales it from the first residual.
        max_rank: largest rank of the Jacobian update, >= 1; None is unlimited.
        reduction_method: what happens at ``max_rank``: "restart", "simple" (drop the oldest) or "svd".
        line_search: "armijo", "wolfe" or None; trials are evaluations of f.

    Raises:
        ValueError: an option outside its range, or a ``reduction_method`` without ``max_rank``.

    Reference:
        C. G. Broyden (1965), Math. Comp. 19, as implemented in SciPy.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import ScipyBroyden1
        >>> sol = Solve(ScipyBroyden1(), Stop(rtol=1e-6))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    alpha: float | None = None
    max_rank: int | None = None
    reduction_method: Literal["restart", "simple", "svd"] = "restart"
    line_search: Literal["armijo", "wolfe"] | None = "armijo"

    FUNCTION: ClassVar[str] = "broyden1"


@register_solver("scipy.broyden2")
@options
class ScipyBroyden2(Broyden):
    """scipy.optimize.broyden2: Broyden's bad method, the rows as one joint problem of B*N unknowns.

    An oracle for `Broyden(update="bad")`.

    Args:
        alpha: the initial Jacobian is -1/alpha, > 0; None scales it from the first residual.
        max_rank: largest rank of the Jacobian update, >= 1; None is unlimited.
        reduction_method: what happens at ``max_rank``: "restart", "simple" (drop the oldest) or "svd".
        line_search: "armijo", "wolfe" or None; trials are evaluations of f.

    Raises:
        ValueError: an option outside its range, or a ``reduction_method`` without ``max_rank``.

    Reference:
        C. G. Broyden (1965), Math. Comp. 19, as implemented in SciPy.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import ScipyBroyden2
        >>> sol = Solve(ScipyBroyden2(), Stop(rtol=1e-6))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    alpha: float | None = None
    max_rank: int | None = None
    reduction_method: Literal["restart", "simple", "svd"] = "restart"
    line_search: Literal["armijo", "wolfe"] | None = "armijo"

    FUNCTION: ClassVar[str] = "broyden2"


@register_solver("scipy.krylov")
@options
class ScipyKrylov(Nonlin):
    """scipy.optimize.newton_krylov: inexact Newton with finite differences, the rows as one problem of B*N unknowns.

    Strong where the Jacobian has few outlying eigenvalues; every product with it is an evaluation of f.

    Args:
        method: inner Krylov method.
        rdiff: relative step of the finite differences, > 0; None is the root of the epsilon of the state's dtype.
        inner_maxiter: steps of the inner method per Newton step, >= 1.
        outer_k: vectors that lgmres keeps from one Newton step to the next, >= 0; used by lgmres only.
        line_search: "armijo", "wolfe" or None; trials are evaluations of f.

    Raises:
        ValueError: an option outside its range, or ``outer_k`` with another method than lgmres.

    Reference:
        D. A. Knoll, D. E. Keyes (2004), J. Comp. Phys. 193, as implemented in SciPy.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import ScipyKrylov
        >>> sol = Solve(ScipyKrylov(), Stop(rtol=1e-6))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    method: Literal["lgmres", "gmres", "bicgstab", "cgs", "minres", "tfqmr"] = "lgmres"
    rdiff: float | None = None
    inner_maxiter: int = 20
    outer_k: int = 10
    line_search: Literal["armijo", "wolfe"] | None = "armijo"

    FUNCTION: ClassVar[str] = "newton_krylov"
    METHODS: ClassVar[tuple[str, ...]] = ("lgmres", "gmres", "bicgstab", "cgs", "minres", "tfqmr")

    def __post_init__(self) -> None:
        inner, outer = self.inner_maxiter, self.outer_k
        require(self.method in self.METHODS, "method", self.method, f"one of {', '.join(self.METHODS)}")
        if self.rdiff is not None:
            number("rdiff", self.rdiff, "> 0, or None", lambda r: r > 0)
        whole("inner_maxiter", inner, 1)
        whole("outer_k", outer, 0)
        if self.method != "lgmres" and outer != 10:
            raise ValueError(f"outer_k={outer!r} is not used unless method='lgmres'")
        _check_line_search(self.line_search)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        keywords = {"method": self.method, "inner_maxiter": self.inner_maxiter, "line_search": self.line_search}
        if self.method == "lgmres":
            keywords["outer_k"] = self.outer_k
        return {**keywords, "rdiff": torch.finfo(dtype).eps ** 0.5 if self.rdiff is None else self.rdiff}


def _check_alpha(alpha: float | None) -> None:
    if alpha is not None:
        number("alpha", alpha, "> 0, or None", lambda a: a > 0)


def _check_line_search(line_search: str | None) -> None:
    require(line_search in ("armijo", "wolfe", None), "line_search", line_search, "'armijo', 'wolfe' or None")
