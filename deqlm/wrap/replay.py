"""One draw of noise and one move of the buffers per call, however often the layer is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from deqlm.wrap.buffers import Buffer, Turn, moved, watch
from deqlm.wrap.generators import accelerators, generator_states, set_generator_states
from deqlm.wrap.hidden import reached
from deqlm.wrap.once import close_call, made_once, open_call

__all__ = ["Replay"]


_ARGUMENTS = ("positional argument", "keyword argument", "keyword-only argument")
"""What Python's errors of a call speak of."""


class Replay:
    """Evaluates a layer again and again as if it were once.

    If the first evaluation draws random numbers, every later one starts from the same generator state, so dropout masks
    stay fixed within the call and are new in the next. Buffers that an evaluation moves (running statistics of
    normalisation layers, codebooks, counters; in place, by assignment or through ``.data``) are put back before the
    next one, so that they move once. After `seal`, an evaluation (activation checkpointing in backward) reproduces the
    call's noise and leaves generators and buffers alone. Weights that are made once (`once_per_call_`, or all inside
    ``parametrize.cached()``) keep the buffers of what makes them from one evaluation to the next.

    As a context it seals at its end, and until then no other thread's context moves buffers of the same layer, where
    one is in train(). Buffers of more than 2**20 elements are watched in train() only.

    Noise from elsewhere (`random`, numpy, a `torch.Generator`), and noise that the first evaluation did not draw yet,
    is not replayed, nor what a module in eval() draws on an accelerator, whose generators are watched where a part in
    train() may draw (`accelerators`). Putting back torch's generators repeats the numbers of other threads that draw
    meanwhile.

    Args:
        layer: what is evaluated.
        device: of the state, whose generator is watched beside those of the CPU and of the module's parts.
        module: whose buffers are watched; None is the layer, or the modules that it reads where it is a function.
        hint: noted on an error of the first evaluation, such as what the layer may not bear.
        called: noted where the first evaluation cannot be called with its arguments: what these are.
        still: the layer is known to draw nothing and to move no buffer, so that nothing is watched.
    """

    def __init__(
        self,
        layer: Callable[..., Any],
        device: torch.device,
        module: nn.Module | None = None,
        hint: str = "",
        called: str = "",
        *,
        still: bool = False,
    ) -> None:
        self.layer, self.hint, self.called, self.still = layer, hint, called, still
        self.evaluated = still
        self.sealed = False
        self.noisy = False
        seen = module is not None or isinstance(layer, nn.Module)
        if module is None:
            module = layer if isinstance(layer, nn.Module) else reached(layer)
        self.module = module
        self.devices = [] if still else accelerators(module, device, unseen=not seen)
        self.start = generator_states(self.devices)
        self.buffers: list[Buffer] = []
        self._each: list[Buffer] = []
        self._turn = Turn(self.module, device)

    def __enter__(self) -> Replay:
        self._turn.take()
        self._outer = open_call()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self.evaluated and isinstance(error, Exception):
            note = self._note(error)
            if note:
                error.add_note(note)
        close_call(self._outer)
        self.seal()
        self._turn.end()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the layer."""
        if self.still:
            return self.layer(*args, **kwargs)
        if self.sealed:
            return self._reproduce(args, kwargs)
        if self.evaluated:
            if self.noisy or self._each:
                self._rewind(self._each)
            return self.layer(*args, **kwargs)
        buffers = watch(self.module)
        out = self.layer(*args, **kwargs)
        self.evaluated = True
        self.noisy = _differ(self.start, generator_states(self.devices))
        self.buffers = moved(buffers, self.module)
        if self.buffers:
            once = _makers_of_weights(self.module)
            self._each = [buffer for buffer in self.buffers if id(buffer.owner) not in once]
        else:
            self._turn.end()
        return out

    def _note(self, error: Exception) -> str:
        """Return what to add to an error of the first evaluation."""
        if not isinstance(error, TypeError):
            return self.hint
        return self.called if any(word in str(error) for word in _ARGUMENTS) else ""

    def seal(self) -> None:
        """Say that the call is over."""
        self.sealed = True

    def _rewind(self, buffers: list[Buffer]) -> None:
        if self.noisy:
            set_generator_states(self.start, self.devices)
        for buffer in buffers:
            buffer.put_back()

    def _reproduce(self, args: Any, kwargs: Any) -> Any:
        outside = generator_states(self.devices)
        still = self.evaluated and not self.buffers
        if not still:
            self._turn.take()
        kept = [Buffer(b.owner, b.name) for b in self.buffers] if self.evaluated else watch(self.module)
        self._rewind(self.buffers)
        try:
            return self.layer(*args, **kwargs)
        finally:
            set_generator_states(outside, self.devices)
            for buffer in kept:
                buffer.put_back()
            if not still:
                self._turn.end()


def _makers_of_weights(module: nn.Module | None) -> set[int]:
    """Return the ids of the modules that make weights once for all evaluations."""
    lists = () if module is None else (part for part in module.modules() if isinstance(part, ParametrizationList))
    return {id(part) for made in lists if parametrize._cache_enabled or made_once(made) for part in made.modules()}


def _differ(before: list[Tensor], after: list[Tensor]) -> bool:
    return not torch.equal(before[0], after[0]) or any(map(_unequal, before[1:], after[1:]))


def _unequal(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)
