"""The one formula of the tolerance: residual, scale and their ratio, per row, token or leaf."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.layout import Layout
from deqlm_solvers.core.norms import NORMS, row_norms
from deqlm_solvers.core.solver import Evaluation
from deqlm_solvers.core.stop import Stop

__all__ = ["SMALLEST", "Criterion", "Residuals", "warn_below_floor"]

SMALLEST = 1e-270
"""Least divisor: zero over zero is zero, and a residual over an f(z) of zero stays finite."""


class Residuals(NamedTuple):
    """What one evaluation shows.

    Attributes:
        residual: ||f(z) - z||, (B,) float64, of the worst group where there are several.
        relative: residual / max(||f(z)||, s), (B,) float64, of the worst group; 0 for an exact zero.
        ratio: residual / tolerance, (B,) float64, of the worst group; a point passes at <= 1.
        groups: ratio of each token or leaf, (B, G) float64; None for per="row".
        size: max(||z||, ||f(z)||), (B,) float64, of the largest group.
    """

    residual: Tensor
    relative: Tensor
    ratio: Tensor
    groups: Tensor | None
    size: Tensor


class Criterion:
    """Reads residuals by the rule of a `Stop`: ||f(z) - z|| <= atol + rtol * max(||f(z)||, s).

    Norms are accumulated in float64, so that squares of a float32 state neither overflow nor vanish, and those of a
    float64 state are scaled where they would. States from about 1e-250 to 1e300 are served; a smaller one counts as
    zero.

    Args:
        stop: norm, per, tolerances.
        layout: leaves, tokens, scale, mask.
        z: the start, (B, N).

    Raises:
        ValueError: weights, token_dim, scale or mask that do not fit the state.

    Examples:
        >>> import torch
        >>> from deqlm_solvers import Criterion, Evaluation, Layout, Stop
        >>> z = torch.ones(1, 4)
        >>> read = Criterion(Stop(rtol=0.5), Layout(), z)(Evaluation(z, 1.25 * z))
        >>> read.residual.item(), read.ratio.item() <= 1
        (0.5, True)
    """

    def __init__(self, stop: Stop, layout: Layout, z: Tensor) -> None:
        self.stop = stop
        self.leaves = tuple(map(tuple, layout.leaves or ())) or (tuple(z.shape[1:]),)
        self.scale = _scale(layout.scale, z)
        self.atol_scale = None if layout.atol_scale is None else layout.atol_scale.resolve_neg()
        self.floor: float | Tensor = stop.atol
        if self.atol_scale is not None:
            self.floor = stop.atol * (self.atol_scale if stop.per == "row" else self.atol_scale[:, None])
        if layout.scale is not None and stop.keep == "best_f":
            raise ValueError("scale is not used with keep='best_f'")
        self.measure = NORMS[stop.norm] if isinstance(stop.norm, str) else row_norms
        self.weights = self._weights(z) if isinstance(stop.norm, tuple) else None
        self.mask = None
        if stop.per == "token":
            self.token_axis = stop.token_dim - layout.batch_dims
            self.mask = self._token_mask(layout.token_mask, z)
        elif layout.token_mask is not None:
            raise ValueError("token_mask is not used unless Stop(per='token')")
        self.masked = None if self.mask is None else self._masked_unknowns(self.mask, z)
        self.plain = stop.per == "row" and stop.norm == "l2"
        self.factors: Tensor | None = None
        if stop.first_tokens:
            count = self.leaves[0][self.token_axis]
            factors = [*stop.first_tokens, *[1.0] * count][:count]
            self.factors = torch.tensor(factors, dtype=torch.float64, device=z.device)

    def __call__(self, at: Evaluation) -> Residuals:
        """Read one evaluation, (B, N)."""
        residual, relative, ratio, size = self.groups(at)
        if self.stop.criterion is not None:
            ratio = self._own(at)
        if self.stop.per == "row":
            return Residuals(residual, relative, ratio, None, size)
        if self.mask is not None:
            residual, relative, ratio, size = (
                torch.where(self.mask, t, 0.0) for t in (residual, relative, ratio, size)
            )
        if ratio.shape[1] == 0:
            zero = ratio.sum(1)
            return Residuals(zero, zero, zero, ratio, zero)
        return Residuals(residual.amax(1), relative.amax(1), ratio.amax(1), ratio, size.amax(1))

    def groups(self, at: Evaluation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return residual, relative residual, ratio and size of each row, (B,), token or leaf, (B, G), unmasked."""
        if self.plain:
            residual, norm, size = at.r_norm, at.fz_norm, at.z_norm
        else:
            residual, norm, size = self._norms(at.r), self._norms(at.fz), self._norms(at.z)
        size, scale = torch.maximum(norm, size), self.scale
        if scale is not None:
            norm = torch.maximum(norm, scale if norm.dim() == 1 else scale[:, None])
        return residual, residual / norm.clamp_min(SMALLEST), residual / self.tolerance(norm), size

    def tolerance(self, norm: Tensor) -> Tensor:
        """Return what a residual may be where max(||f(z)||, s) is ``norm``: (B,) float64 of rows, (B, G) of groups."""
        tolerance = norm * self.stop.rtol + self.floor
        return (tolerance if self.factors is None else tolerance * self.factors).clamp_min(SMALLEST)

    def _own(self, at: Evaluation) -> Tensor:
        """Return what the user's rule makes of an evaluation, (B,) float64."""
        rule = self.stop.criterion
        assert rule is not None
        with torch.no_grad():
            z, fz = (parts[0] if len(parts) == 1 else tuple(parts) for parts in map(self._split, (at.z, at.fz)))
            ratio = rule.ratio(z, fz)
        if not isinstance(ratio, Tensor):
            raise TypeError(f"the ratio of {type(rule).__name__} must be a tensor, got {type(ratio).__name__}")
        what = f"the shape of the ratio of {type(rule).__name__}"
        require(ratio.shape == at.z.shape[:1], what, tuple(ratio.shape), f"one value per row, ({at.z.shape[0]},)")
        return ratio.detach().to(at.z.device, torch.float64)

    def norm(self, fz: Tensor) -> Tensor:
        """Return ||f(z)|| of rows, (B,) float64; for per="row"."""
        return self._norms(fz)

    def _norms(self, t: Tensor) -> Tensor:
        """Return (B,) for rows, (B, G) for tokens or leaves, float64."""
        if self.weights is not None:
            t = t * self.weights
        if self.stop.per == "row":
            return self.measure(t)
        parts = self._split(t)
        if self.stop.per == "leaf":
            sizes = [math.prod(shape) for shape in self.leaves]
            return torch.stack(
                [self.measure(p.reshape(t.shape[0], n)) for p, n in zip(parts, sizes, strict=True)], dim=1
            )
        by_token = [p.movedim(1 + self.token_axis, 1) for p in parts]
        by_token = [p.reshape(*p.shape[:2], math.prod(p.shape[2:])) for p in by_token]
        joined = by_token[0] if len(by_token) == 1 else torch.cat(by_token, dim=2)
        return self.measure(joined)

    def _split(self, t: Tensor) -> list[Tensor]:
        if len(self.leaves) == 1:
            return [t.reshape(t.shape[0], *self.leaves[0])]
        sizes = [math.prod(shape) for shape in self.leaves]
        return [p.reshape(t.shape[0], *shape) for p, shape in zip(t.split(sizes, dim=1), self.leaves, strict=True)]

    def _masked_unknowns(self, mask: Tensor, z: Tensor) -> Tensor:
        """Return which unknowns belong to tokens that do not count, (B, N) bool."""
        parts = []
        for shape in self.leaves:
            view = [1] * len(shape)
            view[self.token_axis] = mask.shape[1]
            whole = ~mask.reshape(z.shape[0], *view).expand(z.shape[0], *shape)
            parts.append(whole.reshape(z.shape[0], math.prod(shape)))
        return torch.cat(parts, dim=1)

    def _weights(self, z: Tensor) -> Tensor:
        given = self.stop.norm
        sizes = [math.prod(shape) for shape in self.leaves]
        weights = torch.tensor(given, dtype=z.dtype, device=z.device)
        if len(given) == sum(sizes):
            return weights
        ok = len(given) == len(sizes)
        require(ok, "norm", f"{len(given)} weights", f"one weight per leaf ({len(sizes)}) or unknown ({sum(sizes)})")
        return torch.cat([w.expand(n) for w, n in zip(weights, sizes, strict=True)])

    def _token_mask(self, mask: Tensor | None, z: Tensor) -> Tensor | None:
        axis, dim = self.token_axis, self.stop.token_dim
        for shape in self.leaves:
            ok = 0 <= axis < len(shape)
            require(ok, "token_dim", dim, f"a dimension of the state behind the batch, whose rows have shape {shape}")
        lengths = {shape[axis] for shape in self.leaves}
        require(len(lengths) == 1, "token_dim", dim, f"equally long in all leaves, whose lengths are {sorted(lengths)}")
        if mask is None:
            return None
        want = (z.shape[0], lengths.pop())
        require(mask.dtype == torch.bool, "token_mask", mask.dtype, "bool, True where a token counts")
        require(tuple(mask.shape) == want, "token_mask", tuple(mask.shape), f"of shape (rows, tokens) = {want}")
        return mask.to(z.device)


def _scale(scale: Tensor | None, z: Tensor) -> Tensor | None:
    if scale is None:
        return None
    require(tuple(scale.shape) == (z.shape[0],), "scale", tuple(scale.shape), f"one value per row, ({z.shape[0]},)")
    require(bool((scale.isfinite() & (scale >= 0)).all()), "scale", scale, "finite and >= 0 in every row")
    return scale.detach().to(device=z.device, dtype=torch.float64).resolve_neg()


def warn_below_floor(stop: Stop, dtype: torch.dtype) -> None:
    """Warn when ``rtol`` asks for more digits than ``dtype`` has and ``atol`` does not help."""
    floor = torch.finfo(dtype).eps
    if stop.atol == 0 and 0 < stop.rtol < floor:
        name = str(dtype).removeprefix("torch.")
        text = f"rtol={stop.rtol:g} is below what {name} resolves ({floor:.1g}); rows may not converge"
        warnings.warn(text, UserWarning, stacklevel=2)
