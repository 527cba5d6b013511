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

    Noise from elsewhere (`random`, numpy, a `torch.Generator`), and noise that the first evaluation did not draw yet,
    is not replayed. Putting back torch's generators repeats the numbers of other threads that draw meanwhile.

    Args:
        layer: what is evaluated.
        device: device of the state, whose generator is watched beside the CPU's.
        module: whose buffers are watched; None is the layer, where it is a module.
    """

    def __init__(self, layer: Callable[..., Any], device: torch.device, module: nn.Module | None = None) -> None:
        self.layer = layer
        self.device = device
        self.evaluated = False
        self.sealed = False
        self.noisy = False
        self.start = _generator_states(device)
        module = layer if module is None and isinstance(layer, nn.Module) else module
        parts = [] if module is None else list(module.modules())
        moving = any(part.training for part in parts)
        self.buffers = [_Buffer(part, name) for part in parts for name, _ in part._buffers.items()] if moving else []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the layer."""
        if self.sealed:
            return self._reproduce(args, kwargs)
        if self.evaluated:
            if self.noisy or self.buffers:
                self._rewind()
            return self.layer(*args, **kwargs)
        out = self.layer(*args, **kwargs)
        self.evaluated = True
        after = _generator_states(self.device)
        self.noisy = not all(torch.equal(a, b) for a, b in zip(self.start, after, strict=True))
        self.buffers = [buffer for buffer in self.buffers if buffer.moves()]
        return out

    def seal(self) -> None:
        """Say that the call is over."""
        self.sealed = True

    def _rewind(self) -> None:
        if self.noisy:
            _set_generator_states(self.start, self.device)
        for buffer in self.buffers:
            buffer.put_back()

    def _reproduce(self, args: Any, kwargs: Any) -> Any:
        outside = _generator_states(self.device)
        moved = [_Buffer(buffer.owner, buffer.name) for buffer in self.buffers]
        self._rewind()
        try:
            return self.layer(*args, **kwargs)
        finally:
            _set_generator_states(outside, self.device)
            for buffer in moved:
                buffer.put_back()


class _Buffer:
    """A buffer by its place in a module, with the tensor and the value that it had at first."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner = owner
        self.name = name
        self.tensor = owner._buffers[name]
        self.value = None if self.tensor is None else self.tensor.detach().clone()
        self.version = _version(self.tensor)

    def moves(self) -> bool:
        """Say whether an evaluation reassigned or changed it; running statistics change behind autograd's back."""
        now = self.owner._buffers[self.name]
        statistics = self.owner.training and getattr(self.owner, "track_running_stats", False)
        return now is not self.tensor or _version(now) != self.version or (now is not None and statistics)

    def put_back(self) -> None:
        """Give the module its tensor with the first value again."""
        self.owner._buffers[self.name] = self.tensor
        if self.tensor is not None and self.value is not None:
            # through .data, because autograd may have saved the buffer and must not see it change
            self.tensor.data.copy_(self.value)


def _version(t: Tensor | None) -> int:
    return -1 if t is None or t.is_inference() else t._version


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_generator_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
