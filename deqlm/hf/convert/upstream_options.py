"""Configurations of transformers' Mamba2 and Llama, and of mamba-ssm, as sizes of our explicit twin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from deqlm_solvers.core.checks import require

__all__ = ["Upstream", "read_upstream"]

SAME = "in a checkpoint that has an equal here"

MAMBA_SSM = {"d_model", "n_layer", "ssm_cfg"}
"""Keys by which a configuration of mamba-ssm is known; it names no type."""


class Upstream(NamedTuple):
    """A model of another library in our words.

    Attributes:
        family: "mamba2" or "llama".
        sizes: of blocks, by the keys of our configurations.
        rows: of the embedding table.
        tie: whether the head is the embedding table.
    """

    family: str
    sizes: dict[str, Any]
    rows: int
    tie: bool


def read_upstream(config: Mapping[str, Any]) -> Upstream:
    """Return what a configuration says.

    Raises:
        ValueError: another architecture, or an option that has no equal here.
    """
    kind = config.get("model_type")
    if kind is None and config.keys() >= MAMBA_SSM:
        return _mamba_ssm(config)
    readers = {"mamba2": _mamba2, "llama": _llama}
    require(kind in readers, "model_type", kind, "'mamba2' or 'llama', or the configuration that of mamba-ssm's Mamba2")
    refused = config.get("quantization_config")
    require(refused is None, "quantization_config", refused, f"absent {SAME}")
    return readers[str(kind)](config)


def _only(config: Mapping[str, Any], allowed: Mapping[str, Any], where: str = "") -> None:
    """Raise unless every option in ``allowed`` that is given has the value there."""
    for name, value in allowed.items():
        given = config.get(name, value)
        given = tuple(given) if isinstance(given, list) else given
        require(given == value, f"{where}{name}", given, f"{value!r} {SAME}")


def _mamba2(config: Mapping[str, Any]) -> Upstream:
    _only(config, {"hidden_act": "silu", "use_bias": False, "use_conv_bias": True})
    _only(config, {"time_step_limit": (0.0, math.inf), "layer_norm_epsilon": 1e-5})
    names = ("hidden_size", "num_hidden_layers", "state_size", "expand", "head_dim", "n_groups", "conv_kernel")
    sizes = _sizes(config, names)
    heads, inner = config.get("num_heads"), sizes["expand"] * sizes["hidden_size"]
    require(heads == inner / sizes["head_dim"], "num_heads", heads, f"expand * hidden_size / head_dim {SAME}")
    return Upstream("mamba2", sizes, *_head(config))


def _llama(config: Mapping[str, Any]) -> Upstream:
    allowed = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
    _only(config, allowed)
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    sizes = _sizes(config, names)
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    sizes["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or width // heads
    require(head_dim * heads == width, "head_dim", head_dim, f"hidden_size / num_attention_heads {SAME}")
    sizes |= {"rope_theta": _rope(config), "rms_norm_eps": config["rms_norm_eps"]}
    return Upstream("llama", sizes, *_head(config))


def _rope(config: Mapping[str, Any]) -> float:
    # transformers 5 keeps one dict; files of earlier versions have two keys at the top
    rope = dict(config.get("rope_parameters") or {})
    scaling = config.get("rope_scaling")
    require(scaling is None or scaling == rope, "rope_scaling", scaling, f"None {SAME}")
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    require(kind == "default", "rope_type", kind, f"'default' {SAME}")
    theta = rope.pop("rope_theta", config.get("rope_theta", 1e4))
    part = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    require(part == 1.0, "partial_rotary_factor", part, f"1.0 {SAME}")
    require(not rope, "rope_parameters", rope, f"without further options {SAME}")
    return theta


def _mamba_ssm(config: Mapping[str, Any]) -> Upstream:
    _only(config, {"d_intermediate": 0, "attn_layer_idx": (), "rms_norm": True})
    ssm = dict(config["ssm_cfg"])
    layer = ssm.pop("layer", "Mamba1")
    require(layer == "Mamba2", "ssm_cfg.layer", layer, f"'Mamba2' {SAME}")
    ssm.pop("chunk_size", None)
    ssm.pop("use_mem_eff_path", None)
    theirs = {"d_state": "state_size", "expand": "expand", "headdim": "head_dim", "ngroups": "n_groups"}
    theirs["d_conv"] = "conv_kernel"
    defaults = {"d_state": 128, "expand": 2, "headdim": 64, "ngroups": 1, "d_conv": 4}
    sizes = {ours: ssm.pop(name, defaults[name]) for name, ours in theirs.items()}
    inner = sizes["expand"] * config["d_model"]
    fixed = {"bias": False, "conv_bias": True, "rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False}
    fixed |= {"dt_limit": (0.0, math.inf), "d_ssm": inner}
    _only(ssm, fixed, "ssm_cfg.")
    left = sorted(ssm.keys() - fixed.keys() - {"dt_min", "dt_max", "dt_init_floor", "A_init_range", "conv_init"})
    require(not left, "ssm_cfg", left, f"without these options {SAME}")
    sizes |= {"hidden_size": config["d_model"], "num_hidden_layers": config["n_layer"]}
    multiple = config.get("pad_vocab_size_multiple", 8)
    rows = -(-config["vocab_size"] // multiple) * multiple
    return Upstream("mamba2", sizes, rows, config.get("tie_embeddings", True))


def _sizes(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    missing = [name for name in names if config.get(name) is None]
    require(not missing, "the upstream configuration", f"none for {', '.join(missing)}", "given in full")
    return {name: config[name] for name in names}


def _head(config: Mapping[str, Any]) -> tuple[int, bool]:
    return config["vocab_size"], config["tie_word_embeddings"]
