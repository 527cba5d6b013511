"""Solves as compiled programs: in this process, and as files that run without Python."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from deqlm.compiled.compiler import Compiler
from deqlm.compiled.package import ExportedSolve, write_facts
from deqlm.compiled.refused import NotCompiledError, by_compiler, reason_of
from deqlm.compiled.settings import Compile
from deqlm.compiled.whole import WholeSolve
from deqlm.deq import DEQ
from deqlm.equilibrium.module import Equilibrium
from deqlm_solvers import StepSolver, Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.loop.program import recipe

__all__ = ["CompiledSolve", "compile", "export", "load_exported"]

E = TypeVar("E", bound=Equilibrium)


class CompiledSolve(Equilibrium):
    """An `Equilibrium` of one map, whose solves are compiled; `deqlm.compile` makes it of a function or a module.

    Args:
        f: the map.
        **settings: those of `Equilibrium`.
    """

    def __init__(self, f: Callable[..., Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.f = f

    def forward(self, z0: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the fixed point of ``f(z, *args)`` from ``z0``; keywords are those of `Equilibrium.forward`."""
        return super().forward(self.f, z0, *args, **kwargs)


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
    made = copy.copy(model)
    for kind in ("_modules", "_parameters", "_buffers"):
        setattr(made, kind, dict(getattr(model, kind)))
    made.compiler = Compiler(how)
    return made


def export(deq: DEQ, example: Tensor | tuple[Any, ...], path: str | Path) -> Path:
    """Write a solve to a file that runs without Python: it starts, tests every row, stops and reports by itself.

    The file holds machine code for this kind of processor and this version of torch, with the layer's weights. It takes
    any batch size; other dimensions are those of the example. Beside it, with the ending ``.ops.so``, lies the library
    of its operators, which a program loads first (``examples/export/solve.cpp``); `load_exported` does so by itself.

    Args:
        deq: what is solved, as without grad: its ``evaluation`` if it has one, else its solver and stop.
        example: an input, or a tuple of one and of the layer's further arguments; tensors whose first dimension is that
            of the input are per row.
        path: the file, ending in ``.pt2``.

    Returns:
        The path.

    Raises:
        TypeError: no `DEQ`.
        ValueError: another ending; one row, which hides that there may be more.
        NotCompiledError: a solve that cannot be exported, with the reason.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())).eval()
        >>> path = deqlm.export(deq, torch.ones(2, 4), "model.pt2")  # doctest: +SKIP
        >>> deqlm.load_exported(path)(torch.ones(5, 4)).steps.shape  # doctest: +SKIP
        torch.Size([5])
    """
    if not isinstance(deq, DEQ):
        raise TypeError(f"deq must be a DEQ, got {type(deq).__name__}")
    path = Path(path)
    require(path.suffix == ".pt2", "path", str(path), "a file that ends in .pt2")
    x, *args = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        how, whole = _whole(deq, x, tuple(args))
        try:
            program = torch.export.export(whole, (x, *args), dynamic_shapes=_shapes(x, args))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:
            if not by_compiler(error):
                raise
            raise NotCompiledError(reason_of(error)) from error
    write_facts(path, solver=how.solver.to_dict(), stop=how.stop.to_dict(), shape=list(x.shape[1:]))
    return path


def load_exported(path: str | Path) -> ExportedSolve:
    """Return the solve in a file that `export` wrote.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no exported solve, or one of another version of torch.
        RuntimeError: the operators cannot be built.
    """
    return ExportedSolve(path)


def _whole(deq: DEQ, x: Any, args: tuple[Any, ...]) -> tuple[Any, nn.Module]:
    """Return how ``deq`` solves without grad, and that as one module.

    Raises:
        NotCompiledError: it cannot be one.
    """
    if not isinstance(x, Tensor):
        raise NotCompiledError("the input is no tensor")
    require(x.shape[0] > 1, "example", tuple(x.shape), "one of at least two rows, of which there may be any number")
    rowmap, replay = deq.on_rows(x, args, {})
    how = deq.settings(None, None, None)[0].resolve(rowmap.rows.z0)
    with replay:
        Compiler(Compile()).over(rowmap, how, deq.gradient)
    state = rowmap.rows.unpack(rowmap.rows.z0)
    if why := _not_exported(deq, how.stop, state):
        raise NotCompiledError(why)
    told = recipe(cast(StepSolver, how.solver), how.stop, state)
    return how, WholeSolve(cast(nn.Module, deq.layer), deq.inject, lambda u: deq._start(u, "x"), told)


def _not_exported(deq: DEQ, stop: Stop, state: Tensor) -> str:
    if getattr(deq.gradient, "same_value", False):
        return "a gradient with same_value takes steps behind the solve"
    if deq.batch_dims not in (None, 1):
        return f"batch_dims={deq.batch_dims}, and a file takes rows along the first dimension"
    if not isinstance(deq.layer, nn.Module):
        return "the layer is a function: give a module, whose weights go into the file"
    if stop.per == "leaf" or isinstance(stop.norm, tuple) or stop.first_tokens:
        return "norms with weights, per='leaf' and first_tokens know the shapes of one batch"
    if stop.per == "token" and (stop.token_dim != 1 or state.dim() < 2):
        return "tokens lie along dimension 1 of a state in a file"
    return ""


def _shapes(x: Tensor, args: list[Any]) -> tuple[Any, ...]:
    """Return which dimensions of the inputs may change: the first, of those that have one entry per row."""
    batch = torch.export.Dim("batch", min=1)

    def per_row(value: Any) -> dict[int, Any] | None:
        rows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == x.shape[0]
        return {0: batch} if rows else None

    return ({0: batch}, tuple(map(per_row, args))) if args else ({0: batch},)
