"""The map of one call, with its solve, its steps and its tie to autograd compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqlm.compiled.adjoint import derive
from deqlm.compiled.program import Compiled, Program, eager_function, inductor_function
from deqlm.compiled.refused import NotCompiledError
from deqlm.compiled.settings import Compile
from deqlm.compiled.tied import LOCAL, Call, tied
from deqlm.compiled.traced import evaluate, solve_loop
from deqlm.gradients.adjoint import System
from deqlm.wrap.rows import RowMap
from deqlm.wrap.trees import map_tensors

__all__ = ["CompiledMap", "Programs"]


class Programs:
    """The programs of one layer or function, compiled when they are first needed.

    Args:
        settings: how.

    Attributes:
        log: what was compiled so far.
    """

    def __init__(self, settings: Compile) -> None:
        self.settings = settings
        self.log: list[Compiled] = []
        self.loop = Program("loop", solve_loop, settings, self.log)
        self.steps = Program("steps", evaluate, settings, self.log)
        self.tie = Program("adjoint", evaluate, settings, self.log, self._tied)

    def _tied(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        point = [node.target for node in graph.graph.find_nodes(op="placeholder")].index("L_z_")
        others = (given for i, given in enumerate(inputs) if i != point)
        if not any(isinstance(given, Tensor) and given.requires_grad for given in others):
            return lambda *given: (given[point].detach(),)
        make = eager_function if self.settings.loop == "python" else inductor_function
        return tied(derive(graph, inputs, point, make))


class CompiledMap(RowMap):
    """A `RowMap` whose loop is a program, and whose gradient is one too.

    Attributes:
        programs: compiled for the layer.
        in_steps: whether evaluations with a graph are compiled too.
    """

    programs: Programs
    in_steps: bool

    @classmethod
    def of(cls, f: RowMap, programs: Programs, in_steps: bool) -> CompiledMap:
        """Return ``f`` with what was compiled for its layer; calls are counted together."""
        made = object.__new__(cls)
        made.__dict__.update(f.__dict__, programs=programs, in_steps=in_steps)
        # a compiler takes no view that is negated or conjugated when it is read
        made.prepared = map_tensors(_as_stored, f.prepared)
        return made

    def __call__(self, z: Tensor, bare: bool = False) -> Tensor:
        if bare or not self.in_steps or not torch.is_grad_enabled():
            return super().__call__(z, bare)
        self.count.add(self.rows.count)
        state = z.reshape(self.rows.shapes[0])
        return self.programs.steps(self.bare, self.prepared, state, self._held()).reshape(z.shape)

    def program(self, z: Tensor, drive: Tensor) -> Tensor:
        """Return the last point of a solve from ``z`` (B, N), inner dtype; see `deqlm_solvers.loop.program`."""
        inputs, held = map_tensors(Tensor.detach, (self.prepared, self._held()))
        state = z.reshape(self.rows.shapes[0])
        try:
            return self.programs.loop(self.bare, inputs, state, drive, held, self.rows.dtypes[0]).reshape(z.shape)
        except NotCompiledError:
            calls, rows = self.count.calls, self.count.rows
            super().__call__(z.to(self.rows.dtype))  # says itself what is wrong with an f that was changed
            self.count.calls, self.count.rows = calls, rows
            raise

    def tie(self, z: Tensor, system: System) -> Tensor:
        """Return ``z`` (B, N), a solved point, tied to autograd; the adjoint is solved by a program."""
        state = z.detach().reshape(self.rows.shapes[0]).contiguous().requires_grad_()
        self.count.add(self.rows.count)
        outer, LOCAL.call = LOCAL.call, Call(system, z.shape)
        try:
            return self.programs.tie(self.bare, self.prepared, state, self._held()).reshape(z.shape)
        finally:
            LOCAL.call = outer

    def _held(self) -> tuple[Tensor, Tensor] | None:
        if self.held is None:
            return None
        shape = self.rows.shapes[0]
        return self.held.masked.reshape(shape), self.held.at.reshape(shape)


def _as_stored(t: Tensor) -> Tensor:
    return t.resolve_conj().resolve_neg() if t.is_conj() or t.is_neg() else t
