"""How far a point can be from the solution: proven where a Lipschitz constant is, estimated elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.deq import DEQ
from deqlm.diagnostics.diagnosis.jacobian import Jacobian
from deqlm.diagnostics.diagnosis.krylov import largest_gain
from deqlm.layers.lipschitz import lipschitz_bound
from deqlm.wrap.inject import Add
from deqlm.wrap.rows import RowMap, Rows
from deqlm_solvers import Solution
from deqlm_solvers.core.checks import number, require

__all__ = ["Certificate", "certify"]


@dataclass(frozen=True)
class Certificate:
    """A bound of ||z - z*|| per row.

    Attributes:
        lipschitz: constant L of the map in the Euclidean norm, (B,) float64.
        error: residual / (1 - L), infinite where L is not below 1; of the batch shape, float64.
        proven: L holds everywhere, so the bound does. Else L is that of the map at the point alone, and the bound an
            estimate.
        why: where L comes from.
    """

    lipschitz: Tensor
    error: Tensor
    proven: bool
    why: str

    def __str__(self) -> str:
        kind = "proven" if self.proven else "estimated"
        worst, constant = float(self.error.max()), float(self.lipschitz.max())
        return f"{kind}: ||z - z*|| <= {worst:.3g} in every row, by a Lipschitz constant of {constant:.4g} ({self.why})"


def certify(f: Any, sol: Solution, *args: Any, lipschitz: float | None = None) -> Certificate:
    """Bound the distance of a solved point from the solution by ||f(z) - z|| / (1 - L).

    By Banach's theorem a map with a Lipschitz constant L < 1 has one fixed point z*, and every z is within that
    distance of it. L is proven where it is given, or where f is a stack of layers whose constants are known
    (`deqlm.layers.lipschitz_bound`): `deqlm.layers.Contractive`, `deqlm.layers.MonotoneLinear`, linear layers,
    convolutions and activations. Elsewhere it is ||J||_2 at the point, by power iteration from below, and says so.

    Args:
        f: the map, called as f(z, *args); a module; or a `deqlm.DEQ`, whose map is that of its last input, args[0].
        sol: what solved it, of the same batch; its residual must be in the "l2" norm.
        *args: further arguments of f; the input of a `deqlm.DEQ`.
        lipschitz: L of z -> f(z, *args) that is known, >= 0.

    Raises:
        ValueError: a constant below 0, or a solution whose residual is that of another point.
        TypeError: what is no solution.

    Examples:
        >>> import deqlm, torch
        >>> layer = deqlm.layers.Contractive(nn.Linear(4, 4), bound=0.5)
        >>> deq, x = deqlm.DEQ(layer), torch.ones(2, 4)
        >>> y, sol = deq(x, with_stats=True)
        >>> found = certify(deq, sol, x)
        >>> found.proven, bool((found.error < 1e-2).all())
        (True, True)
    """
    if not isinstance(sol, Solution):
        raise TypeError(f"sol must be a Solution, got {type(sol).__name__}")
    require(sol.residual_of == "z", "sol", "a residual of the point before", "one whose residual is that of sol.z")
    if lipschitz is not None:
        number("lipschitz", lipschitz, ">= 0", lambda t: t >= 0)
        return _made(sol, torch.full_like(sol.residual, lipschitz), True, "given")
    proven = _known(f)
    if proven is not None:
        return _made(sol, torch.full_like(sol.residual, proven), True, "of its layers")
    return _made(sol, _local(f, sol, args), False, "of the Jacobian at the point, from below")


def _made(sol: Solution, constant: Tensor, proven: bool, why: str) -> Certificate:
    gap = (1 - constant).clamp_min(0)
    error = torch.where(gap > 0, sol.residual / gap, torch.inf)
    return Certificate(constant, error, proven, why)


def _known(f: Any) -> float | None:
    """Return a constant that the structure of f proves, or None."""
    if isinstance(f, DEQ):
        layer, takes = f.layer, type(f.inject) is Add or hasattr(f.layer, "lipschitz_bound")
        return _known(layer) if takes else None
    if not isinstance(f, nn.Module):
        return None
    try:
        return lipschitz_bound(f)
    except TypeError:
        return None


def _local(f: Callable[..., Any], sol: Solution, args: tuple[Any, ...]) -> Tensor:
    """Return ||J||_2 per row at the point, of the batch shape."""
    dims = sol.residual.dim()
    if isinstance(f, DEQ):
        require(bool(args), "args", args, "the input of the DEQ")
        rowmap, held = f.on_rows(args[0], args[1:], {}, sol.z)
        with held:
            return _gain(rowmap, rowmap.rows.z0).reshape(sol.residual.shape)
    rows = Rows(sol.z, dims, "sol.z")
    return _gain(RowMap(rows, f, args), rows.z0).reshape(sol.residual.shape)


def _gain(f: RowMap, z: Tensor) -> Tensor:
    z = z.detach()
    draw = torch.Generator(device="cpu").manual_seed(0)
    wide = torch.promote_types(z.dtype, torch.float32)
    start = torch.randn(z.shape, generator=draw, dtype=torch.float64, device="cpu").to(z.device, wide)
    return largest_gain(Jacobian(f, z, range(len(z))), start, 100)[0]
