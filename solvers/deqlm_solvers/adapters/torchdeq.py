"""The solvers of torchdeq."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqlm_solvers.adapters.extra import load_extra
from deqlm_solvers.adapters.peer import Peer, PeerMap
from deqlm_solvers.core.checks import number, require, whole
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.options import options
from deqlm_solvers.core.solution import Solution
from deqlm_solvers.core.solver import Map, register_solver
from deqlm_solvers.core.stop import Stop

__all__ = ["TorchdeqAnderson", "TorchdeqBroyden", "TorchdeqFixedPoint"]


class Torchdeq(Peer):
    """The peer ends by its own test, all rows together; then f is evaluated once more, at what it returned.

    Exactly one of ``rtol`` and ``atol`` is the peer's tolerance. Status and residual are those of the returned point,
    by our formula; rows that it returns as NaN or infinity are reset to the start. A peer that fails returns the last
    point that it evaluated.
    """

    FUNCTION: ClassVar[str]
    LEAST: ClassVar[int]
    """Smallest ``max_iter``: what the peer always evaluates, and the evaluation of its result."""
    BEFORE: ClassVar[int]
    """Evaluations that the peer makes beyond its own max_iter."""

    honours: ClassVar[frozenset[str]] = frozenset({"max_iter", "rtol", "atol", "trace"})

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the keywords that the peer reads; it ignores what it does not know."""

    def peer(self) -> Callable[..., Any]:
        """Return the peer's function."""
        return load_extra("torchdeq.solver", self.EXTRA, self.name).get_solver(self.FUNCTION)  # type: ignore[no-any-return]

    def check(self, z0: Tensor, stop: Stop) -> None:
        super().check(z0, stop)
        both = stop.rtol > 0 and stop.atol > 0
        require(not both, "rtol and atol", (stop.rtol, stop.atol), f"one of them 0 for {self.name}, which tests one")
        require(stop.max_iter >= self.LEAST, "max_iter", stop.max_iter, f">= {self.LEAST} for {self.name}")

    def solve(self, f: Map, z0: Tensor, stop: Stop, layout: Layout) -> Solution:
        peer = self.peer()
        self.check(z0, stop)
        require(layout.scale is None, "scale", layout.scale, f"None for {self.name}, whose test has no scale")
        test = {"tol": stop.rtol, "stop_mode": "rel"} if stop.rtol > 0 else {"tol": stop.atol, "stop_mode": "abs"}
        keywords = {"max_iter": stop.max_iter - 1 - self.BEFORE, **test, **self.arguments()}
        with torch.no_grad():
            start = z0.detach().clone(memory_format=torch.contiguous_format)
            watch = PeerMap(f, z0, stop, layout, most=stop.max_iter - 1)
            returned = None
            if start.numel():
                returned = watch.run(lambda: peer(lambda z: watch.evaluate(z).fz, start, **keywords))
            return _verified(watch, start, None if returned is None else returned[0])


def _verified(watch: PeerMap, start: Tensor, returned: Tensor | None) -> Solution:
    """Evaluate f at what the peer returned, (B, N), or at the last point it evaluated, and measure that."""
    last = watch.last
    z = returned if returned is not None else start if last is None else last.z
    z = torch.where(z.isfinite().all(1, keepdim=True), z, start)
    watch.most = watch.stop.max_iter
    at = watch.evaluate(z)
    reading = watch.measure(at)
    return watch.close(at.z, reading, reading if last is None else watch.measure(last))


@register_solver("torchdeq.fixed_point_iter")
@options
class TorchdeqFixedPoint(Torchdeq):
    """torchdeq's fixed_point_iter: damped Picard iteration on (B, N), which returns f of the point that it tested.

    Args:
        tau: damping in (0, 1]; the peer tests the damped step, so its tolerance is loosened by 1/tau.

    Raises:
        ValueError: an option outside its range; at the solve, rtol and atol both set.

    Reference:
        Z. Geng, J. Z. Kolter (2023), TorchDEQ: a library for deep equilibrium models.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import TorchdeqFixedPoint
        >>> sol = Solve(TorchdeqFixedPoint(), Stop(rtol=1e-5))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    tau: float = 1.0

    FUNCTION: ClassVar[str] = "fixed_point_iter"
    LEAST: ClassVar[int] = 1
    BEFORE: ClassVar[int] = 0

    def __post_init__(self) -> None:
        number("tau", self.tau, "in (0, 1]", lambda t: 0 < t <= 1)

    def arguments(self) -> dict[str, Any]:
        return {"tau": self.tau}


@register_solver("torchdeq.anderson")
@options
class TorchdeqAnderson(Torchdeq):
    """torchdeq's anderson: Anderson acceleration on (B, N), which returns f of the point that it tested.

    Args:
        memory: m, points kept, >= 2.
        lam: ridge added to the Gram matrix as it is, not relative to it, >= 0.
        tau: damping in (0, 1].

    Raises:
        ValueError: an option outside its range; at the solve, rtol and atol both set, or max_iter below 3.

    Reference:
        Z. Geng, J. Z. Kolter (2023), TorchDEQ: a library for deep equilibrium models.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import TorchdeqAnderson
        >>> sol = Solve(TorchdeqAnderson(), Stop(rtol=1e-5))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    memory: int = 6
    lam: float = 1e-4
    tau: float = 1.0

    FUNCTION: ClassVar[str] = "anderson"
    LEAST: ClassVar[int] = 3
    BEFORE: ClassVar[int] = 0

    def __post_init__(self) -> None:
        whole("memory", self.memory, 2)
        number("lam", self.lam, ">= 0", lambda t: t >= 0)
        number("tau", self.tau, "in (0, 1]", lambda t: 0 < t <= 1)

    def arguments(self) -> dict[str, Any]:
        return {"m": self.memory, "lam": self.lam, "tau": self.tau}


@register_solver("torchdeq.broyden")
@options
class TorchdeqBroyden(Torchdeq):
    """torchdeq's broyden: Broyden's good method on (B, N), one Jacobian per row.

    Args:
        memory: rank-one terms kept, >= 1 (the peer's LBFGS_thres); None keeps all. The peer overwrites terms that later
            ones depend on, and often diverges once more than this many steps are made.
        line_search: search along the step, by norms over the whole batch; trials are evaluations of f.

    Raises:
        ValueError: an option outside its range; at the solve, rtol and atol both set, or max_iter below 2.

    Reference:
        Z. Geng, J. Z. Kolter (2023), TorchDEQ: a library for deep equilibrium models.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Solve, Stop
        >>> from deqlm_solvers.adapters import TorchdeqBroyden
        >>> sol = Solve(TorchdeqBroyden(), Stop(rtol=1e-5))(torch.cos, torch.zeros(1, 1))
        >>> round(sol.z.item(), 4)
        0.7391
    """

    memory: int | None = None
    line_search: bool = False

    FUNCTION: ClassVar[str] = "broyden"
    LEAST: ClassVar[int] = 2
    BEFORE: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.memory is not None:
            whole("memory", self.memory, 1)
        require(isinstance(self.line_search, bool), "line_search", self.line_search, "True or False")

    def arguments(self) -> dict[str, Any]:
        return {"LBFGS_thres": self.memory, "ls": self.line_search}
