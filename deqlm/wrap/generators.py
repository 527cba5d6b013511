"""Torch's default generators, of the CPU and of every kind of accelerator: which a call may draw from, their states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["accelerators", "every_accelerator", "generator_states", "generators_kept", "set_generator_states"]

KNOWN = ("torch.nn.modules.", "deqlm.layers.", "deqlm.models.")
"""Modules that draw only with a probability that they hold, as ``p`` or ``dropout``, beside `DRAWS`."""
DRAWS = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def accelerators(module: nn.Module | None, device: torch.device, *, unseen: bool = False) -> list[torch.device]:
    """Return the devices, but for the CPU, whose default generators an evaluation may draw from.

    That is those of the state and of all parts of a module, where a part in train() may draw. Only then are states
    read, because a generator must not be read while a graph is captured.

    Args:
        module: what is evaluated; None is unknown and may always draw.
        device: of the state.
        unseen: what is evaluated does more than call the module, so that it may always draw.

    Examples:
        >>> accelerators(nn.Dropout(), torch.device("cpu"))
        []
    """
    if device.type == "cpu" and torch.accelerator.current_accelerator() is None:
        return []
    modules = [] if module is None else list(module.modules())
    if modules and not unseen and not any(part.training and _draws(part) for part in modules):
        return []
    places = {device}
    for part in modules:
        places.update(t.device for t in (*part._parameters.values(), *part._buffers.values()) if t is not None)
    return sorted((place for place in places if _generators_of(place) is not None), key=str)


def every_accelerator(*, started: bool = False) -> list[torch.device]:
    """Return all devices of the accelerator of this machine whose generators can be read.

    Args:
        started: none where nothing has used the accelerator yet, so that asking does not start it.
    """
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.accelerator.is_available() or _generators_of(kind) is None:
        return []
    begun = getattr(torch.get_device_module(kind), "is_initialized", None)
    if started and begun is not None and not begun():
        return []
    return [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]


def generator_states(devices: Sequence[torch.device]) -> list[Tensor]:
    """Return the state of the CPU's default generator and that of each device."""
    return [torch.get_rng_state(), *(torch.get_device_module(device).get_rng_state(device) for device in devices)]


def set_generator_states(states: Sequence[Tensor], devices: Sequence[torch.device]) -> None:
    """Set what `generator_states` returned."""
    torch.set_rng_state(states[0])
    for state, device in zip(states[1:], devices, strict=True):
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def generators_kept(devices: Sequence[torch.device]) -> Iterator[None]:
    """Put the generators of the CPU and of the devices back at the end."""
    states = generator_states(devices)
    try:
        yield
    finally:
        set_generator_states(states, devices)


def _generators_of(device: torch.device) -> Any:
    """Return torch's module for a kind of accelerator, or None where it knows no generators."""
    if device.type in ("cpu", "meta"):
        return None
    try:
        module = torch.get_device_module(device)
    except RuntimeError:
        return None
    return module if hasattr(module, "get_rng_state") and hasattr(module, "set_rng_state") else None


def _draws(part: nn.Module) -> bool:
    """Say whether a module in train() may draw by itself; one that nobody here knows may."""
    if not type(part).__module__.startswith(KNOWN) or part._forward_hooks or part._forward_pre_hooks:
        return True
    chances = (getattr(part, name, 0.0) for name in ("p", "dropout"))
    return isinstance(part, DRAWS) or any(isinstance(chance, float | int) and chance > 0 for chance in chances)
