"""Configurations of the two families of implicit language models, in the names of Hugging Face."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from deqlm.hf.config_base import ImplicitConfig
from deqlm.models import AttentionOptions, LMOptions, Mamba2Options
from deqlm_solvers.core.checks import number, require, whole

__all__ = ["ImplicitConfig", "ImplicitLlamaConfig", "ImplicitMamba2Config"]

MAX_HEAD_DIM = 64


class ImplicitMamba2Config(ImplicitConfig):
    """Configuration of the implicit Mamba2, or with ``implicit=False`` of its explicit twin.

    The authors of the paper use the same ``model_type`` for files of another layout: those are imported by
    `deqlm.hf.import_implicit_llm`, not read.

    Args:
        state_size: N of the SSM's state per feature.
        expand: inner width over ``hidden_size``.
        head_dim: features P that share a decay; None is the largest divisor <= 64 of the inner width.
        num_heads: heads; None follows from ``head_dim``, and the other way round.
        conv_kernel: taps of the convolution.
        n_groups: groups of heads that share B and C.
        intermediate_size: hidden width of an MLP in each block; None leaves MLPs away.
        **kwargs: keys of `ImplicitConfig` and of ``transformers.PreTrainedConfig``.

    Raises:
        TypeError: an unknown key.
        ValueError: a value that breaks its rule or contradicts another, or a configuration of another model.

    Examples:
        >>> config = ImplicitMamba2Config(hidden_size=96, deq={"mode": {"name": "chunked", "size": 16}})
        >>> config.head_dim, config.num_heads, config.deq.mode.size
        (64, 3, 16)
        >>> ImplicitMamba2Config.from_preset("mamba2-130m-pretrain").deq.grad.gradient
        Phantom(steps=1, damping=0.8, same_value=False, checkpoint=False)
    """

    model_type = "implicit_mamba2"

    def __init__(
        self,
        *,
        state_size: int = 128,
        expand: int = 2,
        head_dim: int | None = None,
        num_heads: int | None = None,
        conv_kernel: int = 4,
        n_groups: int = 1,
        intermediate_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.state_size, self.expand, self.conv_kernel, self.n_groups = state_size, expand, conv_kernel, n_groups
        self.intermediate_size = intermediate_size
        whole("expand", expand, 1)
        inner = expand * _hidden_size(kwargs)
        self.num_heads, self.head_dim = _heads(inner, num_heads, head_dim, "num_heads", step=1)
        super().__init__(**kwargs)

    def _family_options(self) -> dict[str, Any]:
        inner = self.expand * self.hidden_size
        _check_heads(inner, self.num_heads, self.head_dim, "num_heads", "expand * hidden_size")
        mixer = Mamba2Options(
            d_state=self.state_size,
            expand=self.expand,
            headdim=self.head_dim,
            d_conv=self.conv_kernel,
            ngroups=self.n_groups,
        )
        for name in ("state_size", "conv_kernel", "n_groups"):
            whole(name, getattr(self, name), 1)
        require(self.num_heads % self.n_groups == 0, "n_groups", self.n_groups, f"a divisor of {self.num_heads} heads")
        if self.intermediate_size is not None:
            whole("intermediate_size", self.intermediate_size, 1)
        return {"mixer": mixer, "d_hidden": self.intermediate_size}

    @classmethod
    def _keys_of(cls, given: LMOptions) -> dict[str, Any]:
        mixer = given.mixer
        require(isinstance(mixer, Mamba2Options), "the mixer", mixer, f"Mamba2Options for {cls.__name__}")
        assert isinstance(mixer, Mamba2Options)
        require(given.norm_eps == 1e-5, "norm_eps", given.norm_eps, f"1e-5 for {cls.__name__}")
        return {
            **{"state_size": mixer.d_state, "expand": mixer.expand, "head_dim": mixer.headdim},
            **{"conv_kernel": mixer.d_conv, "n_groups": mixer.ngroups, "intermediate_size": given.d_hidden},
        }


class ImplicitLlamaConfig(ImplicitConfig):
    """Configuration of the implicit transformer, or with ``implicit=False`` of its explicit twin.

    The paper's authors call theirs "implicit_llama3" and write other keys: such files are imported by
    `deqlm.hf.import_implicit_llm`, not read.

    Args:
        num_attention_heads: query heads; None follows from ``head_dim``, and the other way round.
        num_key_value_heads: heads of keys and values; None is ``num_attention_heads``.
        head_dim: width of a head; None is the largest even divisor <= 64 of ``hidden_size``.
        intermediate_size: hidden width of the MLPs; None is 8/3 of ``hidden_size``, rounded down.
        rope_theta: base of the wavelengths of the rotary positions.
        sliding_window: tokens that a token sees, itself included; None is all before it.
        rms_norm_eps: added to the mean square in the norms.
        **kwargs: keys of `ImplicitConfig` and of ``transformers.PreTrainedConfig``.

    Raises:
        TypeError: an unknown key.
        ValueError: a value that breaks its rule or contradicts another, or a configuration of another model.

    Examples:
        >>> config = ImplicitLlamaConfig(hidden_size=96, num_hidden_layers=2)
        >>> config.num_attention_heads, config.head_dim, config.intermediate_size
        (2, 48, 256)
        >>> ImplicitLlamaConfig(hiden_size=96)
        Traceback (most recent call last):
        TypeError: ImplicitLlamaConfig got an unknown key 'hiden_size': did you mean 'hidden_size'? known: ...
    """

    model_type = "implicit_llama"

    def __init__(
        self,
        *,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int | None = None,
        rope_theta: float = 5e5,
        sliding_window: int | None = None,
        rms_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        width = _hidden_size(kwargs)
        heads, self.head_dim = _heads(width, num_attention_heads, head_dim, "num_attention_heads", step=2)
        self.num_attention_heads = heads
        self.num_key_value_heads = heads if num_key_value_heads is None else num_key_value_heads
        self.intermediate_size = 8 * width // 3 if intermediate_size is None else intermediate_size
        self.rope_theta, self.sliding_window, self.rms_norm_eps = rope_theta, sliding_window, rms_norm_eps
        super().__init__(**kwargs)

    def _family_options(self) -> dict[str, Any]:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        _check_heads(self.hidden_size, heads, self.head_dim, "num_attention_heads", "hidden_size")
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, because heads are rotated in pairs")
        whole("num_key_value_heads", kv_heads, 1)
        require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {heads} query heads")
        whole("intermediate_size", self.intermediate_size, 1)
        for name in ("rope_theta", "rms_norm_eps"):
            number(name, getattr(self, name), "> 0", lambda value: 0 < value < float("inf"))
        if self.sliding_window is not None:
            whole("sliding_window", self.sliding_window, 1)
        seen = {"rope_theta": float(self.rope_theta), "sliding_window": self.sliding_window}
        mixer = AttentionOptions(n_head=heads, n_kv_head=kv_heads, **seen)
        return {"mixer": mixer, "d_hidden": self.intermediate_size, "norm_eps": self.rms_norm_eps}

    @classmethod
    def _keys_of(cls, given: LMOptions) -> dict[str, Any]:
        mixer = given.mixer
        require(isinstance(mixer, AttentionOptions), "the mixer", mixer, f"AttentionOptions for {cls.__name__}")
        assert isinstance(mixer, AttentionOptions)
        require(given.d_hidden is not None, "d_hidden", given.d_hidden, f"a width for {cls.__name__}")
        return {
            **{"num_attention_heads": mixer.n_head, "num_key_value_heads": mixer.n_kv_head},
            **{"intermediate_size": given.d_hidden, "rms_norm_eps": given.norm_eps},
            **{"rope_theta": mixer.rope_theta, "sliding_window": mixer.sliding_window},
        }


def _hidden_size(kwargs: Mapping[str, Any]) -> int:
    width = kwargs.get("hidden_size", inspect.signature(ImplicitConfig.__init__).parameters["hidden_size"].default)
    whole("hidden_size", width, 1)
    return width


def _heads(width: int, count: int | None, head_dim: int | None, name: str, *, step: int) -> tuple[int, int]:
    """Return how many heads of which width, where None is chosen."""
    for key, value in ((name, count), ("head_dim", head_dim)):
        if value is not None:
            whole(key, value, 1)
    if head_dim is None and count is None:
        fitting = [p for p in range(step, MAX_HEAD_DIM + 1, step) if width % p == 0]
        require(bool(fitting), "hidden_size", width, f"a multiple of {step}")
        head_dim = fitting[-1]
    if head_dim is None:
        assert count is not None
        require(width % count == 0, name, count, f"a divisor of {width}")
        head_dim = width // count
    return width // head_dim if count is None else count, head_dim


def _check_heads(width: int, count: int, head_dim: int, name: str, of: str) -> None:
    whole(name, count, 1)
    whole("head_dim", head_dim, 1)
    require(count * head_dim == width, f"{name} * head_dim", f"{count} * {head_dim}", f"{of}, {width}")
