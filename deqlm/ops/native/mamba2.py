"""What Mamba2 does between its projections in one compiled call, and its derivative in another."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from deqlm.ops.inner import InnerParameters, InnerSizes, decay_rates, inner
from deqlm.ops.native.library import Build, built, common_dtype, unwatched

__all__ = ["CompiledMamba2", "compile_mamba2"]

TOKENS = 64
"""Of a row at a time; MOST_TOKENS of scan.h."""
SMALL = 32
"""Of a state: beyond, torch's matrix products of short sequences are as fast with grad; see docs/log.md."""
NUMBERS = 65536
"""Between two loops, for each thread: what fits into the cache of a core."""


class _Layer(ctypes.Structure):
    """The struct ``Mamba2`` of mamba2.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("heads", "headdim", "groups", "state", "taps", "mlp")),
        *((name, ctypes.c_int64) for name in ("normed", "gate_last")),
        *((name, ctypes.c_double) for name in ("eps", "dt_least", "dt_most")),
        *((name, ctypes.c_void_p) for name in ("conv_weight", "conv_bias", "dt_bias", "rates", "skip", "norm_weight")),
    ]


class _Tokens(ctypes.Structure):
    """The struct ``Tokens`` of mamba2.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "u_stride", "mask_stride")),
        *((name, ctypes.c_int64) for name in ("threads", "rows_at_once", "tokens_at_once")),
        *((name, ctypes.c_void_p) for name in ("projected", "u", "window", "state", "mask")),
        *((name, ctypes.c_void_p) for name in ("y", "window_after", "state_after", "scratch")),
    ]


class _Back(ctypes.Structure):
    """The struct ``Back`` of mamba2_back.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("y", "window_after", "state_after")),
        *((name, ctypes.c_void_p) for name in ("projected", "window", "state", "parameters")),
    ]


class CompiledMamba2:
    """The compiled twin of `deqlm.ops.inner.inner` and of the injection before it, with the parameters of one call.

    Rows do not influence each other by a bit.

    Args:
        functions: of layers.cpp.
        sizes: of the layer.
        parameters: of the layer, of one dtype, on the CPU.
    """

    def __init__(self, functions: ctypes.CDLL, sizes: InnerSizes, parameters: InnerParameters) -> None:
        p = parameters
        self.sizes, self.channels = sizes, sizes.channels
        self.dtype = p.dt_bias.dtype
        single = self.dtype == torch.float32
        self.run = functions.mamba2_float if single else functions.mamba2_double
        self.run_back = functions.mamba2_back_float if single else functions.mamba2_back_double
        skip = p.D.view(sizes.heads, -1).expand(-1, sizes.headdim)
        given = (p.conv_weight[:, 0].T, p.conv_bias, p.dt_bias, decay_rates(p.A_log), skip, p.norm_weight)
        # the struct holds addresses of these
        self.kept = tuple(None if t is None else t.detach().contiguous() for t in given)
        choices = (int(sizes.norm), int(sizes.gate_last), sizes.eps, *sizes.dt_limit)
        self.layer = _Layer(*sizes[:6], *choices, *(_address(t) for t in self.kept))
        self.address = ctypes.addressof(self.layer)

    def takes(self, projected: Tensor, *others: Tensor | None) -> bool:
        """Say whether ``projected`` has dtype and width, all inputs are `unwatched`, and with grad, if it pays.

        The derivative has a thread for each row; and its work grows with the state, that of torch's with the length.
        """
        rows, length, width = projected.shape
        fits = projected.dtype == self.dtype and width == self.sizes.inputs
        if not fits or length == 0 or not unwatched(projected, *others):
            return False
        if not torch.is_grad_enabled():
            return True
        return rows >= torch.get_num_threads() and self.sizes.state <= max(SMALL, length)

    def __call__(
        self, projected: Tensor, u: Tensor | None, mask: Tensor | None, window: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `deqlm.ops.inner.inner` does, without a graph.

        Args:
            projected: output of the input projection, (B, L, U).
            u: injected input, (B, L, U) or None.
            mask: (B, L) bool, False at padding, or None; what the other two hold there is not read.
            window: (B, W - 1, C); None is zeros.
            state: (B, H, P, N); None is zero.
        """
        sizes, dtype = self.sizes, self.dtype
        projected = projected.contiguous()
        batch, length, width = projected.shape
        if u is not None and (u.dtype != dtype or u.stride(2) != 1 or u.stride(1) != width):
            u = u.to(dtype).contiguous()
        window, state = _fit(window, dtype), _fit(state, dtype)
        y = projected.new_empty(batch, length, sizes.mlp + sizes.ssm)
        window_after = projected.new_empty(batch, sizes.taps - 1, self.channels)
        state_after = projected.new_empty(batch, sizes.heads, sizes.headdim, sizes.state)
        tokens, held = self._tokens(projected, mask)
        if u is not None:
            tokens.u, tokens.u_stride = u.data_ptr(), u.stride(0)
        if window is not None:
            tokens.window = window.data_ptr()
        if state is not None:
            tokens.state = state.data_ptr()
        made = (y, window_after, state_after)
        tokens.y, tokens.window_after, tokens.state_after = (t.data_ptr() for t in made)
        self.run(self.address, ctypes.addressof(tokens))
        del held
        return made

    def attached(
        self,
        projected: Tensor,
        mask: Tensor | None,
        window: Tensor | None,
        state: Tensor | None,
        parameters: InnerParameters,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `deqlm.ops.inner.inner` does, with a graph through all tensors.

        Args:
            projected: as there, with the injected input.
            mask: as there.
            window: as there.
            state: as there.
            parameters: those that this was made of, with their graph.
        """
        return _Attached.apply(self, mask, projected, window, state, *parameters)

    def back(
        self,
        projected: Tensor,
        mask: Tensor | None,
        window: Tensor | None,
        state: Tensor | None,
        cotangents: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return cotangents of ``projected``, ``window`` and ``state``, and of the parameters as `kept` has them.

        Args:
            projected: as for `attached`, and the next three likewise.
            mask: see there.
            window: see there.
            state: see there.
            cotangents: those of the three outputs; None is zero.
        """
        sizes, dtype = self.sizes, self.dtype
        batch = projected.shape[0]
        projected = projected.contiguous()
        window, state, y, *after = (_fit(t, dtype) for t in (window, state, *cotangents))
        y = projected.new_zeros(batch, projected.shape[1], sizes.mlp + sizes.ssm) if y is None else y
        tokens, held = self._tokens(projected, mask)
        tokens.window, tokens.state = _address(window), _address(state)
        to_projected = torch.empty_like(projected)
        to_window = projected.new_empty(batch, sizes.taps - 1, self.channels)
        to_state = projected.new_empty(batch, sizes.heads, sizes.headdim, sizes.state)
        numbers = [sizes.taps * self.channels, self.channels, *2 * (sizes.heads,), *2 * (sizes.ssm,)]
        sums = projected.new_empty(batch, sum(numbers))
        given = (y, *after, to_projected, to_window, to_state, sums)
        cotangent = _Back(*(_address(t) for t in given))
        self.run_back(self.address, ctypes.addressof(tokens), ctypes.addressof(cotangent))
        del held
        return to_projected, to_window, to_state, list(sums.sum(0).split(numbers))

    def _tokens(self, projected: Tensor, mask: Tensor | None) -> tuple[_Tokens, tuple[Tensor | None, ...]]:
        """Return the struct without u, window, state and outputs, and what it holds addresses of."""
        batch, length, _ = projected.shape
        if mask is not None:
            mask = mask.expand(batch, length)
            mask = mask if mask.stride(1) == 1 else mask.contiguous()
        channels, heads, past = self.channels, self.sizes.heads, self.sizes.taps - 1
        threads, at_once = torch.get_num_threads(), min(length, TOKENS)
        numbers = (at_once + past) * channels + at_once * (channels + heads)
        rows = min(batch, max(1, threads * NUMBERS // numbers))
        scratch = projected.new_empty(rows * numbers)
        tokens = _Tokens(batch, length, 0, 0, threads, rows, at_once, projected.data_ptr())
        tokens.scratch = scratch.data_ptr()
        if mask is not None:
            tokens.mask, tokens.mask_stride = mask.data_ptr(), mask.stride(0)
        return tokens, (mask, scratch)


class _Attached(torch.autograd.Function):
    """Keeps the inputs alone; the derivative computes what is between once more."""

    @staticmethod
    def forward(
        ctx: Any, twin: CompiledMamba2, mask: Tensor | None, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.twin = twin
        ctx.save_for_backward(mask, *inputs)
        projected, window, state, *_ = inputs
        assert projected is not None
        return twin(projected, None, mask, window, state)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        mask, *inputs = ctx.saved_tensors
        projected, window, state, *parameters = inputs
        given = [t for t in cotangents if t is not None]
        if not given:
            return (None,) * 11
        # hooks on what is saved may give back other tensors than those of the forward
        kept = projected.dtype == ctx.twin.dtype and unwatched(mask, *inputs, *given)
        if torch.is_grad_enabled() or not kept or any(map(_batched, given)):
            return (None, None, *_by_torch(ctx.twin.sizes, mask, inputs, cotangents))
        to_projected, to_window, to_state, sums = ctx.twin.back(projected, mask, window, state, cotangents)
        p = InnerParameters(*parameters)
        weight, bias, dt_bias, rates, skip, norm = sums
        skip = skip.view(p.D.numel(), -1).sum(1)
        to_parameters = (
            weight.view(-1, p.conv_weight.shape[0]).T[:, None],
            None if p.conv_bias is None else bias,
            dt_bias,
            rates * ctx.twin.kept[3],  # dA / dA_log = A
            skip,
            None if p.norm_weight is None else norm,
        )
        before = (None if window is None else to_window, None if state is None else to_state)
        return (None, None, to_projected, *before, *to_parameters)


def _by_torch(
    sizes: InnerSizes, mask: Tensor | None, inputs: list[Tensor | None], cotangents: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Return the cotangents of ``inputs`` by torch operations, with a graph if grad mode is on."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases: one input may have been made of another, and only what each does here is asked for
        views = [None if t is None else t.view_as(t) for t in inputs]
        projected, window, state, *parameters = views
        assert projected is not None
        outputs = inner(sizes, projected, mask, window, state, InnerParameters(*parameters))  # type: ignore[arg-type]
        wanted = [t for t in views if t is not None and t.requires_grad]
        reached = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None and y.requires_grad]
        ends, given = ([pair[i] for pair in reached] for i in (0, 1))
        found = iter(torch.autograd.grad(ends, wanted, given, create_graph=graph, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in views]


def _batched(t: Tensor) -> bool:
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.is_batchedtensor(t) or functorch.is_legacy_batchedtensor(t)


def _fit(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return t if t is None or (t.dtype == dtype and t.is_contiguous()) else t.to(dtype).contiguous()


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _fits(sizes: InnerSizes, p: InnerParameters) -> bool:
    """Say whether parameters have their shapes: with others, errors are up to torch."""
    per_head, per_feature, per_channel = ((n,) for n in (sizes.heads, sizes.ssm, sizes.channels))
    return (
        p.conv_weight.shape == (sizes.channels, 1, sizes.taps)
        and (p.conv_bias is None or p.conv_bias.shape == per_channel)
        and p.dt_bias.shape == p.A_log.shape == per_head
        and p.D.shape in (per_head, per_feature)
        and (p.norm_weight is None or p.norm_weight.shape == per_feature)
    )


def compile_mamba2(build: Build, sizes: InnerSizes, parameters: InnerParameters) -> CompiledMamba2 | None:
    """Return the compiled twin of a layer with these parameters, or None where there is none."""
    usable = _fits(sizes, parameters) and common_dtype(parameters) is not None
    functions = built(build) if usable else None
    if functions is None:
        return None
    structs = sum(ctypes.sizeof(struct) for struct in (_Layer, _Tokens, _Back))
    assert functions.mamba2_bytes() == structs, "mamba2.h and mamba2_back.h have other structs"
    return CompiledMamba2(functions, sizes, parameters)
