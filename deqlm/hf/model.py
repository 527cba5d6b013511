"""The model classes that transformers loads, trains and generates with: both families, with a head and without."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from deqlm.gradients import Gradient
from deqlm.hf.arguments import one_cache, refuse_unknown
from deqlm.hf.cache import DecodeCache
from deqlm.hf.config import ImplicitConfig, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.generation import ImplicitGenerationMixin
from deqlm.hf.output import ImplicitCausalLMOutput, ImplicitModelOutput, solved
from deqlm.hf.pretrained import ImplicitPreTrainedModel
from deqlm.hf.record import Beside, SolveRecord
from deqlm.models.failing import WhenFailed
from deqlm.sequence.modes import Mode
from deqlm_solvers import Solver, Stop

__all__ = [
    "ImplicitForCausalLM",
    "ImplicitLlamaForCausalLM",
    "ImplicitLlamaModel",
    "ImplicitMamba2ForCausalLM",
    "ImplicitMamba2Model",
    "ImplicitModel",
]


class ImplicitModel(ImplicitPreTrainedModel):
    """What both families share without a head: the answer of a call is states, not logits.

    Args:
        config: of the family.
        lm: see `deqlm.hf.pretrained.ImplicitPreTrainedModel`.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm\.head\."]  # type: ignore[misc]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DecodeCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cache: DecodeCache | None = None,
        mode: str | Mapping[str, Any] | Mode | None = None,
        stop: Stop | Mapping[str, Any] | None = None,
        solver: str | Mapping[str, Any] | Solver | None = None,
        gradient: str | Mapping[str, Any] | Gradient | None = None,
        start: Tensor | None = None,
        on_failure: WhenFailed | None = None,
        **unknown: Any,
    ) -> ImplicitModelOutput | tuple[Any, ...]:
        """Return states, and what the solve came to; arguments are those of `ImplicitForCausalLM.forward`.

        Raises:
            ValueError, TypeError: see there.
        """
        _refuse_unknown(self, unknown)
        out = self._run(
            input_ids,
            inputs_embeds,
            one_cache(past_key_values, cache),
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            token_type_ids=token_type_ids,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            stop=stop,
            mode=mode,
            solver=solver,
            gradient=gradient,
            start=start,
            on_failure=on_failure,
            # no token's logits, where the weights are those of a model with a head
            logits_to_keep=0 if self.lm.head is None else torch.empty(0, dtype=torch.int64),
        )
        made = ImplicitModelOutput(**solved(out))
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return made if as_dict else made.to_tuple()


class ImplicitForCausalLM(ImplicitGenerationMixin, ImplicitPreTrainedModel):
    """What both families share with a head: a call answers logits.

    Args:
        config: of the family.
        lm: see `deqlm.hf.pretrained.ImplicitPreTrainedModel`.
    """

    accepts_loss_kwargs = True
    """``Trainer`` gives the number of labels of all accumulated batches, ``num_items_in_batch``."""
    base_class: ClassVar[type[ImplicitModel]] = ImplicitModel
    """The class without a head; a family that names none gets one."""
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm.head.weight": "lm.embedding.weight"}  # type: ignore[misc]
    _has_head: ClassVar[bool] = True
    config_class: ClassVar[type[ImplicitConfig]] = ImplicitConfig  # type: ignore[misc]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.base_class.config_class is not cls.config_class:
            name = f"{cls.__name__.removesuffix('ForCausalLM')}Model"
            own = {"config_class": cls.config_class, "__module__": cls.__module__}
            made = cls.base_class = type(name, (cls.base_class,), own)
            vars(sys.modules[cls.__module__]).setdefault(name, made)
        # pipelines ask this table for classes, and Trainer, with label smoothing, whether labels are shifted
        names, kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, cls.config_class.model_type
        names[cls.__name__ if kind in names else kind] = cls.__name__

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DecodeCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cache: DecodeCache | None = None,
        num_items_in_batch: int | Tensor | None = None,
        mode: str | Mapping[str, Any] | Mode | None = None,
        stop: Stop | Mapping[str, Any] | None = None,
        solver: str | Mapping[str, Any] | Solver | None = None,
        gradient: str | Mapping[str, Any] | Gradient | None = None,
        start: Tensor | None = None,
        on_failure: WhenFailed | None = None,
        record: SolveRecord | Beside | None = None,
        **more: Any,
    ) -> ImplicitCausalLMOutput | tuple[Any, ...]:
        """Return logits, the loss if there are labels, and what the solve came to.

        Args:
            input_ids: tokens, (B, L), whole numbers, L >= 1.
            attention_mask: (B, T), 1 at real tokens and 0 at padding, of the T = P + L tokens in the cache and here;
                None if all are real.
            position_ids: (B, L) or (1, L); they follow from mask and cache, and others are refused, such as those of
                packed texts.
            past_key_values: cache of P earlier tokens, which stays as it is.
            inputs_embeds: in place of ``input_ids``, (B, L, D).
            labels: (B, L), whole numbers; -100 does not count, nor does padding. Shifted or aligned, as the
                configuration says.
            use_cache: return the cache behind the last token; None is the configuration's choice without grad, and
                False with.
            cache_position: (L,), P to P + L - 1; others are refused.
            logits_to_keep: make logits of so many last tokens alone, or of those of an index; 0 is all.
            return_dict: False returns a tuple of what is not None; None is the configuration's choice.
            output_hidden_states: also return embeddings and fixed point, or of an explicit model the state behind each
                block; None is the configuration's choice.
            output_attentions: must be false.
            token_type_ids: zeros, as tokenizers make them; other kinds are refused.
            cache: another name of ``past_key_values``.
            num_items_in_batch: the loss is the sum over labels divided by this; None is their number. Not read without
                labels: ``Trainer`` gives it where it makes the loss itself.
            mode: a mode of `deqlm.sequence.modes` in place of the configuration's.
            stop: a `deqlm.Stop`, or a dict of its fields, in place of that of the solve in use.
            solver: an object, a name or a dict, in place of that of the solve in use.
            gradient: likewise, in place of the configuration's.
            start: where the solve starts, see `deqlm.models.ImplicitLM`.
            on_failure: "auto", "warn", "raise" or "ignore", in place of the configuration's.
            record: takes down what the solve came to, for ``generate``.
            **more: ``shift_labels``, in place of ``labels``, each beside the logits that it is compared with; anything
                else is refused.

        Raises:
            ValueError: tokens or labels out of range, no token, a mask, positions or a cache that do not fit, packed
                texts, or an option that would be ignored.
            TypeError: a cache of another kind, what must be a tensor is none, or an unknown argument.
        """
        # named in the signature, Trainer would ask for it beside labels, and evaluate without a loss
        shift_labels = more.pop("shift_labels", None)
        _refuse_unknown(self, more)
        targets = labels if shift_labels is None else shift_labels
        out = self._run(
            input_ids,
            inputs_embeds,
            one_cache(past_key_values, cache),
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            token_type_ids=token_type_ids,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            stop=stop,
            labels=targets,
            label_kind=None if shift_labels is None else "aligned",
            mode=mode,
            solver=solver,
            gradient=gradient,
            start=start,
            logits_to_keep=logits_to_keep,
            label_count=None if targets is None else num_items_in_batch,
            on_failure=on_failure,
        )
        if record is not None and out.solution is not None:
            record.add(out.solution)
        made = ImplicitCausalLMOutput(loss=out.loss, logits=out.logits, **solved(out))
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return made if as_dict else made.to_tuple()

    @property
    def base_model(self) -> nn.Module:
        """The model without its head, of the same weights; hooks that fire in both belong on ``lm``."""
        held = self.__dict__.get("_base")
        if held is None or held.lm is not self.lm:
            # past nn.Module's registry, where its weights would be counted twice
            held = self.__dict__["_base"] = self.base_class(self.config, lm=self.lm)
        return held

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_base"}

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Set the head."""
        self.lm.head = new_embeddings

    def _get_name(self) -> str:
        name = super()._get_name()
        # Trainer would shift the labels of names that it knows, see __init_subclass__
        return name if self.config.labels == "shifted" else f"{name}[{self.config.labels}]"


class ImplicitMamba2Model(ImplicitModel):
    """The implicit Mamba2 of the paper without a head, or its explicit twin.

    Args:
        config: `ImplicitMamba2Config`.

    Examples:
        >>> config = ImplicitMamba2Config(vocab_size=11, hidden_size=16, num_hidden_layers=1, state_size=8)
        >>> with torch.no_grad():
        ...     out = ImplicitMamba2Model(config)(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
        >>> out.last_hidden_state.shape, len(out.hidden_states)
        (torch.Size([1, 3, 16]), 2)
    """

    config_class = ImplicitMamba2Config
    config: ImplicitMamba2Config


class ImplicitLlamaModel(ImplicitModel):
    """The implicit transformer of the paper without a head, or its explicit twin.

    Args:
        config: `ImplicitLlamaConfig`.

    Examples:
        >>> config = ImplicitLlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=3, implicit=False)
        >>> with torch.no_grad():
        ...     out = ImplicitLlamaModel(config)(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
        >>> len(out.hidden_states)
        4
    """

    config_class = ImplicitLlamaConfig
    config: ImplicitLlamaConfig


class ImplicitMamba2ForCausalLM(ImplicitForCausalLM, ImplicitGenerationMixin):
    """The implicit Mamba2 of the paper, or its explicit twin.

    Args:
        config: `ImplicitMamba2Config`.

    Examples:
        >>> config = ImplicitMamba2Config(vocab_size=11, hidden_size=16, num_hidden_layers=1, state_size=8)
        >>> model = ImplicitMamba2ForCausalLM(config)
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> out = model(ids, labels=ids, stop={"max_iter": 4, "rtol": 0.05, "keep": "best_f"})
        >>> out.loss.backward()
        >>> out.logits.shape, out.steps.shape
        (torch.Size([1, 3, 11]), torch.Size([1]))
    """

    config_class = ImplicitMamba2Config
    base_class = ImplicitMamba2Model
    config: ImplicitMamba2Config


class ImplicitLlamaForCausalLM(ImplicitForCausalLM, ImplicitGenerationMixin):
    """The implicit transformer of the paper, or its explicit twin.

    Args:
        config: `ImplicitLlamaConfig`.

    Examples:
        >>> config = ImplicitLlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1)
        >>> model = ImplicitLlamaForCausalLM(config)
        >>> with torch.no_grad():
        ...     out = model(torch.tensor([[1, 2, 3]]), mode="sequential")
        >>> out.cache.get_seq_length()
        3
    """

    config_class = ImplicitLlamaConfig
    base_class = ImplicitLlamaModel
    config: ImplicitLlamaConfig


def _refuse_unknown(model: ImplicitPreTrainedModel, unknown: Mapping[str, Any]) -> None:
    if unknown:
        known = inspect.signature(model.forward).parameters
        refuse_unknown(type(model).__name__, unknown, [name for name in known if name not in ("more", "unknown")])
