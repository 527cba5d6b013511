"""A function that torch compiles when it is first called, with what that took."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize

from deqlm.compiled.refused import NotCompiledError, by_compiler, drawn, reason_of
from deqlm.compiled.settings import Compile
from deqlm.compiled.traced import own_code
from deqlm.reporting.progress import Progress

__all__ = ["Compiled", "Program"]


@dataclass(frozen=True)
class Compiled:
    """One compilation.

    Attributes:
        part: what was compiled: "loop", "steps", "tie" or "adjoint".
        seconds: wall time.
        cached: whether machine code was found in torch's cache on disk, for all of it.
    """

    part: str
    seconds: float
    cached: bool

    def __str__(self) -> str:
        return f"{self.part}: {self.seconds:.1f} s, {'from the cache' if self.cached else 'compiled'}"


class Program:
    """A compiled function; each call may compile once more, for new shapes or for a layer that was changed.

    Args:
        part: name in reports.
        function: what is compiled.
        settings: how.
        log: where compilations are noted.
        backend: what makes a graph into something to call; None is inductor with its C++ wrapper, or torch's own
            operations, by the settings.
    """

    def __init__(
        self,
        part: str,
        function: Callable[..., Any],
        settings: Compile,
        log: list[Compiled],
        backend: Callable[..., Any] | None = None,
    ) -> None:
        self.part, self.settings, self.log = part, settings, log
        self.made = backend or (eager_backend if settings.loop == "python" else inductor_backend)
        self.compiling = self.cached = False
        self.function = torch.compile(
            own_code(function), fullgraph=True, dynamic=settings.dynamic, backend=self._backend
        )

    def __call__(self, *args: Any) -> Any:
        """Call it.

        Raises:
            NotCompiledError: torch's compiler cannot take it.
        """
        self.compiling, start = False, time.perf_counter()
        try:
            result = self._run(args)
        except Exception as error:
            if isinstance(inner := getattr(error, "inner_exception", None), NotCompiledError):
                raise inner from None
            if not by_compiler(error):
                raise
            raise NotCompiledError(reason_of(error)) from error
        if self.compiling:
            self.log.append(Compiled(self.part, time.perf_counter() - start, self.cached))
        return result

    def _run(self, args: tuple[Any, ...]) -> Any:
        graphs = torch.is_grad_enabled() or parametrize._cache_enabled  # what f reads may belong to one
        call = self._quietly if graphs else self.function
        given = (args,) if graphs else args
        try:
            return call(*given)
        except Exception as error:
            if not (by_compiler(error) and "SymFloat" in str(error)):
                raise
        # a number that has changed: the compiler made it an input, which loops do not take
        with importlib.import_module("torch._dynamo.config").patch(specialize_float=True):  # type: ignore[attr-defined]
            return call(*given)

    def _quietly(self, args: tuple[Any, ...]) -> Any:
        with warnings.catch_warnings():
            # torch's compiler asks every input for its gradient, and torch warns of asking
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return self.function(*args)

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        if name := drawn(graph):
            raise NotCompiledError(f"f draws random numbers ({name}): call eval(), or set the dropout to 0")
        begun = time.time()
        with _bar(self.part, self.settings):
            made = self.made(graph, inputs)
        self.cached = self.settings.loop != "python" and not _written_since(begun)
        self.compiling = True
        return made


def _written_since(begun: float) -> bool:
    """Say whether torch's compiler has written machine code into its cache since then, in seconds of the epoch."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return any(made.stat().st_mtime >= begun for made in Path(cache_dir()).glob("*/*.so"))


def inductor_backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Make machine code of a graph; a loop in it then runs without an interpreter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler uses parts of torch that warn of their age when it is loaded
        from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs, config_patches={"cpp_wrapper": True})


def eager_backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Run a graph by torch's own operations."""
    return graph.forward


@contextmanager
def _bar(part: str, settings: Compile) -> Iterator[None]:
    bar = Progress(1, False if settings.loop == "python" else settings.progress, name="deqlm.compile", unit="program")
    bar.reach(0, f"compiling the {part}, once; cached on disk")
    try:
        yield
    finally:
        bar.close()


def inductor_function(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Make machine code of a functional graph of core operations, called with a list."""
    from torch._inductor.compile_fx import compile_fx_inner

    return compile_fx_inner(graph, inputs, cpp_wrapper=True, is_inference=True)


def eager_function(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Run such a graph by torch's own operations."""
    return lambda given: graph(*given)
