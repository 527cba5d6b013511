"""The Jacobian penalty: keeps a map contractive around its fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqlm.wrap.trees import map_tensors, tensors
from deqlm_solvers.core.checks import require, whole

__all__ = ["jacobian_penalty"]


def jacobian_penalty(
    f: Callable[..., Any],
    z: Any,
    *args: Any,
    probes: int = 1,
    create_graph: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return an unbiased estimate of ||df/dz||_F^2 / N at ``z``, a number that can be added to a loss.

    Hutchinson's estimator: the mean over ``probes`` normal vectors v of ||v^T J||^2, divided by the number of unknowns
    of the whole batch. ``z`` is taken as a constant, so that the penalty moves the map and not the point.

    Args:
        f: map of the state, called as f(z, *args) once; a `deqlm.DEQ` gives it as ``lambda z: deq.layer(z + x)``.
        z: where the Jacobian is taken, such as the solved point; a tensor or a tree of tensors.
        *args: further arguments of f.
        probes: vectors, >= 1; each costs one backward of f, and its own backward where the penalty is trained.
        create_graph: make the penalty differentiable.
        generator: draws the vectors; None is torch's own.

    Returns:
        A 0-d tensor, float32 or wider.

    Raises:
        ValueError: a number of probes below 1, or an f that does not depend on ``z`` by autograd.

    Reference:
        S. Bai, V. Koltun, J. Z. Kolter (2021), Stabilizing equilibrium models by Jacobian regularization, equation 3.

    Examples:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> round(jacobian_penalty(lambda z: 0.5 * z, torch.zeros(500, 4), probes=9, generator=draw).item(), 2)
        0.25
    """
    whole("probes", probes, 1)
    with torch.enable_grad():
        point = map_tensors(lambda t: t.detach().requires_grad_(), z)
        sources = tensors(point)
        fz = [leaf for leaf in tensors(f(point, *args)) if leaf.requires_grad]
        require(bool(fz), "f", "a result without a graph", "differentiable by autograd at z")
        total = torch.stack([_squared_product(fz, sources, create_graph, generator) for _ in range(probes)]).sum()
    return total / (probes * sum(leaf.numel() for leaf in sources))


def _squared_product(
    fz: list[Tensor], z: list[Tensor], create_graph: bool, generator: torch.Generator | None
) -> Tensor:
    """Return ||v^T J||^2 for one normal v."""
    v = [torch.randn(t.shape, dtype=t.dtype, device=t.device, generator=generator) for t in fz]
    products = torch.autograd.grad(fz, z, v, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.stack([_squared_norm(p) for p in products if p is not None]).sum()


def _squared_norm(p: Tensor) -> Tensor:
    real = torch.view_as_real(p) if p.is_complex() else p
    return real.to(torch.promote_types(real.dtype, torch.float32)).square().sum()
