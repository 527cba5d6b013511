"""What calls without grad made of a model's weights, for the calls that continue them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlm.ops.native.library import PLAIN

__all__ = ["KeptWeights", "usable"]


class _Origin(NamedTuple):
    """A parameter as it was when something was made of it; the alias keeps its memory from being given to another."""

    parameter: Tensor
    alias: Tensor
    version: int

    def still(self, parameter: Tensor) -> bool:
        """Say whether ``parameter`` is that one, unchanged; changes through its ``.data`` are not seen."""
        return (
            parameter is self.parameter
            and parameter._version == self.version
            and parameter.data_ptr() == self.alias.data_ptr()
            and parameter.dtype == self.alias.dtype
            and parameter.shape == self.alias.shape
        )


class KeptWeights:
    """Normalised weights and compiled twins that one call of a module hands to the next, as long as they hold.

    A token costs a few evaluations, and weights as much as some of them. They are made anew where a parameter was
    replaced, moved or changed in place, and where inference mode or autocast differ. A call that goes on from a cache
    keeps them in it; copies of it share them, and a pickle holds none.

    Examples:
        >>> kept, layer = KeptWeights(), torch.nn.Linear(2, 2)
        >>> made = [kept.of(layer, layer.parameters(), lambda: object()) for _ in range(2)]
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(2)
        >>> made[0] is made[1], kept.of(layer, layer.parameters(), lambda: None)
        (True, None)
    """

    def __init__(self) -> None:
        self._made: dict[Any, tuple[tuple[_Origin, ...], Any, Any]] = {}

    def of(self, key: Any, parameters: Iterable[Tensor | None], make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes of ``parameters``, made once as long as these hold; None is not kept.

        Args:
            key: what it is, hashable.
            parameters: what it is made of.
            make: makes it.
        """
        given = [p for p in parameters if p is not None]
        mode = _mode(given)
        before = self._made.get(key)
        if before is not None and before[1] == mode and _hold(before[0], given):
            return before[2]
        made = make()
        if made is None or not all(type(p) in PLAIN and not p.is_inference() for p in given):
            self._made.pop(key, None)
        else:
            self._made[key] = tuple(_Origin(p, p.detach(), p._version) for p in given), mode, made
        return made

    def __copy__(self) -> KeptWeights:
        return self

    def __deepcopy__(self, memo: Any) -> KeptWeights:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptWeights, ()


def usable() -> bool:
    """Say whether what is made now may serve later calls: without grad, and nobody follows the operations."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_dynamo_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
    )


def _mode(parameters: list[Tensor]) -> Any:
    kind = parameters[0].device.type if parameters else "cpu"
    autocast = torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None
    return torch.is_inference_mode_enabled(), autocast


def _hold(origins: tuple[_Origin, ...], parameters: list[Tensor]) -> bool:
    return len(origins) == len(parameters) and all(o.still(p) for o, p in zip(origins, parameters, strict=True))
