"""A language model as plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import nn

from deqlm.gradients import Phantom
from deqlm.layers import Attention, Block, LlamaMLP, Mamba2
from deqlm.models.backbone import Backbone
from deqlm.models.lm import ImplicitLM
from deqlm.models.loss import Labels
from deqlm_solvers import FixedPoint, Options, Registry, Solve, Stop, options
from deqlm_solvers.core.checks import number, require, whole

__all__ = ["MIXERS", "AttentionOptions", "LMOptions", "Mamba2Options", "MixerOptions"]


SIZES = ("vocab_size", "pad_vocab", "d_model", "n_layer", "max_iter", "phantom_steps")
SOLVING = ("max_iter", "eval_max_iter", "rtol", "best_f", "phantom_steps", "damping")
"""Options without effect where nothing is solved."""


class MixerOptions(Options, ABC):
    """Sizes of the mixers of a backbone."""

    @abstractmethod
    def make(self, d_model: int, **more: Any) -> nn.Module:
        """Return a `deqlm.layers.Mixer` of width ``d_model``; ``more`` are dropout, device and dtype."""


MIXERS: Registry[MixerOptions] = Registry("mixer", MixerOptions, "deqlm.mixers")
"""Mixers by name; a package can add its own by entry point."""


@MIXERS.register("mamba2")
@options
class Mamba2Options(MixerOptions):
    """Sizes of `deqlm.layers.Mamba2`, which explains and checks them.

    Args:
        d_state: N.
        expand: inner width over the model's.
        headdim: P.
        d_conv: W.
        ngroups: G.

    Examples:
        >>> Mamba2Options(headdim=32).make(64).nheads
        4
    """

    d_state: int = 128
    expand: int = 2
    headdim: int = 64
    d_conv: int = 4
    ngroups: int = 1

    def make(self, d_model: int, **more: Any) -> Mamba2:
        sizes = {"d_state": self.d_state, "expand": self.expand, "headdim": self.headdim}
        return Mamba2(d_model, **sizes, d_conv=self.d_conv, ngroups=self.ngroups, **more)


@MIXERS.register("attention")
@options
class AttentionOptions(MixerOptions):
    """Sizes of `deqlm.layers.Attention`, which explains and checks them.

    Args:
        n_head: H.
        n_kv_head: heads of keys and values; None is H.
        rope_theta: base of the wavelengths.
        sliding_window: tokens that a token sees, itself included; None is all before it.

    Examples:
        >>> AttentionOptions(n_head=4).make(64).head_dim
        16
    """

    n_head: int
    n_kv_head: int | None = None
    rope_theta: float = 5e5
    sliding_window: int | None = None

    def make(self, d_model: int, **more: Any) -> Attention:
        heads = {"n_head": self.n_head, "n_kv_head": self.n_kv_head}
        return Attention(d_model, **heads, rope_theta=self.rope_theta, sliding_window=self.sliding_window, **more)


@options
class LMOptions(Options):
    """Everything that makes an `ImplicitLM` but its weights.

    Args:
        vocab_size: tokens.
        pad_vocab: the embedding table has the next multiple of this many rows.
        d_model: width D.
        n_layer: blocks.
        mixer: sizes of the mixers, an object of `MIXERS` or a dict with its ``name``.
        d_hidden: hidden width of the `deqlm.layers.LlamaMLP` of each block; None leaves MLPs away.
        dropout: of embeddings, mixers and MLPs.
        embedding_dropout: of embeddings, where it is another one; None is ``dropout``.
        norm_eps: added to the mean square by the norms of blocks, injection and backbone.
        implicit: False makes the explicit twin.
        weight_norm: as for `Backbone`.
        tie: use the embedding table as the head's weight.
        head_bias: give the head a bias.
        labels: "shifted" or "aligned".
        max_iter: most evaluations per solve in training.
        eval_max_iter: most evaluations per solve without grad; None is four times as many.
        rtol: tolerance of both.
        best_f: solves in training end by the rule of the paper, which `PRESETS` have, ``Stop(keep="best_f")``: when all
            rows pass at once, so that a loss depends on how a batch is cut into parts. False ends every row by itself,
            when all its tokens pass.
        phantom_steps: damped steps that are differentiated.
        damping: of these steps, and of the solve without grad.

    Raises:
        ValueError, TypeError, KeyError: a value that breaks its rule, or an option that is not known; for the explicit
            twin also solver options that differ from their default, because nothing would be solved.

    Examples:
        >>> small = LMOptions(vocab_size=11, d_model=16, n_layer=1, mixer=AttentionOptions(n_head=2), d_hidden=32)
        >>> sum(p.numel() for p in small.make("meta").parameters())
        3808
        >>> LMOptions.from_dict(small.to_dict()) == small
        True
    """

    vocab_size: int
    pad_vocab: int = 1
    d_model: int
    n_layer: int
    mixer: MixerOptions
    d_hidden: int | None = None
    dropout: float = 0.0
    embedding_dropout: float | None = None
    norm_eps: float = 1e-5
    implicit: bool = True
    weight_norm: bool | None = None
    tie: bool = True
    head_bias: bool = False
    labels: Labels = "shifted"
    max_iter: int = 24
    eval_max_iter: int | None = None
    rtol: float = 0.05
    best_f: bool = False
    phantom_steps: int = 4
    damping: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixer", MIXERS.make(self.mixer))
        for name in SIZES:
            whole(name, getattr(self, name), 1)
        if self.d_hidden is not None:
            whole("d_hidden", self.d_hidden, 1)
        if self.eval_max_iter is not None:
            whole("eval_max_iter", self.eval_max_iter, 1)
        number("dropout", self.dropout, "in [0, 1)", lambda p: 0 <= p < 1)
        if self.embedding_dropout is not None:
            number("embedding_dropout", self.embedding_dropout, "in [0, 1)", lambda p: 0 <= p < 1)
        number("norm_eps", self.norm_eps, "> 0", lambda e: 0 < e < float("inf"))
        number("damping", self.damping, "in (0, 1]", lambda d: 0 < d <= 1)
        number("rtol", self.rtol, "> 0", lambda t: 0 < t < float("inf"))
        require(isinstance(self.best_f, bool), "best_f", self.best_f, "True or False")
        require(self.labels in ("shifted", "aligned"), "labels", self.labels, "'shifted' or 'aligned'")
        if not self.implicit:
            for name in SOLVING:
                default = type(self).__dataclass_fields__[name].default  # type: ignore[attr-defined]
                value = getattr(self, name)
                require(value == default, name, value, f"its default {default!r} where implicit=False")

    @property
    def rows(self) -> int:
        """Rows of the embedding table, padding included."""
        return -(-self.vocab_size // self.pad_vocab) * self.pad_vocab

    @property
    def solve(self) -> Solve:
        """How to solve with grad."""
        rule: dict[str, Any] = {"keep": "best_f"} if self.best_f else {"per": "token"}
        return Solve(FixedPoint(), Stop(max_iter=self.max_iter, rtol=self.rtol, **rule))

    @property
    def no_grad(self) -> Solve:
        """How to solve without grad."""
        most = 4 * self.max_iter if self.eval_max_iter is None else self.eval_max_iter
        return Solve(FixedPoint(damping=self.damping), Stop(max_iter=most, rtol=self.rtol, per="token"))

    def make(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, head: bool = True
    ) -> ImplicitLM:
        """Return the model, with initial weights on ``device``; "meta" allocates none, and ``head=False`` no head."""
        made = {"device": device, "dtype": dtype}
        more = {"dropout": self.dropout, **made}
        norm = partial(nn.RMSNorm, eps=self.norm_eps, **made)

        def block() -> Block:
            mlp = None if self.d_hidden is None else LlamaMLP(self.d_model, self.d_hidden, **more)
            return Block(self.mixer.make(self.d_model, **more), mlp=mlp, norm=norm)

        blocks = [block() for _ in range(self.n_layer)]
        backbone = Backbone(blocks, implicit=self.implicit, weight_norm=self.weight_norm, norm=norm, **made)
        return ImplicitLM(
            backbone,
            vocab_size=self.rows,
            tie=self.tie,
            head_bias=self.head_bias,
            head=head,
            dropout=self.dropout if self.embedding_dropout is None else self.embedding_dropout,
            labels=self.labels,
            solve=self.solve,
            gradient=Phantom(self.phantom_steps, self.damping),
            no_grad=self.no_grad,
            **made,
        )
