"""An injection whose linear part decays, whatever its parameters are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.wrap.inject import Inject
from deqlm_solvers.core.checks import number, whole

__all__ = ["StableInject"]


class StableInject(Inject):
    """layer(a z + b u) with a = exp(-exp(rate)) per feature: 0 < a < 1 for every rate, so the linear part decays.

    It is the step of dz/dt = -exp(rate) z over a unit of time. The state fades between evaluations by a factor that is
    learnt and cannot reach 1; with a layer of Lipschitz constant at most 1 the map contracts by max(a).

    Args:
        width: features, the last dimension of state and input.
        decay: a at the beginning, in (0, 1); b begins at 1 - a.

    Raises:
        ValueError: a value outside its range.

    Reference:
        Parcae (2026), arXiv 2604.12946, whose injection has a negative diagonal continuous-time matrix.

    Examples:
        >>> import deqlm
        >>> deq = deqlm.DEQ(nn.Tanh(), inject=StableInject(4, decay=0.5))
        >>> deq(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, width: int, *, decay: float = 0.5) -> None:
        super().__init__()
        whole("width", width, 1)
        number("decay", decay, "in (0, 1)", lambda a: 0 < a < 1)
        where: dict[str, Any] = {"dtype": torch.get_default_dtype(), "device": torch.get_default_device()}
        self.rate = nn.Parameter(torch.full((width,), math.log(-math.log(decay)), **where))
        self.gain = nn.Parameter(torch.full((width,), 1 - decay, **where))

    @property
    def decay(self) -> Tensor:
        """The factor a of each feature."""
        return torch.exp(-torch.exp(self.rate))

    def forward(self, x: Any) -> Any:
        """Return b x, once per call."""
        return self.gain * x

    def join(self, layer: Callable[..., Any], z: Any, u: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer(self.decay * z + u, *args, **kwargs)
