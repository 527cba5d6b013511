"""Losses of torchdeq: the sum over states, and the Jacobian penalty of a graph that the caller has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deqlm.diagnostics.radius import spectral_radius_of
from deqlm_solvers.core.checks import suggest, whole

__all__ = ["fp_correction", "jac_reg", "power_method", "register_weight_func"]


def _exp(n: int, k: int, gamma: float = 0.8) -> float:
    return gamma ** (n - k - 1)


def _linear(n: int, k: int, gamma: float = 0.9, bias: float = 0.0) -> float:
    return 1 - (n - k - 1) / n * gamma + bias


def _const(n: int, k: int, c: float = 1.0) -> float:
    return c


_WEIGHTS: dict[str, Callable[..., float]] = {"exp": _exp, "linear": _linear, "const": _const}


def register_weight_func(name: str, func: Callable[..., float]) -> None:
    """Make a weight known to `fp_correction` by a name.

    Args:
        name: the name.
        func: weight of state k of n, func(n, k, **options).

    Raises:
        TypeError: what cannot be called.
    """
    if not callable(func):
        raise TypeError(f"func must be a function, got {type(func).__name__}")
    _WEIGHTS[name] = func


def fp_correction(
    crit: Callable[..., Tensor],
    args: Sequence[Any],
    weight_func: str = "exp",
    return_loss_values: bool = False,
    **options: Any,
) -> Any:
    """Return the weighted sum of a loss over the states of a solve, the last of which has the greatest weight.

    Args:
        crit: loss of one of each of ``args``.
        args: lists of states, and what stays the same; a shorter list begins anew.
        weight_func: "exp" (gamma ** (n - k - 1), gamma .8), "linear" (1 - (n - k - 1) / n * gamma + bias, gamma .9,
            bias 0), "const" (c, 1), or a name of `register_weight_func`.
        return_loss_values: also return the losses, as numbers.
        **options: of the weight.

    Raises:
        KeyError: an unknown weight.
        TypeError: an option that the weight does not have.

    Examples:
        >>> states = [torch.full((2,), 3.0), torch.full((2,), 1.0)]
        >>> fp_correction(lambda z, y: (z - y).mean(), (states, torch.zeros(2)), gamma=0.5).item()
        2.5
    """
    if weight_func not in _WEIGHTS:
        raise KeyError(f"unknown weight_func {weight_func!r}: {suggest(weight_func, set(_WEIGHTS))}")
    weigh = _WEIGHTS[weight_func]
    lists = [each if isinstance(each, list | tuple) else [each] for each in args]
    count = max(len(each) for each in lists)
    losses = [crit(*(each[k % len(each)] for each in lists)) for k in range(count)]
    total = sum(weigh(count, k, **options) * loss for k, loss in enumerate(losses))
    return (total, [loss.item() for loss in losses]) if return_loss_values else total


def jac_reg(f0: Tensor, z0: Tensor, vecs: int = 1, create_graph: bool = True) -> Tensor:
    """Return an estimate of ||df/dz||_F^2 per unknown; `deqlm.training.jacobian_penalty` takes f in place of a graph.

    Args:
        f0: f(z0), with its graph.
        z0: where, a tensor that requires grad.
        vecs: normal vectors, >= 1.
        create_graph: make it differentiable.

    Raises:
        ValueError: a number of vectors below 1.

    Examples:
        >>> z = torch.zeros(300, 4, requires_grad=True)
        >>> _ = torch.manual_seed(0)
        >>> round(jac_reg(2 * z, z).item(), 0)
        4.0
    """
    whole("vecs", vecs, 1)
    total = f0.new_zeros(())
    for _ in range(vecs):
        # drawn in the default dtype, as torchdeq draws it
        v = torch.randn(f0.shape, dtype=torch.get_default_dtype(), device=f0.device).to(f0.dtype)
        (product,) = torch.autograd.grad(f0, z0, v, retain_graph=True, create_graph=create_graph)
        total = total + product.square().sum()
    return total / vecs / z0.numel()


def power_method(f0: Tensor, z0: Tensor, n_iters: int = 100) -> tuple[Tensor, Tensor]:
    """Return a direction that grows most, and the spectral radius per row, complex pairs included.

    By Arnoldi's method, at most ``n_iters`` products and no more than unknowns: where the dominant eigenvalues are a
    complex pair, there is no single direction, and the one that is returned lies in the plane of both.

    Args:
        f0: f(z0), with its graph.
        z0: where, (B, ...), a tensor that requires grad.
        n_iters: products with J^T, at most.

    Examples:
        >>> turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
        >>> z = torch.zeros(1, 2, requires_grad=True)
        >>> round(power_method(z @ turn, z)[1].item(), 3)
        0.9
    """
    whole("n_iters", n_iters, 1)
    rows = z0.shape[0]

    def product(w: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(f0, z0, w.reshape(f0.shape), retain_graph=True)
        return pulled.reshape(rows, -1)

    radius, direction = spectral_radius_of(product, z0.detach().reshape(rows, -1), n_iters)
    return direction.reshape(z0.shape), radius.to(z0.dtype)
