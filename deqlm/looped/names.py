"""Names of weights: a looped decoder saves and loads those that it had before."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

__all__ = ["GATE", "Renamed"]

GATE = "loop_gate"
"""Name of the gate, below that of the first looped layer."""


class Renamed:
    """The hooks of a list of layers by which those that are looped keep their names.

    Args:
        first: first looped layer.
        end: behind the last one.

    Examples:
        >>> Renamed(1, 3).outside("1.deq.layer.blocks.1.weight"), Renamed(1, 3).inside("1.loop_gate")
        ('2.weight', '1.deq.inject.gate')
    """

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def attach(self, layers: nn.ModuleList) -> None:
        """Rename in what ``layers`` saves and loads."""
        # torch marks hooks, which methods do not allow
        layers.register_state_dict_post_hook(partial(Renamed.save, self))
        layers.register_load_state_dict_pre_hook(partial(Renamed.load, self))

    def outside(self, name: str) -> str:
        """Return the name of a weight before it was looped, below the list."""
        inner, gate = f"{self.first}.deq.layer.blocks.", f"{self.first}.deq.inject.gate"
        if name == gate:
            return f"{self.first}.{GATE}"
        if not name.startswith(inner):
            return name
        number, _, rest = name[len(inner) :].partition(".")
        return f"{self.first + int(number)}.{rest}"

    def inside(self, name: str) -> str:
        """Return where the weight is that had a name before."""
        number, _, rest = name.partition(".")
        if name == f"{self.first}.{GATE}":
            return f"{self.first}.deq.inject.gate"
        looped = number.isdigit() and self.first <= int(number) < self.end and not rest.startswith("deq.")
        return f"{self.first}.deq.layer.blocks.{int(number) - self.first}.{rest}" if looped else name

    def save(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Rename what was saved; see ``nn.Module.register_state_dict_post_hook``."""
        self._rename(state, prefix, self.outside)

    def load(self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Rename what is loaded; see ``nn.Module.register_load_state_dict_pre_hook``."""
        self._rename(state, prefix, self.inside)

    def _rename(self, state: dict[str, Any], prefix: str, how: Any) -> None:
        renamed = {prefix + how(key[len(prefix) :]) if key.startswith(prefix) else key: key for key in list(state)}
        values = {new: state[old] for new, old in renamed.items()}
        for key in list(state):
            del state[key]
        state.update(values)
