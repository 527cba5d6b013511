"""A loss on states along the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from deqlm_solvers.core.checks import number, require

__all__ = ["fixed_point_correction"]

Weights = Literal["exponential", "linear", "constant"]


def fixed_point_correction(
    loss: Callable[..., Tensor],
    states: Sequence[Any],
    *args: Any,
    weights: Weights | Sequence[float] = "exponential",
    gamma: float = 0.8,
) -> Tensor:
    """Return the weighted sum of ``loss(state, *args)`` over states that lead to a fixed point.

    It teaches the map to come near the answer early, so that fewer evaluations do. Give the solved point last:
    ``fixed_point_correction(loss, [*sol.states, sol.z], target)``.

    Args:
        loss: of one state, a scalar.
        states: n >= 1 of them, in the order of their evaluations.
        *args: further arguments of ``loss``, the same for every state.
        weights: "exponential", gamma^(n - k) of state k = 1, ..., n; "linear", 1 - gamma (n - k) / n; "constant", 1; or
            a number for each state. The last state has weight 1 in all that are named.
        gamma: decay, in [0, 1]; not used by "constant" and by numbers, where it must be left away.

    Raises:
        ValueError: no states, weights that do not fit, or a gamma that would be ignored.

    Reference:
        S. Bai, Z. Geng, Y. Savani, J. Z. Kolter (2022), Deep equilibrium optical flow estimation, CVPR, equation (9).

    Examples:
        >>> import deqlm, torch
        >>> states = [torch.zeros(2), torch.ones(2)]
        >>> deqlm.fixed_point_correction(torch.nn.functional.mse_loss, states, torch.ones(2)).item()
        0.800000...
    """
    require(len(states) > 0, "states", states, "at least one state, such as [*sol.states, sol.z]")
    number("gamma", gamma, "in [0, 1]", lambda g: 0 <= g <= 1)
    factors = _factors(weights, gamma, len(states))
    first, *rest = (factor * loss(state, *args) for factor, state in zip(factors, states, strict=True))
    return sum(rest, start=first)


def _factors(weights: Weights | Sequence[float], gamma: float, n: int) -> list[float]:
    if weights == "exponential":
        return [gamma ** (n - k) for k in range(1, n + 1)]
    if weights == "linear":
        return [1 - gamma * (n - k) / n for k in range(1, n + 1)]
    require(gamma == 0.8, "gamma", gamma, f"left away with weights={weights!r}, which do not use it")
    if weights == "constant":
        return [1.0] * n
    rule = f"'exponential', 'linear', 'constant', or {n} numbers, one for each state"
    fits = isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) == n
    require(fits, "weights", weights, rule)
    return [float(weight) for weight in weights]
