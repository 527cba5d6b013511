"""The configurations of the authors, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deqlm.models.options import AttentionOptions, LMOptions, Mamba2Options
from deqlm_solvers.core.checks import suggest

__all__ = ["PRESETS", "preset"]

GPT_NEOX = 50277
"""Tokens of the tokenizer of GPT-NeoX-20B."""

MAMBA2 = {"130m": (768, 24), "370m": (1024, 48), "760m": (1536, 48), "1.3b": (2048, 48)}
"""Width and depth."""
LLAMA3 = {"130m": (768, 12, 12), "370m": (1024, 24, 16), "760m": (1536, 24, 16), "1.3b": (2048, 24, 32)}
"""Width, depth and heads."""

PAPER: dict[str, Any] = {"best_f": True}
"""The rule by which the authors' models were trained."""
BOUNDED = {**PAPER, "max_iter": 4, "phantom_steps": 1}
"""4 + 1 evaluations, the first phase of pretraining ("-pretrain")."""


def _mamba2(size: str, variant: str) -> LMOptions:
    width, depth = MAMBA2[size]
    padded = 1 if (size, variant) == ("130m", "explicit") else 16
    free = {**PAPER, "max_iter": 24}
    return LMOptions(
        vocab_size=GPT_NEOX,
        pad_vocab=padded,
        d_model=width,
        n_layer=depth,
        mixer=Mamba2Options(),
        implicit=variant != "explicit",
        **{"explicit": {}, "pretrain": BOUNDED, "implicit": free}[variant],
    )


def _llama3(size: str, variant: str) -> LMOptions:
    width, depth, heads = LLAMA3[size]
    free = {**PAPER, "max_iter": 24 if size == "370m" else 32}
    return LMOptions(
        vocab_size=GPT_NEOX,
        d_model=width,
        n_layer=depth,
        mixer=AttentionOptions(n_head=heads),
        d_hidden=2 * 4 * width // 3,
        implicit=variant != "explicit",
        **{"explicit": {}, "pretrain": BOUNDED, "implicit": free}[variant],
    )


_STATE_TRACKING = LMOptions(
    vocab_size=240,
    d_model=256,
    n_layer=1,
    mixer=Mamba2Options(expand=4),
    dropout=0.05,
    labels="aligned",
    max_iter=32,
    eval_max_iter=2048,
    best_f=True,
)

PRESETS: Mapping[str, LMOptions] = MappingProxyType(
    {
        **{f"mamba2-{size}-{v}": _mamba2(size, v) for size in MAMBA2 for v in ("explicit", "pretrain", "implicit")},
        **{f"llama3-{size}-{v}": _llama3(size, v) for size in LLAMA3 for v in ("explicit", "pretrain", "implicit")},
        "mamba2-state-tracking-implicit": _STATE_TRACKING,
    }
)
"""Name -> `LMOptions`, the 25 of M. Schoene et al. (2025).

"-explicit" is the twin without a solve; "-pretrain" (4 + 1 evaluations) and "-implicit" (24 + 4 or 32 + 4) have the
same weights. State tracking has aligned labels, where the authors' code shifts them.
"""


def preset(name: str) -> LMOptions:
    """Return the options of a named configuration; change them by ``replace``, build the model by ``make``.

    Args:
        name: one of `PRESETS`.

    Raises:
        KeyError: an unknown name; the message names the nearest one.

    Examples:
        >>> tiny = preset("mamba2-state-tracking-implicit").replace(d_model=64, vocab_size=60)
        >>> tiny.make().backbone.layers[0].mixer.nheads
        4
    """
    if name not in PRESETS:
        raise KeyError(f"unknown preset {name!r}: {suggest(name, PRESETS)}")
    return PRESETS[name]
