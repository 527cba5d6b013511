"""The transforms of torch.func around a call: their levels, and tensors with and without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Level", "Levels", "bare", "depth", "outside", "transformed"]

_F: Any = torch._C._functorch  # type: ignore[attr-defined]


def depth() -> int:
    """Return how many transforms of torch.func are open, which is the number of the innermost.

    Examples:
        >>> depth(), torch.func.vmap(lambda x: x + depth())(torch.zeros(1)).item()
        (0, 1.0)
    """
    return _F.maybe_current_level() or 0


def transformed() -> bool:
    """Say whether a transform of torch.func is open (vmap, grad, vjp, jvp and what is made of them).

    Examples:
        >>> transformed(), torch.func.vmap(lambda x: x + transformed())(torch.zeros(1)).item()
        (False, 1.0)
    """
    return depth() > 0


def bare(t: Tensor) -> Tensor:
    """Return what is inside a tensor of transforms: no derivative of theirs, and mapped dimensions in front.

    Examples:
        >>> bare(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    plain, dims = _inside(t)
    with outside():
        return _in_front(plain, dims)


@contextmanager
def outside() -> Iterator[None]:
    """Leave all transforms for as long as the context lasts, forward mode included."""
    if not depth() and forward_ad._current_level < 0:
        yield
        return
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack  # loaded where it is in use

    with temporarily_clear_interpreter_stack(), forward_ad._set_fwd_grad_enabled(False):
        yield


@dataclass(frozen=True)
class Level:
    """One transform.

    Attributes:
        number: of the level, from 1, the outermost.
        kind: "vmap", "grad" or "jvp".
        size: of the mapped dimension; 0 where the level maps nothing.
        randomness: of a vmap.
    """

    number: int
    kind: str
    size: int = 0
    randomness: str = ""


class Levels:
    """The transforms that are open when it is made.

    Attributes:
        open: all, the outermost first.
        mapped: those whose dimension the state has, by number; see `map_over`.

    Raises:
        RuntimeError: one of them is unknown, or forward mode is open around them.
    """

    def __init__(self) -> None:
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

        self.open = tuple(_level(interpreter) for interpreter in retrieve_all_functorch_interpreters())
        self.mapped: tuple[Level, ...] = ()
        if forward_ad._current_level >= 0 and all(level.kind != "jvp" for level in self.open):
            raise RuntimeError(
                "a solve inside a transform of torch.func cannot be in a forward_ad.dual_level() around it; use "
                "torch.func.jvp in its place"
            )

    @property
    def orders(self) -> int:
        """How many of them differentiate."""
        return sum(level.kind != "vmap" for level in self.open)

    def map_over(self, *given: Tensor | None) -> bool:
        """Add the levels at which the tensors have a dimension to `mapped`; say whether there were new ones."""
        numbers = {n for t in given if t is not None for n in _inside(t)[1]} | {level.number for level in self.mapped}
        before, self.mapped = self.mapped, tuple(level for level in self.open if level.number in numbers)
        return before != self.mapped

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the mapped dimensions."""
        return tuple(level.size for level in self.mapped)

    def take(self, t: Tensor) -> Tensor:
        """Return ``t`` without levels, every mapped dimension in front, (*sizes, ...); call it `outside`."""
        plain, dims = _inside(t)
        plain = _in_front(plain, dims)
        for axis, level in enumerate(self.mapped):
            if level.number not in dims:
                plain = plain.unsqueeze(axis)
        return plain.expand(*self.sizes, *plain.shape[len(self.sizes) :])

    def give(self, t: Tensor) -> Tensor:
        """Return ``t`` (*sizes, ...), made `outside`, as one of the levels, a constant to those that differentiate."""
        for level in self.mapped:
            t = _F._add_batch_dim(t, 0, level.number)
        return t

    @contextmanager
    def again(self, graph: bool) -> Iterator[None]:
        """Open the same transforms anew, for one evaluation of which they keep nothing.

        Args:
            graph: whether autograd outside of all of them records it.
        """
        with outside(), torch.set_grad_enabled(graph), ExitStack() as stack:
            for level in self.open:
                stack.callback(_open(level))
            yield


def _level(interpreter: Any) -> Level:
    kind = interpreter.key().name.lower()
    if kind == "vmap":
        return Level(interpreter.level(), kind, interpreter.batch_size(), interpreter.randomness())
    if kind not in ("grad", "jvp"):
        raise RuntimeError(f"a solve knows no transform {kind!r} of torch.func; call it outside of that")
    return Level(interpreter.level(), kind)


def _open(level: Level) -> Callable[[], Any]:
    """Open a transform, and return what closes it."""
    if level.kind == "vmap":
        _F._vmap_increment_nesting(level.size, level.randomness)
        return _F._vmap_decrement_nesting
    if level.kind == "grad":
        _F._grad_increment_nesting()
        return _F._grad_decrement_nesting
    _F._jvp_increment_nesting()
    return _F._jvp_decrement_nesting


def _inside(t: Tensor) -> tuple[Tensor, dict[int, int]]:
    """Return the plain tensor in all levels, and by level which dimension it maps, those of outer ones not counted."""
    dims: dict[int, int] = {}
    while _F.is_functorch_wrapped_tensor(t):
        if _F.is_batchedtensor(t):
            dims[_F.maybe_get_level(t)] = _F.maybe_get_bdim(t)
        t = _F.get_unwrapped(t)
    return t, dims


def _in_front(plain: Tensor, dims: dict[int, int]) -> Tensor:
    for axis, number in enumerate(sorted(dims)):
        plain = plain.movedim(axis + dims[number], axis)
    return plain
