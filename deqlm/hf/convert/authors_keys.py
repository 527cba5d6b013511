"""What the authors' code does with every key of its config.json, and a reader that leaves none unaccounted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from deqlm_solvers.core.checks import number, require, suggest, whole

__all__ = ["FAMILIES", "NO_EFFECT", "STORED", "Keys"]

FAMILIES = {"implicit_mamba2": "mamba2", "implicit_llama3": "llama"}
"""Their model_type -> our family."""

SECTIONS = (
    "backbone_config",
    "backbone_config.block_cfg",
    "deq_params",
    "deq_params.solver",
    "deq_params.norm",
    "deq_params.training",
    "deq_params.regularization",
)

STORED = {
    **dict.fromkeys(("architectures", "torch_dtype", "dtype", "transformers_version"), "read by transformers only"),
    "tokenizer": "the name of a tokenizer, which nothing loads",
    "emb_init_std": "embeddings start with a standard deviation of 0.02, which is written in the code",
    "weight_decay": "no optimizer reads it",
    "average_eval": "nothing reads it",
    "data_info": "nothing reads it",
    "dataset_name": "nothing reads it",
    "keep_sequence_dim": "nothing reads it",
    "save_output_ids": "nothing reads it",
    "load_from_pretrained_shell": "nothing reads it",
    "masked_training": "nothing reads it",
    "backbone_config.init_gain": "the injection starts as torch's linear layers do",
}
"""Kept by the authors' code, without effect on the model."""

NO_EFFECT = {
    "deq_params.norm.norm_clip_val": "their library reads norm_clip_value",
    "deq_params.norm.norm_target_norm": "only norm_no_scale=true reads it",
    "deq_params.norm.sn_n_power_iters": "only spectral normalisation reads it",
    "deq_params.training.gamma": "it is read and never used",
    "deq_params.training.core": "with one state and no indexing both cores do the same",
    "deq_params.regularization.jac_loss_weight": "the penalty is never added to the loss; here it is not computed",
    "deq_params.regularization.jac_loss_freq": "the penalty is never added to the loss; here it is not computed",
    "deq_params.regularization.jac_incremental": "nothing reads it",
    "deq_params.regularization.sradius_mode": "their code sets it to false",
    "backbone_config.residual_in_fp32": "float32 weights make all float32; here the state is float32 or wider",
    "backbone_config.initializer_cfg": "under weight normalisation it finds no parameter to scale",
    "backbone_config.device": "a place, not a property of the model",
    "backbone_config.dtype": "here the dtype is that of the tensors",
    "backbone_config.block_cfg.use_mem_eff_path": "it chooses between two ways to compute the same",
    "backbone_config.block_cfg.chunk_size": "it chooses between ways to compute the same",
    "backbone_config.block_cfg.max_seq_len": "it is the length of a table that grows when needed",
    "backbone_config.block_cfg.allow_negative_A_EV": "it is accepted and not implemented",
    "backbone_config.block_cfg.use_materializing_scan": "it is accepted and not implemented",
}
"""Keys that change nothing, and why."""

INITIAL = ("conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor")
"""Options of the mixer that change initial weights only."""

ABSENT: Any = object()


class Keys:
    """A config.json of the authors by dotted names, each of which is taken once or accounted for at the end.

    Args:
        config: theirs; not changed.

    Attributes:
        used: name -> what it became here.
        inert: name -> why it has no effect beside these.

    Raises:
        ValueError: a section that is not a mapping.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.left: dict[str, Any] = {}
        self.used: dict[str, str] = {}
        self.inert: dict[str, str] = {}
        self._flatten("", config)

    def take(self, name: str, default: Any = ABSENT, *, becomes: str = "") -> Any:
        """Return a value and count it as used, as ``becomes``.

        Raises:
            ValueError: it is missing and has no default.
        """
        given = name in self.left
        require(given or default is not ABSENT, "the authors' configuration", f"none for {name!r}", "given in full")
        value = self.left.pop(name, default)
        if given and becomes:
            self.used[name] = becomes.format(value)
        return value

    def whole(self, name: str, default: Any = ABSENT, *, least: int = 1, becomes: str) -> int:
        """Return a whole number >= ``least``."""
        value = self.take(name, default, becomes=becomes)
        whole(name, value, least)
        return value

    def number(
        self, name: str, rule: str, ok: Callable[[float], bool], default: Any = ABSENT, *, becomes: str
    ) -> float:
        """Return a number for which ``ok`` holds; ``rule`` says what that is."""
        value = self.take(name, default, becomes=becomes)
        number(name, value, rule, ok)
        return value

    def flag(self, name: str, default: Any = ABSENT, *, becomes: str) -> bool:
        """Return true or false."""
        value = self.take(name, default, becomes=becomes)
        require(isinstance(value, bool), name, value, "true or false")
        return value

    def ignore(self, *names: str, because: str) -> None:
        """Count keys as without effect beside the values of others."""
        for name in names:
            if name in self.left:
                del self.left[name]
                self.inert[name] = because

    def only(self, name: str, allowed: Collection[Any], default: Any = ABSENT, *, because: str) -> None:
        """Take a value of which we have an equal for ``allowed`` only.

        Raises:
            ValueError: another one; the message ends with ``because``.
        """
        value = self.take(name, default, becomes="the only value that has an equal here, {!r}")
        if isinstance(value, list):
            value = tuple(value)
        known = [math.inf if choice == "inf" else choice for choice in allowed]
        rule = " or ".join(map(repr, allowed))
        require(any(value == choice for choice in known), name, value, f"{rule} ({because})")

    def rest(self, *, implicit: bool, weights: bool) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what is left: stored values, and for each key without effect why it has none.

        Args:
            implicit: whether anything is solved.
            weights: whether weights come with the configuration.

        Raises:
            TypeError: a key that their backbone refuses.
            ValueError: an option of initial weights, where none are given.
        """
        stored: dict[str, Any] = {}
        inert = dict(self.inert)
        for name, value in self.left.items():
            section, _, last = name.rpartition(".")
            if name in STORED:
                stored[name] = value
                inert[name] = STORED[name]
            elif name.startswith("deq_params") and not implicit:
                inert[name] = "an explicit backbone solves nothing"
            elif name in NO_EFFECT:
                inert[name] = NO_EFFECT[name]
            elif section == "backbone_config.block_cfg" and last in INITIAL:
                require(weights, name, value, "absent where no weights are given (our initial values are the defaults)")
                inert[name] = "it changes initial weights only, and weights are given"
            elif section == "backbone_config.block_cfg":
                inert[name] = "their mixers accept any key and do not know this one"
            elif section == "backbone_config":
                known = [key.partition(".")[2] for key in {**STORED, **NO_EFFECT, **self.used}]
                raise TypeError(f"their backbone refuses the key {last!r}: {suggest(last, filter(None, known))}")
            elif section.startswith("deq_params") or name == "deq_params":
                inert[name] = "their library does not know it and ignores it"
            else:
                stored[name] = value
                inert[name] = "their configuration keeps any key, and nothing reads this one"
        return stored, inert

    def _flatten(self, prefix: str, data: Any) -> None:
        require(isinstance(data, Mapping), prefix.rstrip(".") or "config", data, "a mapping")
        for key, value in data.items():
            if f"{prefix}{key}" in SECTIONS:
                self._flatten(f"{prefix}{key}.", {} if value is None else value)
            else:
                self.left[f"{prefix}{key}"] = value
