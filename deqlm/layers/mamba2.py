"""The Mamba2 mixer with an injected input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deqlm.layers.cache import Mamba2Cache
from deqlm.layers.compiled import stock
from deqlm.layers.context import NOTHING, Context
from deqlm.layers.noise import VariationalDropout
from deqlm.layers.norm import GatedRMSNorm
from deqlm.layers.weight_norm import NormedConv1d
from deqlm.ops import ssd
from deqlm.ops.checks import require, whole
from deqlm.ops.conv import called_conv
from deqlm.ops.inner import InnerParameters, InnerSizes, inner
from deqlm.ops.native.library import Build
from deqlm.ops.native.mamba2 import CompiledMamba2, compile_mamba2
from deqlm.ops.precision import wide

__all__ = ["Mamba2"]


class Mamba2(nn.Module):
    """Mamba2 whose whole input projection, gate, x, B, C and step size, is shifted by the injected input.

    Options, parameters and initial values have the names and laws of the package mamba-ssm. A and the step size are
    computed in float32 or wider, and so is the SSM's state.

    Args:
        d_model: width D of the state z.
        d_state: size N of the SSM's state per feature.
        d_conv: taps W of the causal convolution.
        expand: inner width over D.
        headdim: features P that share a decay; divides ``d_ssm``.
        d_ssm: inner features that go through the SSM; the others make a gated MLP beside it. None is all.
        ngroups: groups G of heads that share B and C, and of features that are normalised together.
        conv_init: bound of the uniform initial weights of the convolution; None is torch's own.
        A_init_range: interval of the uniform initial decay rates -A.
        D_has_hdim: a skip weight per feature instead of one per head.
        rmsnorm: normalise the gated output; False gates only.
        norm_before_gate: normalise before the gate.
        dt_min: least initial step size.
        dt_max: largest one.
        dt_init_floor: limit below which no initial step size falls.
        dt_limit: interval to which step sizes are clamped.
        bias: give both projections biases.
        conv_bias: give the convolution a bias.
        dropout: probability of `deqlm.layers.VariationalDropout` on the output.
        chunk_size: tokens per matrix product of the scan; None takes what suits ``impl``.
        impl: how the scan is computed, see `deqlm.ops.ssd.scan`. With "auto", on the CPU, and in a `Context` that was
            opened with a compiler, one compiled call stands for everything between the projections.

    Raises:
        ValueError: an option out of range, or sizes that do not fit.

    Reference:
        Dao and Gu (2024), Transformers are SSMs, ICML; Schoene et al. (2025), Implicit language models are RNNs,
        equations 6 to 9.

    Examples:
        >>> mixer = Mamba2(16, d_state=8, headdim=8)
        >>> z, u = torch.randn(2, 5, 16), torch.randn(2, 5, mixer.d_inject)
        >>> y, cache = mixer.forward_chunk(z[:, :4], u[:, :4], mixer.empty_cache(2))
        >>> last, cache = mixer.forward_chunk(z[:, 4:], u[:, 4:], cache)
        >>> torch.allclose(torch.cat([y, last], dim=1), mixer(z, u), atol=1e-6)
        True
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"A_log", "D", "dt_bias"})
    """Parameters that weight decay should leave alone."""

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        conv_init: float | None = None,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        dropout: float = 0.0,
        chunk_size: int | None = None,
        impl: ssd.Impl = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand, "headdim": headdim}
        for name, value in {**sizes, "ngroups": ngroups}.items():
            whole(name, value, 1)
        if chunk_size is not None:
            whole("chunk_size", chunk_size, 1)
        d_inner = expand * d_model
        d_ssm = d_inner if d_ssm is None else d_ssm
        whole("d_ssm", d_ssm, 1)
        require(d_ssm <= d_inner, "d_ssm", d_ssm, f"at most expand * d_model, {d_inner}")
        require(d_ssm % headdim == 0, "headdim", headdim, f"a divisor of d_ssm {d_ssm}")
        heads = d_ssm // headdim
        require(heads % ngroups == 0, "ngroups", ngroups, f"a divisor of the {heads} heads")
        require(0 < dt_min <= dt_max, "dt_min", dt_min, f"> 0 and at most dt_max {dt_max}")
        require(0 <= dt_limit[0] <= dt_limit[1], "dt_limit", tuple(dt_limit), "an interval of numbers >= 0")
        ok = 0 < A_init_range[0] <= A_init_range[1]
        require(ok, "A_init_range", tuple(A_init_range), "an interval of numbers > 0")
        require(impl in ssd.IMPLS, "impl", impl, f"one of {', '.join(ssd.IMPLS)}")

        self.d_model, self.d_state, self.d_conv, self.headdim, self.ngroups = d_model, d_state, d_conv, headdim, ngroups
        self.nheads, self.d_ssm, self.d_mlp = heads, d_ssm, d_inner - d_ssm
        self.conv_dim = d_ssm + 2 * ngroups * d_state
        self.sizes = [self.d_mlp, self.d_mlp, d_ssm, self.conv_dim, heads]
        self.d_inject = sum(self.sizes)
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self.chunk_size = chunk_size
        self.impl: ssd.Impl = impl

        made = {"device": device, "dtype": dtype}
        self.dt_bias = nn.Parameter(_initial_dt_bias(heads, dt_min, dt_max, dt_init_floor, device).to(dtype=dtype))
        A = torch.empty(heads, device=device, dtype=torch.float32).uniform_(*A_init_range)
        self.A_log = nn.Parameter(A.log().to(dtype=dtype))
        self.D = nn.Parameter(torch.ones((heads, headdim) if D_has_hdim else heads, **made).flatten())
        self.in_proj = nn.Linear(d_model, self.d_inject, bias=bias, **made)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim, padding=d_conv - 1, bias=conv_bias, **made
        )
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.norm = None
        if rmsnorm:
            self.norm = GatedRMSNorm(d_ssm, groups=ngroups, norm_before_gate=norm_before_gate, **made)
        else:
            require(not norm_before_gate, "norm_before_gate", norm_before_gate, "False without rmsnorm")
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias, **made)
        self.dropout = VariationalDropout(dropout, d_model)

    def forward(
        self, z: Tensor, u: Tensor | None = None, context: Context | None = None, cache: Mamba2Cache | None = None
    ) -> Any:
        """Return the output, (B, L, D), zero at padding; behind a cache, also the cache with these tokens.

        Args:
            z: normalised state, (B, L, D).
            u: injected input, added to [MLP gate, MLP value | gate | x, B, C | dt], (B, L, U); None injects nothing.
            context: what is fixed within the call.
            cache: of the tokens before these.

        Raises:
            ValueError: ``u`` or a cache of another shape.
        """
        y, after = self._run(z, u, cache, context)
        return y if cache is None else (y, after)

    def forward_chunk(
        self, z: Tensor, u: Tensor | None, cache: Mamba2Cache | None, context: Context | None = None
    ) -> tuple[Tensor, Mamba2Cache]:
        """Return the output of the L tokens after those in ``cache``, (B, L, D), and the cache with them.

        None is an empty cache.

        Raises:
            ValueError: ``u`` or a cache of another shape.
        """
        return self(z, u, context, self.empty_cache(len(z), z.device) if cache is None else cache)

    def empty_cache(self, batch: int, device: torch.device | None = None) -> Mamba2Cache:
        """Return the cache of ``batch`` rows without any token: zeros.

        Args:
            batch: rows B.
            device: None is that of the parameters.
        """
        device = self.dt_bias.device if device is None else device
        dtype = self.dt_bias.dtype
        window = torch.zeros(batch, self.d_conv - 1, self.conv_dim, dtype=dtype, device=device)
        sizes = (batch, self.nheads, self.headdim, self.d_state)
        return Mamba2Cache(window, torch.zeros(sizes, dtype=wide(dtype), device=device))

    def flops(self, context: int) -> int:
        """Return what a token computes beside the linear layers: convolution and scan, whatever lies before it.

        2 C W for C channels by W taps, and 5 H P N + 2 H P (decay, outer product and sum for the new state, product
        with C, skip).
        """
        return 2 * self.conv_dim * self.d_conv + self.d_ssm * (5 * self.d_state + 2)

    def input_weight(self) -> Tensor:
        """Return the map from a state to what an injected input is added to: (U, D)."""
        return self.in_proj.weight

    def _run(
        self, z: Tensor, u: Tensor | None, cache: Mamba2Cache | None, context: Context | None
    ) -> tuple[Tensor, Mamba2Cache]:
        context = NOTHING if context is None else context
        projected = context.apply(self.in_proj, context.keep(z))
        self._check(projected, u, cache)
        window, state = (None, None) if cache is None else cache
        twin: CompiledMamba2 | None = context.twins.get(self)
        takes = twin is not None and twin.takes(projected, u, context.mask, window, state)
        if takes and not torch.is_grad_enabled():
            y, window, state = twin(projected, u, context.mask, window, state)  # type: ignore[misc]
        else:
            if u is not None:
                projected = projected + u.to(projected.dtype)
            given = (context.keep(projected), context.mask, window, state)
            if takes:
                y, window, state = twin.attached(*given, self._parameters_of(context.weight))  # type: ignore[union-attr]
            else:
                y, window, state = self._by_parts(*given, context)
        out = context.keep(context.apply(self.dropout, context.apply(self.out_proj, y)))
        return out, Mamba2Cache(window, state)

    def _check(self, projected: Tensor, u: Tensor | None, cache: Mamba2Cache | None) -> None:
        if u is not None and u.shape != projected.shape:
            require(False, "u", tuple(u.shape), f"of shape {tuple(projected.shape)}")
        if cache is None:
            return
        held, window, batch = cache.state.shape, cache.window.shape, projected.shape[0]
        sizes, want = (self.nheads, self.headdim, self.d_state), (batch, self.d_conv - 1, self.conv_dim)
        if held != (batch, *sizes) or window != want:
            require(held[0] == batch, "the batch of the cache", held[0], f"that of z, {batch}")
            require(held[1:] == sizes, "the state of the cache", tuple(held[1:]), f"of shape (H, P, N), {sizes}")
            require(False, "window", tuple(window), f"of shape {want}")

    @torch.no_grad()
    def twin(self, weights: Mapping[nn.Module, Tensor], build: Build) -> CompiledMamba2 | None:
        """Return the compiled twin of all between the projections, with the parameters of now, or None.

        Args:
            weights: effective weights of normalised layers.
            build: see `deqlm.layers.Context.open`.
        """
        norm, convs = self.norm, (nn.Conv1d, NormedConv1d)
        skipped = norm is None or (stock(norm, GatedRMSNorm) and norm.groups == self.ngroups)
        if self.impl != "auto" or not skipped or not stock(self, Mamba2) or not stock(self.conv1d, *convs):
            return None
        return compile_mamba2(build, self._sizes(), self._parameters_of(Context(weights=weights).weight))

    def _by_parts(
        self, projected: Tensor, mask: Tensor | None, window: Tensor | None, state: Tensor | None, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the compiled twin does, by torch operations and calls of the parts."""
        options: dict[str, Any] = {"chunk_size": self.chunk_size, "impl": self.impl, "norm": self.norm}
        weight: Any = context.weight
        if not stock(self.conv1d, nn.Conv1d, NormedConv1d):
            options["conv"], weight = partial(called_conv, self.conv1d, self.d_conv), _not_read
        return inner(self._sizes(), projected, mask, window, state, self._parameters_of(weight), **options)

    def _sizes(self) -> InnerSizes:
        norm = self._own_norm()
        choices = (False, False, 0.0) if norm is None else (True, norm.norm_before_gate, norm.eps)
        sizes = (self.nheads, self.headdim, self.ngroups, self.d_state, self.d_conv, self.d_mlp)
        return InnerSizes(*sizes, *choices, self.dt_limit)

    def _parameters_of(self, weight: Callable[[Any], Tensor]) -> InnerParameters:
        norm = self._own_norm()
        norm_weight = None if norm is None else norm.weight
        return InnerParameters(weight(self.conv1d), self.conv1d.bias, self.dt_bias, self.A_log, self.D, norm_weight)

    def _own_norm(self) -> GatedRMSNorm | None:
        return self.norm if isinstance(self.norm, GatedRMSNorm) else None


def _not_read(layer: nn.Module) -> None:
    """Return the weight of a layer that reads it itself."""


def _initial_dt_bias(
    heads: int, dt_min: float, dt_max: float, floor: float, device: torch.device | str | None
) -> Tensor:
    """Return the inverse softplus of step sizes that are uniform in their logarithm, float32."""
    low, high = math.log(dt_min), math.log(dt_max)
    dt = (low + torch.rand(heads, device=device, dtype=torch.float32) * (high - low)).exp().clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))
