"""Compiles the solves of a module or of a map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from deqlm.compiled.compiler import Compiler
from deqlm.compiled.settings import Compile
from deqlm.equilibrium.module import Equilibrium
from deqlm.gradients.base import Gradient
from deqlm.wrap.hidden import reached
from deqlm_solvers import Solution, Solve
from deqlm_solvers.core.checks import require

__all__ = ["CompiledSolve", "compile"]

E = TypeVar("E", bound=Equilibrium)

SETTINGS = {"solver", "stop", "gradient", "with_stats"}
"""Keywords of a call that may be like one before."""


class CompiledSolve(Equilibrium):
    """An `Equilibrium` of one map, whose solves are compiled; `deqlm.compile` makes it of a function or a module.

    Args:
        f: the map.
        **settings: those of `Equilibrium`.
    """

    def __init__(self, f: Callable[..., Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.f = f
        self._reached: tuple[nn.Module | None] | None = None

    def forward(self, z0: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the fixed point of ``f(z, *args)`` from ``z0``; keywords are those of `Equilibrium.forward`."""
        if kwargs.keys() <= SETTINGS and type(z0) is Tensor and z0.dim() > 1 and not torch.is_grad_enabled():
            how, method = self.settings(*(kwargs.get(name) for name in ("solver", "stop", "gradient")))
            if (sol := self._again(z0.detach().contiguous(), args, how, method)) is not None:
                self.keep(sol)
                return (sol.z, sol) if kwargs.get("with_stats") else sol.z
        return super().forward(self.f, z0, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # a function is copied as it is, and with it what it reaches
        return {**self.__dict__, "_reached": None}

    def _again(self, z0: Tensor, args: tuple[Any, ...], how: Solve, method: Gradient) -> Solution | None:
        """Return the solution of a call that is like one before in all but its numbers, or None."""
        if self.compiler is None or self.cap is not None or self.batch_dims not in (None, 1):
            return None
        if self._reached is None:
            self._reached = (self.f if isinstance(self.f, nn.Module) else reached(self.f),)
        return self.compiler.again(self.f, self._reached[0], z0, args, how, method)


@overload
def compile(model: E, **settings: Any) -> E: ...
@overload
def compile(model: Callable[..., Any], **settings: Any) -> CompiledSolve: ...


def compile(
    model: Any,
    *,
    on_refuse: Literal["error", "eager"] = "error",
    dynamic: bool | None = None,
    loop: Literal["inductor", "python"] = "inductor",
    progress: bool | None = None,
    **settings: Any,
) -> Any:
    """Make one compiled program of the whole solve, and one of its adjoint, for solves whose map is small.

    A small map costs less than the Python between two evaluations of it. A program evaluates it, takes the step, tests
    each row and stops without coming back to Python. What a solve promises stays: statuses, steps and counts are those
    of the eager solve, points and gradients equal to rounding, rows that are done are frozen (they stay in the batch).
    Values of ``stop``, such as tolerances and ``max_iter``, are no part of a program; another batch size compiles once
    more, for all sizes; a layer that was changed compiles again.

    The first call takes from some seconds to a minute; machine code is kept in torch's cache on disk, so that the next
    process loads it. ``compiled.compiler.report`` tells what was compiled, how long it took, and what was found there.

    Compiled are solves on the CPU by `FixedPoint`, `Anderson` and `Broyden` with gradients `Implicit`, `Phantom`,
    `OneStep` and `Unrolled` (whose steps run one by one, each compiled), of one real tensor. Refused, with the reason,
    are other solvers, layers that draw random numbers or move buffers (dropout and BatchNorm in train()), hooks,
    control flow that depends on values, autocast, and what looks at single evaluations (``states``, ``trace``).

    Args:
        model: a `DEQ` or `Equilibrium`, of which a copy is returned that shares layer and parameters; or a map
            ``f(z, *args)``, a function or a module.
        on_refuse: see `Compile`.
        dynamic: likewise.
        loop: likewise.
        progress: likewise.
        **settings: for a map, those of `Equilibrium`, such as ``solver`` and ``stop``.

    Raises:
        TypeError: settings for a module that has its own.
        ValueError: a setting out of range; a module with ``graph=True``.
        NotCompiledError: at a call, with the reason.

    Examples:
        >>> import deqlm, torch
        >>> cosine = deqlm.compile(torch.cos, solver="fixed_point", loop="python")
        >>> z, sol = cosine(torch.zeros(2, 3), with_stats=True)
        >>> round(z[0, 0].item(), 3), bool(sol.converged.all())
        (0.739, True)
    """
    how = Compile(on_refuse=on_refuse, dynamic=dynamic, loop=loop, progress=progress)
    if not isinstance(model, Equilibrium):
        if not callable(model):
            raise TypeError(f"model must be a DEQ, an Equilibrium or a map, got {type(model).__name__}")
        return CompiledSolve(model, compile=how, **settings)
    if settings:
        raise TypeError(f"{min(settings)!r} is a setting of the module that is given: set it there")
    require(not getattr(model, "graph", False), "graph", True, "False with compile")
    made = copy.copy(model)
    for kind in ("_modules", "_parameters", "_buffers"):
        setattr(made, kind, dict(getattr(model, kind)))
    made.compiler = Compiler(how)
    return made
