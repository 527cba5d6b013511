"""A layer that returns more than the new state, as one that returns the new state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from deqlm_solvers.core.checks import require

__all__ = ["Part", "part_of"]


class Part(nn.Module):
    """The part of a module's output that is the new state.

    Args:
        layer: returns a tuple, a list, a mapping, or an object with named fields.
        output: position in what it returns, or name.

    Raises:
        ValueError: an ``output`` that is neither a whole number nor a name.

    Examples:
        >>> import torch
        >>> gru = torch.nn.GRU(4, 4, batch_first=True)
        >>> Part(gru, 0)(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, layer: nn.Module, output: int | str) -> None:
        super().__init__()
        self.layer = layer
        self.output = _checked(output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return that part of what the layer returns."""
        return _pick(self.layer(*args, **kwargs), self.output)


def part_of(layer: Callable[..., Any], output: int | str | None) -> Callable[..., Any]:
    """Return a layer, module or function, that returns one part of its output; None takes all of it."""
    if output is None:
        return layer
    if isinstance(layer, nn.Module):
        return Part(layer, output)
    _checked(output)

    def part(*args: Any, **kwargs: Any) -> Any:
        return _pick(layer(*args, **kwargs), output)

    return part


def _checked(output: int | str) -> int | str:
    ok = isinstance(output, int | str) and not isinstance(output, bool)
    require(ok, "output", output, "a position or a name in what the layer returns, or None")
    return output


def _pick(value: Any, output: int | str) -> Any:
    if isinstance(value, Tensor):
        raise TypeError(f"output={output!r} needs a layer that returns a tuple, a list or names, got a tensor")
    if isinstance(output, str) and not (isinstance(value, Mapping) and output in value) and hasattr(value, output):
        return getattr(value, output)
    try:
        return value[output]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"output must be a part of what the layer returns, {_parts(value)}, got {output!r}") from None


def _parts(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"one of the names {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"a position below {len(value)}"
    return f"a name in {type(value).__name__}"
