"""What ``generate`` carries from token to token: a `deqlm.models.LMCache` behind the names that transformers calls."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from deqlm.models import LMCache, LMOutput
from deqlm_solvers.core.checks import require, whole

__all__ = ["DecodeCache"]


class DecodeCache:
    """Earlier tokens of a batch, for ``past_key_values`` (called ``cache`` in later releases of transformers 5).

    A forward returns a new one and leaves the given one as it was, so that one prompt can be continued many times
    without a copy. Only the methods that transformers names as in place change the object; no tensor is written ever.
    Tokens cannot be taken back: a state-space model's state holds all of them in one sum.

    Args:
        value: the cache of the model; None holds no token yet.
        state: what the head saw of the last token, (B, 1, D), from which the next token's solve may start.

    Attributes:
        value: see above.
        state: see above.

    Raises:
        ValueError: a state of another batch size.

    Examples:
        >>> from deqlm.layers import Attention, Block
        >>> from deqlm.models import Backbone, ImplicitLM
        >>> model = ImplicitLM(Backbone([Block(Attention(8, n_head=2))]), vocab_size=5)
        >>> with torch.no_grad():
        ...     cache = DecodeCache().after(model(torch.tensor([[1, 2, 3]]), use_cache=True))
        >>> cache.batch_repeat_interleave(2)
        >>> cache.batch_size, cache.get_seq_length(), cache.state.shape
        (2, 3, torch.Size([2, 1, 8]))
    """

    is_compileable = False
    """Its tensors grow with the tokens, so that transformers must not compile the forward."""
    is_croppable = False
    is_linear = (False,)
    """No layer is linear in the sense of transformers: the cache counts its tokens."""

    def __init__(self, value: LMCache | None = None, state: Tensor | None = None) -> None:
        if value is not None and state is not None:
            require(
                len(state) == value.batch, "the batch of the state", len(state), f"that of the cache, {value.batch}"
            )
        self.value, self.state = value, state

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_size={self.batch_size}, tokens={self.get_seq_length()})"

    def after(self, out: LMOutput) -> DecodeCache:
        """Return the cache behind the tokens of a call with ``use_cache``; this one stays as it was.

        Args:
            out: what the model returned.

        Raises:
            ValueError: a call without ``use_cache``.
        """
        require(out.cache is not None, "cache", out.cache, "one from a call with use_cache=True")
        # a copy, because a view would keep the states of a whole prompt alive
        return type(self)(out.cache, out.state[:, -1:].detach().clone())

    @property
    def batch_size(self) -> int:
        """Rows B, or -1 where no token is held yet."""
        return -1 if self.value is None else self.value.batch

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the token slots held, padding included; the same for every layer."""
        return 0 if self.value is None else self.value.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return -1: there is no limit."""
        return -1

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens, in place."""
        self.value = self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Hold the rows ``beam_idx`` (K,), int64, in their order, in place."""
        if self.value is None:
            return
        beam_idx = beam_idx.to(self._device)
        self.value = self.value.rows(beam_idx)
        self.state = None if self.state is None else self.state.index_select(0, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Hold the rows ``indices`` (K,), int64, in their order, in place."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Hold every row ``repeats`` times, next to each other, in place.

        Raises:
            ValueError: ``repeats`` is no whole number >= 1.
        """
        whole("repeats", repeats, 1)
        if self.value is not None:
            self.reorder_cache(torch.arange(self.value.batch, device=self._device).repeat_interleave(repeats))

    def crop(self, *tokens: int) -> NoReturn:
        """Raise; assisted decoding asks for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a DecodeCache cannot take tokens back, because the state of a state-space model does not say what each "
            "token added; keep the cache of the shorter text, which no later call changes"
        )

    @property
    def _device(self) -> torch.device:
        assert self.value is not None
        return next(leaf.device for leaf in self.value.layers[0] if leaf is not None)
