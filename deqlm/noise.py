"""One draw of noise and one move of the buffers per call, however often the layer is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Replay"]


class Replay:
    """Evaluates a layer again and again as if it were once.

    If the first evaluation draws random numbers, every later one starts from the same generator state, so dropout masks
    stay fixed within the call and are new in the next. Buffers that an evaluation moves (running statistics of
    normalisation layers) are put back before the next one, so that they move once. After `seal`, an evaluation
    (activation checkpointing in backward) reproduces the call's noise and leaves generators and buffers alone.

    Args:
        layer: what is evaluated; buffers are known for modules only.
        device: device of the state, whose generator is watched beside the CPU's.
    """

    def __init__(self, layer: Callable[..., Any], device: torch.device) -> None:
        self.layer = layer
        self.device = device
        self.evaluated = False
        self.sealed = False
        self.noisy = False
        self.start = _generator_states(device)
        module = layer if isinstance(layer, nn.Module) and any(m.training for m in layer.modules()) else None
        buffers = [] if module is None else [b for b in module.buffers() if b is not None]
        self.buffers = [(b, b.detach().clone(), _version(b)) for b in buffers]
        self.statistics = set() if module is None else _running_statistics(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the layer."""
        if self.sealed:
            return self._reproduce(args, kwargs)
        if self.evaluated:
            self._rewind()
            return self.layer(*args, **kwargs)
        out = self.layer(*args, **kwargs)
        self.evaluated = True
        after = _generator_states(self.device)
        self.noisy = not all(torch.equal(a, b) for a, b in zip(self.start, after, strict=True))
        self.buffers = [
            (b, kept, version)
            for b, kept, version in self.buffers
            if _version(b) != version or id(b) in self.statistics
        ]
        return out

    def seal(self) -> None:
        """Say that the call is over."""
        self.sealed = True

    def _rewind(self) -> None:
        if self.noisy:
            _set_generator_states(self.start, self.device)
        for buffer, kept, _ in self.buffers:
            # through .data, because autograd may have saved the buffer and must not see it change
            buffer.data.copy_(kept)

    def _reproduce(self, args: Any, kwargs: Any) -> Any:
        outside = _generator_states(self.device)
        moved = [buffer.detach().clone() for buffer, _, _ in self.buffers]
        self._rewind()
        try:
            return self.layer(*args, **kwargs)
        finally:
            _set_generator_states(outside, self.device)
            for (buffer, _, _), value in zip(self.buffers, moved, strict=True):
                buffer.data.copy_(value)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _running_statistics(module: nn.Module) -> set[int]:
    """Return ids of the buffers that batch normalisation moves without telling autograd."""
    found = set()
    for part in module.modules():
        if part.training and getattr(part, "track_running_stats", False):
            found.update(id(b) for b in part.buffers(recurse=False))
    return found


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_generator_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
