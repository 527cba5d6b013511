"""Writes a solve to a file, and runs such a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deqlm.compiled.compiler import Compiler
from deqlm.compiled.package import ExportedSolve, write_facts
from deqlm.compiled.refused import NotCompiledError, by_compiler, reason_of
from deqlm.compiled.settings import Compile
from deqlm.compiled.whole import WholeSolve
from deqlm.deq import DEQ
from deqlm_solvers import StepSolver, Stop
from deqlm_solvers.core.checks import require
from deqlm_solvers.loop.program import recipe

__all__ = ["export", "load_exported"]


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
        FileNotFoundError: no folder of that name.
        ValueError: another ending; no input; one row, which hides that there may be more.
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
    require(path.suffix == ".pt2" and not path.is_dir(), "path", str(path), "a file that ends in .pt2")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write the file to")
    require(example != (), "example", example, "an input, or a tuple that begins with one")
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
    rule = "one of at least two rows, of which there may be any number"
    require(x.dim() > 0 and x.shape[0] > 1, "example", tuple(x.shape), rule)
    rowmap, replay = deq.on_rows(x, args, {})
    how = deq.settings(None, None, None)[0].resolve(rowmap.rows.z0)
    with replay:
        Compiler(Compile()).over(rowmap, how, deq.gradient)
    state = rowmap.rows.unpack(rowmap.rows.z0)
    if why := _not_exported(deq, how.stop, state):
        raise NotCompiledError(why)
    told = recipe(cast(StepSolver, how.solver), how.stop, state)
    return how, WholeSolve(cast(nn.Module, deq.layer), deq.inject, _start_of(deq), told)


def _start_of(deq: DEQ) -> Callable[[Tensor], Tensor]:
    """Return u -> the start, without a look at what is given: the example has been looked at."""
    start = deq.start
    if start is None:
        return torch.zeros_like
    return (lambda u: start.expand(u.shape[0], *start.shape)) if isinstance(start, Tensor) else start


def _not_exported(deq: DEQ, stop: Stop, state: Tensor) -> str:
    if getattr(deq.gradient, "same_value", False):
        return "a gradient with same_value takes steps behind the solve"
    if deq.batch_dims not in (None, 1):
        return f"batch_dims={deq.batch_dims}, and a file takes rows along the first dimension"
    if isinstance(deq.start, Tensor) and deq.start.dim() == state.dim():
        return "start has one entry for each row of a batch: give that of one row"
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
