"""Weight norm and spectral norm with torchdeq's options, as parametrisations of torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.compat.torchdeq.norm_options import NormOptions

__all__ = ["OldKeys", "SpectralNorm", "WeightNorm"]


class _Scaled(nn.Module):
    """A weight v * min(clip_value, target / norm(v)); the target is a parameter g, or a number."""

    def __init__(self, options: NormOptions) -> None:
        super().__init__()
        self.options = options

    def factor(self, target: Tensor | float, norm: Tensor) -> Tensor:
        """Return the factor; a norm of zero has the factor zero."""
        factor = torch.where(norm == 0, torch.zeros_like(norm), target / norm.masked_fill(norm == 0, 1))
        return factor.clamp(max=self.options.clip_value) if self.options.clip else factor

    def extra_repr(self) -> str:
        return str(self.options)


class WeightNorm(_Scaled):
    """One norm per index of dimension ``dim``, over all others.

    Args:
        weight: the parameter.
        dim: the dimension that is kept.
        options: how.

    Reference:
        Salimans and Kingma (2016), Weight normalization, equation 2.
    """

    def __init__(self, weight: Tensor, dim: int, options: NormOptions) -> None:
        super().__init__(options)
        self.dim = dim

    def forward(self, *parts: Tensor) -> Tensor:
        """Return the weight of (g, v), or of (v,)."""
        v, target = parts[-1], parts[0] if len(parts) == 2 else self.options.target_norm
        return v * self.factor(target, self._norm(v))

    def right_inverse(self, weight: Tensor) -> Any:
        """Return the parts of a weight; torch asks for it when it is assigned."""
        return (self._norm(weight), weight) if self.options.learn_scale else weight

    def _norm(self, v: Tensor) -> Tensor:
        others = [d for d in range(v.dim()) if d != self.dim % v.dim()]
        return torch.linalg.vector_norm(v, dim=others, keepdim=True)


class SpectralNorm(_Scaled):
    """The largest singular value of the weight as a matrix with dimension ``dim`` in front, by power iteration.

    In train() each evaluation, one per call of a DEQ, improves the vectors by ``n_power_iterations`` steps.

    Args:
        weight: the parameter.
        dim: the dimension that is kept.
        options: how.

    Reference:
        T. Miyato et al. (2018), Spectral normalization for generative adversarial networks, algorithm 1.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, dim: int, options: NormOptions) -> None:
        super().__init__(options)
        self.dim = dim
        height, width = self._matrix(weight.detach()).shape
        for name, size in (("u", height), ("v", width)):
            vector = F.normalize(weight.new_empty(size).normal_(), dim=0, eps=options.eps)
            self.register_buffer(name, vector)

    def forward(self, *parts: Tensor) -> Tensor:
        """Return the weight of (g, v), or of (v,)."""
        weight, target = parts[-1], parts[0] if len(parts) == 2 else self.options.target_norm
        matrix = self._matrix(weight)
        if self.training:
            self._improve(matrix.detach())
        sigma = torch.dot(self.u.clone(), matrix @ self.v.clone())
        return weight * self.factor(target, sigma)

    def right_inverse(self, weight: Tensor) -> Any:
        """Return the parts of a weight; torch asks for it when it is assigned."""
        if not self.options.learn_scale:
            return weight
        shape = [1] * weight.dim()
        shape[self.dim] = weight.shape[self.dim]
        return torch.full(shape, self.options.target_norm, dtype=weight.dtype, device=weight.device), weight

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).flatten(1)

    @torch.no_grad()
    def _improve(self, matrix: Tensor) -> None:
        eps = self.options.eps
        for _ in range(self.options.n_power_iterations):
            self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=eps))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=eps))


class OldKeys:
    """Lets a layer read state dicts of torchdeq; a hook of ``register_load_state_dict_pre_hook``.

    Args:
        name: of the tensor.
        norm: what normalises it.
    """

    def __init__(self, name: str, norm: WeightNorm | SpectralNorm) -> None:
        self.name = name
        several = norm.options.learn_scale
        spectral = isinstance(norm, SpectralNorm)
        self.keys = {"_orig" if spectral else "_v": "original1" if several else "original"}
        self.keys |= {"_g": "original0"} if several else {}
        self.keys |= {"_u": "0.u", "_v": "0.v"} if spectral else {}

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for old, new in self.keys.items():
            if (key := f"{prefix}{self.name}{old}") in state:
                state[f"{prefix}parametrizations.{self.name}.{new}"] = state.pop(key)
