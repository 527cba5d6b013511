"""Decides whether a call is compiled, says why not, and hands out the compiled map."""

from __future__ import annotations

import warnings
from typing import Any

import torch

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
from deqlm_solvers import Layout, Solve
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

    def _looks(self, f: RowMap, modes: tuple[bool, ...]) -> str:
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


def _unfit(f: RowMap, how: Solve, gradient: Gradient) -> str:
    if not f.rows.plain:
        return "the state is a tree or complex, and a program takes one real tensor"
    if type(gradient) not in GRADIENTS:
        return f"gradient {gradient.name!r} is not compiled; 'implicit', 'phantom', 'one_step' and 'unrolled' are"
    if isinstance(gradient, Implicit) and gradient.second_order:
        return "Implicit(second_order=True) differentiates its backward solve"
    if isinstance(gradient, Unrolled) and gradient.checkpoint:
        return "Unrolled(checkpoint=...) evaluates f again in backward"
    return program_declines(how.solver, how.stop, Layout(), f.rows.z0)
