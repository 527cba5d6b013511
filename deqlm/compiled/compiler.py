"""Decides whether a call is compiled, says why not, and hands out the compiled map."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.compiled.lane import Lane
from deqlm.compiled.maps import CompiledMap, Programs
from deqlm.compiled.program import Compiled
from deqlm.compiled.refused import NotCompiledError, hooked, modes_of, what_moves
from deqlm.compiled.settings import Compile
from deqlm.gradients.base import Gradient
from deqlm.gradients.forward_mode import in_forward_mode
from deqlm.gradients.implicit import Implicit
from deqlm.gradients.one_step import OneStep
from deqlm.gradients.phantom import Phantom
from deqlm.gradients.unrolled import Unrolled
from deqlm.wrap.rows import RowMap
from deqlm_solvers import Layout, Solution, Solve
from deqlm_solvers.loop.program import program_declines

__all__ = ["Compiler"]

GRADIENTS = (Implicit, OneStep, Phantom, Unrolled)


class Compiler:
    """Compiles the solves of one module, each once for its kind of inputs. A copy of it has compiled nothing yet.

    Args:
        settings: how.
    """

    def __init__(self, settings: Compile) -> None:
        self.settings = settings
        self.refused = ""
        self._programs: Programs | None = None
        self._looked: set[Any] = set()
        self._allowed: tuple[Any, ...] = ()
        self._lanes: dict[Any, Lane] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiler:
        return Compiler(self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiler, (self.settings,)

    @property
    def report(self) -> list[Compiled]:
        """What was compiled so far, with seconds, and whether machine code was found in torch's cache."""
        return [] if self._programs is None else self._programs.log

    def over(self, f: RowMap, how: Solve, gradient: Gradient) -> CompiledMap:
        """Return the map whose solves are programs.

        Raises:
            NotCompiledError: with the reason.
        """
        if self._programs is None:
            self._programs = Programs(self.settings)
        if why := self._declines(f, how, gradient):
            raise NotCompiledError(why)
        return CompiledMap.of(f, self._programs, in_steps=not isinstance(gradient, Implicit))

    def remember(self, f: CompiledMap, how: Solve, gradient: Gradient, *, quiet: bool) -> None:
        """Remember a call without grad that was solved, so that `again` goes the short way."""
        rows = f.rows
        key = _kind(rows.z0.reshape(rows.shapes[0]), f.prepared, how, gradient)
        eps = torch.finfo(rows.dtype).eps
        resolved = how.resolve(rows.z0)
        stop, solver = resolved.stop, resolved.solver
        plain = rows.batch_dims == 1 and not any(rows.formats) and rows.dtype in (torch.float32, torch.float64)
        told = stop.per == "row" and (stop.is_budget or stop.rtol >= eps) and not getattr(gradient, "same_value", False)
        if key is None or not plain or not told or stop.max_iter == 0:
            return
        module = None if f.replay is None else f.replay.module
        modes = () if module is None else modes_of(module)
        fitted = solver.fitted(rows.sizes[0], stop.max_iter)  # type: ignore[attr-defined]
        layout = Layout(leaves=rows.row_shapes)
        self._lanes[key] = Lane(resolved, f.programs.loop, modes or (), layout, eps, quiet, fitted)

    def again(
        self,
        bare: Callable[..., Any],
        module: nn.Module | None,
        z0: Tensor,
        inputs: tuple[Any, ...],
        how: Solve,
        gradient: Gradient,
    ) -> Solution | None:
        """Return the solution of a call that is like one before, or None.

        Args:
            bare: f, as in `RowMap.bare`.
            module: whose hooks and modes are looked at, or None.
            z0: the start, contiguous, in the shape of the state.
            inputs: what f gets besides.
            how: as the call before was told.
            gradient: likewise.
        """
        key = _kind(z0, inputs, how, gradient) if self._lanes and not torch.is_grad_enabled() else None
        lane = None if key is None else self._lanes.get(key)
        if lane is None:
            return None
        try:
            return lane(bare, module, z0, _cut(inputs))
        except NotCompiledError:  # of a layer that was changed; the long way says why, or solves eagerly
            return None

    def refuse(self, error: NotCompiledError) -> None:
        """Take note that a call cannot be compiled: raise ``error``, or say it once and never try again."""
        if self.settings.on_refuse == "error":
            raise error
        self.refused = error.why
        warnings.warn(f"solving eagerly: {error.why}", UserWarning, stacklevel=3)

    def _declines(self, f: RowMap, how: Solve, gradient: Gradient) -> str:
        module = None if f.replay is None else f.replay.module
        modes = () if module is None else modes_of(module)
        if modes is None:
            return hooked(module)
        if torch.is_autocast_enabled(f.rows.device.type):
            return "autocast is on: give a layer in the dtype that it is to compute in"
        if in_forward_mode():
            return "it is differentiated in forward mode"
        asked = (how, gradient, f.rows.plain, f.rows.dtype, f.rows.device)
        # the same objects call after call: to compare their fields costs as much as a small f
        if len(self._allowed) != len(asked) or any(a is not b for a, b in zip(asked, self._allowed, strict=True)):
            if why := _unfit(f, how, gradient):
                return why
            self._allowed = asked
        return self._looks(f, modes)

    def _looks(self, f: RowMap, modes: tuple[Any, ...]) -> str:
        """Evaluate f once for each kind of state: it says itself what is wrong with it, and shows what it moves."""
        key = (f.rows.shapes[0][f.rows.batch_dims :], f.rows.dtype, modes)
        if key in self._looked:
            return ""
        with torch.no_grad():
            f(f.rows.z0)
        if f.replay is not None and (why := what_moves(f.replay)):
            return why
        f.count.calls, f.count.rows = f.count.calls - 1, f.count.rows - f.rows.count
        self._looked.add(key)
        return ""


def _kind(z0: Tensor, inputs: tuple[Any, ...], how: Solve, gradient: Gradient) -> Any:
    """Return what calls have in common that differ in numbers alone; None where that is not known."""
    leaves = tensors_of(inputs)
    if leaves is None or not all(_is_plain(leaf) for leaf in (z0, *leaves)):
        return None
    return (z0.shape, z0.dtype, z0.device.type, how, gradient, tuple(leaf.shape for leaf in leaves))


def _cut(value: Any) -> Any:
    """Return nested tuples with their tensors cut from graphs; a walk through any tree costs more."""
    if isinstance(value, tuple):
        return tuple(map(_cut, value))
    return value.detach() if isinstance(value, Tensor) else value


def _is_plain(leaf: Tensor) -> bool:
    return type(leaf) in (Tensor, nn.Parameter) and leaf.layout is torch.strided and not leaf.is_neg()


def tensors_of(inputs: tuple[Any, ...]) -> list[Tensor] | None:
    """Return the tensors of nested tuples and empty dicts; None where there is anything else."""
    leaves: list[Tensor] = []
    for value in inputs:
        more = [value] if isinstance(value, Tensor) else tensors_of(value) if isinstance(value, tuple) else None
        if more is None and value != {}:
            return None
        leaves += more or []
    return leaves


def _unfit(f: RowMap, how: Solve, gradient: Gradient) -> str:
    if not f.rows.plain:
        return "the state is a tree or complex, and a program takes one real tensor"
    if type(gradient) not in GRADIENTS:
        return f"gradient {gradient.name!r} is not compiled; 'implicit', 'phantom', 'one_step' and 'unrolled' are"
    if isinstance(gradient, Implicit) and gradient.second_order:
        return "Implicit(second_order=True) differentiates its backward solve"
    if isinstance(gradient, Implicit) and getattr(gradient.solve, "solver", None) is not None:
        name = gradient.solve.solver.name  # type: ignore[union-attr]
        if name == "deer":
            return "Implicit(solve=Deer) scans along a sequence by autograd"
    if isinstance(gradient, Unrolled) and gradient.checkpoint:
        return "Unrolled(checkpoint=...) evaluates f again in backward"
    return program_declines(how.solver, how.stop, Layout(), f.rows.z0)
