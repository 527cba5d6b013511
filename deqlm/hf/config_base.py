"""What the configurations of all families share: keys that are checked, and the way to a model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import GenerationConfig, PreTrainedConfig

from deqlm.hf.auto_map import InstalledCode, classes_of, named, others, write_import
from deqlm.hf.checkpoints import FLOATS
from deqlm.hf.solving import DeqOptions
from deqlm.models import LMOptions, preset
from deqlm.models.loss import Labels
from deqlm_solvers.core.checks import number, require, suggest, whole

__all__ = ["ImplicitConfig"]

OF_TRANSFORMERS = {
    *(
        "torch_dtype",
        "attn_implementation",
        "experts_implementation",
        "output_attentions",
        "name_or_path",
        "num_labels",
    ),
    *("_name_or_path", "_commit_hash", "auto_map", "custom_pipelines", "quantization_config", "tokenizer_class"),
}
"""Keys that transformers reads or writes beside those of an empty configuration."""


MOST_LAYERS = 10_000
"""Blocks are made one after another: a file with a larger number would never end, or take all memory."""


class ImplicitConfig(InstalledCode, PreTrainedConfig):
    """What the configurations of both families share; it is not registered itself.

    Keys are checked: an unknown one is an error that names the nearest known one, and so is one that contradicts
    another. `to_lm_options` is the one way from a configuration to a model.

    Args:
        vocab_size: tokens.
        pad_vocab: the embedding table has the next multiple of this many rows.
        hidden_size: width D of the state.
        num_hidden_layers: blocks of one evaluation of f.
        implicit: False makes the explicit twin, which solves nothing.
        weight_norm: normalise linear and convolution weights; None is ``implicit``, as the paper has it.
        hidden_dropout: variational dropout of mixers and MLPs.
        embedding_dropout: ordinary dropout of the embeddings, before the solve.
        tie_word_embeddings: use the embedding table as the head's weight.
        head_bias: give the head a bias.
        labels: "shifted" (a label is compared with the logits of the token before) or "aligned" (with its own).
        use_cache: return a cache where grad mode is off and the call does not say.
        deq: how to solve, a `DeqOptions` or a dict of its fields; the explicit twin may have modes alone. "evaluation"
            is the section before, or the default one, `DeqOptions.for_evaluation`.
        imported: the configuration from which `deqlm.hf.import_implicit_llm` made this one; the model does not read it.
        pad_token_id: token of padding, for ``generate``.
        bos_token_id: first token, likewise.
        eos_token_id: last token or tokens, likewise.
        **kwargs: keys of ``transformers.PreTrainedConfig``.

    Raises:
        TypeError: an unknown key.
        ValueError: a value that breaks its rule or contradicts another, or a configuration of another model.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("cache", "past_key_values", "last_hidden_state", "solution", "steps", "residual", "status"),
    ]
    """What ``Trainer`` does not gather in evaluation."""

    def __init__(
        self,
        *,
        vocab_size: int = 50277,
        pad_vocab: int = 1,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        implicit: bool = True,
        weight_norm: bool | None = None,
        hidden_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        tie_word_embeddings: bool = True,
        head_bias: bool = False,
        labels: Labels = "shifted",
        use_cache: bool = True,
        deq: DeqOptions | Mapping[str, Any] | str | None = None,
        imported: Mapping[str, Any] | None = None,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self._check_keys(kwargs)
        _check_dtype(kwargs)
        self.vocab_size, self.pad_vocab = vocab_size, pad_vocab
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.implicit, self.weight_norm = implicit, weight_norm
        self.hidden_dropout, self.embedding_dropout = hidden_dropout, embedding_dropout
        self.tie_word_embeddings, self.head_bias = tie_word_embeddings, head_bias
        self.labels, self.use_cache = labels, use_cache
        self.deq, self.imported = self._section(deq), imported
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        super().__init__(**{key: value for key, value in kwargs.items() if key != "model_type"})
        self.to_lm_options()

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """Return the configuration of a named preset, see `deqlm.models.PRESETS`.

        Args:
            name: such as "mamba2-130m-implicit".
            **changes: keys in place of the preset's.

        Raises:
            KeyError: an unknown name; the message names the nearest one.
            ValueError: a preset of the other family.
        """
        return cls.from_lm_options(preset(name), **changes)

    @classmethod
    def from_lm_options(cls, given: LMOptions, **changes: Any) -> Self:
        """Return the configuration of a model's options; `to_lm_options` leads back to its sizes.

        Args:
            given: options of the family of this class.
            **changes: keys in place of those.

        Raises:
            ValueError: options of the other family.
        """
        embedding = given.dropout if given.embedding_dropout is None else given.embedding_dropout
        keys: dict[str, Any] = {"vocab_size": given.vocab_size, "pad_vocab": given.pad_vocab}
        keys |= {"hidden_size": given.d_model, "num_hidden_layers": given.n_layer}
        keys |= {"implicit": given.implicit, "weight_norm": given.weight_norm, "labels": given.labels}
        keys |= {"hidden_dropout": given.dropout, "embedding_dropout": embedding}
        keys |= {"tie_word_embeddings": given.tie, "head_bias": given.head_bias}
        return cls(**{**keys, "deq": DeqOptions.of_preset(given), **cls._keys_of(given), **changes})

    def to_lm_options(self) -> LMOptions:
        """Return the sizes of the model; how it is solved is `deq`, which is applied to the model that they make.

        Raises:
            ValueError: a value that breaks its rule or contradicts another; values may have changed since construction.
        """
        for name in ("vocab_size", "pad_vocab", "hidden_size", "num_hidden_layers"):
            whole(name, getattr(self, name), 1)
        require(self.num_hidden_layers <= MOST_LAYERS, "num_hidden_layers", self.num_hidden_layers, f"<= {MOST_LAYERS}")
        for name in ("implicit", "tie_word_embeddings", "head_bias", "use_cache"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        require(self.weight_norm in (None, True, False), "weight_norm", self.weight_norm, "True, False or None")
        for name in ("hidden_dropout", "embedding_dropout"):
            number(name, getattr(self, name), "in [0, 1)", lambda p: 0 <= p < 1)
        if not self.implicit:
            self.deq.refuse_solving()
        return LMOptions(
            vocab_size=self.vocab_size,
            pad_vocab=self.pad_vocab,
            d_model=self.hidden_size,
            n_layer=self.num_hidden_layers,
            dropout=self.hidden_dropout,
            embedding_dropout=self.embedding_dropout,
            implicit=self.implicit,
            weight_norm=self.weight_norm,
            tie=self.tie_word_embeddings,
            head_bias=self.head_bias,
            labels=self.labels,  # type: ignore[arg-type]
            **self._family_options(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all keys as plain data."""
        return {**super().to_dict(), "deq": self.deq.to_dict()}

    @property
    def auto_map(self) -> dict[str, Any]:
        """What reads a saved folder, by the name of the Auto class."""
        return {**named(classes_of(self)), **vars(self).get("auto_map", {})}

    @auto_map.setter
    def auto_map(self, value: Mapping[str, Any]) -> None:
        vars(self)["auto_map"] = others(value)
        if not vars(self)["auto_map"]:
            del vars(self)["auto_map"]

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, and the import by which a process that knows no deqlm reads it (``trust_remote_code``).

        Args:
            save_directory: folder, made where there is none.
            push_to_hub: upload it, too.
            **kwargs: of ``push_to_hub``.
        """
        classes, saved = classes_of(self), copy.copy(self)
        vars(saved)["auto_map"] = self.auto_map
        super(ImplicitConfig, saved).save_pretrained(save_directory)
        if classes:
            write_import(Path(save_directory), classes.values())
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **kwargs})

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, self._section(value) if key == "deq" else value)

    def _section(self, given: DeqOptions | Mapping[str, Any] | str | None) -> DeqOptions:
        before = vars(self).get("deq", DeqOptions())
        # scores of the explicit twin depend on nothing behind a token as they are
        return before if given == "evaluation" and not self.implicit else DeqOptions.of(given, before)

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        # transformers makes every configuration a dataclass, whose equality would look at its own fields alone
        cls.__eq__ = ImplicitConfig.__eq__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_diff_dict() == other.to_diff_dict()

    @classmethod
    def own_keys(cls) -> set[str]:
        """Return the keys that are not those of every configuration of transformers."""
        makers = (cls.__init__, ImplicitConfig.__init__)
        return {name for made in makers for name in inspect.signature(made).parameters} - {"self", "kwargs"}

    @classmethod
    def _check_keys(cls, kwargs: Mapping[str, Any]) -> None:
        own = cls.own_keys()
        known = own | OF_TRANSFORMERS | PreTrainedConfig().to_dict().keys()
        written = kwargs.get("model_type", cls.model_type)
        if written != cls.model_type:
            raise ValueError(
                f"model_type must be {cls.model_type!r} for {cls.__name__}, got {written!r}: use AutoConfig"
            )
        if "backbone_config" in kwargs:
            raise ValueError("this is a configuration of the paper's authors: deqlm.hf.import_implicit_llm imports it")
        for key in kwargs:
            if key in known or key == "model_type":
                continue
            if hasattr(GenerationConfig(), key):
                raise TypeError(f"{key!r} is an option of generation: give it to model.generation_config")
            raise TypeError(f"{cls.__name__} got an unknown key {key!r}: {suggest(key, own)}")

    def _family_options(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _keys_of(cls, given: LMOptions) -> dict[str, Any]:
        raise NotImplementedError


def _check_dtype(kwargs: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the dtype, if one is given, is one that a model can have."""
    for key in ("dtype", "torch_dtype"):
        given = kwargs.get(key)
        named = getattr(torch, given.removeprefix("torch."), given) if isinstance(given, str) else given
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        require(named is None or named in FLOATS, key, given, f"one of {known}")
