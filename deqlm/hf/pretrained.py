"""What base models and causal language models share: one `deqlm.models.ImplicitLM`, made, loaded, solved and called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from deqlm.gradients import Gradient
from deqlm.hf.arguments import check_kinds, check_positions, one_stop, real_tokens
from deqlm.hf.auto_map import InstalledCode
from deqlm.hf.cache import DecodeCache
from deqlm.hf.config import ImplicitConfig
from deqlm.hf.loading import WeightFiles, explain_bad_files, refuse_other_weights, refuse_to_leave_out
from deqlm.hf.solving import DeqOptions
from deqlm.models import ImplicitLM, LMOutput
from deqlm_solvers import Solution, Solve, Stop
from deqlm_solvers.core.checks import require, suggest

__all__ = ["ImplicitPreTrainedModel"]

KERNELS = (None, "sdpa", "eager")
"""How attention is computed: by the fastest kernel of torch, or with "eager" by plain products and a softmax. A
state-space model has none, and both are the same."""


class ImplicitPreTrainedModel(InstalledCode, PreTrainedModel):
    """An `ImplicitLM` of the configuration's options behind the calls of transformers.

    ``solve``, ``gradient`` and ``no_grad`` say how the model is solved now; they start as ``config.deq`` says, and
    `deqlm.training.Phases` changes them from step to step. ``config.deq`` is what is saved: `set_deq` changes both.

    Args:
        config: of the family.
        lm: the model itself, of another model that shares it; None makes it.

    Attributes:
        lm: the model itself. Base models and causal language models have it under the same name, so that the folder of
            either loads as the other.
    """

    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ImplicitLM"]  # type: ignore[misc]
    _supports_sdpa = True
    _has_head: ClassVar[bool] = False

    config_class = ImplicitConfig
    config: ImplicitConfig

    def __init__(self, config: ImplicitConfig, *, lm: ImplicitLM | None = None, **unknown: Any) -> None:
        for key in unknown:
            raise TypeError(f"{type(self).__name__} got an unknown option {key!r}: {suggest(key, config.own_keys())}")
        super().__init__(config)
        asked = config._attn_implementation
        require(asked in KERNELS, "attn_implementation", asked, "'sdpa' or 'eager'; there is no other")
        self._whole = lm is not None
        self.lm = self._make() if lm is None else lm
        if not self._whole and not self.lm.embedding.weight.is_meta:
            # final values, see initialize_weights
            for parameter in self.lm.parameters():
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.post_init()

    def _make(self) -> ImplicitLM:
        lm = self.config.to_lm_options().make(dtype=torch.get_default_dtype(), head=self._has_head)
        self.config.deq.apply(lm)
        return lm

    def _run(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        held: DecodeCache | None,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache_position: Tensor | None,
        token_type_ids: Tensor | None,
        use_cache: bool | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        stop: Stop | Mapping[str, Any] | None,
        **options: Any,
    ) -> LMOutput:
        """Return what the language model makes of the arguments of a call, which are checked here."""
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        rule = "false: no weights of attention are kept, and a solve would have some in each evaluation"
        require(not attentions, "output_attentions", attentions, rule)
        before = None if held is None else held.value
        tokens = input_ids if input_ids is not None else inputs_embeds
        mask = None
        if isinstance(tokens, Tensor) and tokens.dim() > 1:
            mask = real_tokens(attention_mask, tokens, before)
            check_positions(position_ids, cache_position, tokens, mask, before)
        check_kinds(token_type_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled()
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with _kernels(self.config):
            return self.lm(
                input_ids,
                embeddings=inputs_embeds,
                mask=mask,
                cache=before,
                use_cache=use_cache,
                stop=one_stop(stop),
                output_states=bool(states),
                **options,
            )

    def set_deq(self, deq: DeqOptions | Mapping[str, Any] | str) -> None:
        """Solve in another way from now on, and save it with the configuration.

        Args:
            deq: the whole section, a dict of its fields, or "evaluation": `DeqOptions.for_evaluation` of this one.

        Raises:
            ValueError, TypeError, KeyError: see `DeqOptions`.
        """
        section = self.config._section(deq)
        if not self.config.implicit:
            section.refuse_solving()
        self.config.deq = section
        section.apply(self.lm)

    def fold_weight_norm(self) -> Self:
        """Make the normalised weights plain parameters, set ``config.weight_norm`` to False, and return the model.

        The values stay. Quantisation and whatever else replaces weights needs it, and a generated token costs less.
        Optimisers have to be made anew.

        Raises:
            RuntimeError: weights that are sharded or offloaded.
        """
        self.lm.fold_weight_norm()
        self.config.weight_norm = False
        return self

    @property
    def solve(self) -> Solve:
        """How the model is solved with grad."""
        return self.lm.solve

    @solve.setter
    def solve(self, value: Solve) -> None:
        self.lm.solve = value

    @property
    def last(self) -> Solution | None:
        """What the last solve came to, without its state; see `deqlm.Equilibrium`."""
        return self.lm.last

    @property
    def gradient(self) -> Gradient:
        """How gradients are made."""
        return self.lm.gradient

    @gradient.setter
    def gradient(self, value: Gradient) -> None:
        self.lm.gradient = value

    @property
    def no_grad(self) -> Solve:
        """How the model is solved without grad."""
        return self.lm.no_grad

    @no_grad.setter
    def no_grad(self, value: Solve) -> None:
        self.lm.no_grad = value

    @property
    def base_model(self) -> nn.Module:
        """The model itself, which has no head."""
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding table."""
        return self.lm.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Set the embedding table; ``tie_weights`` ties the head to it again."""
        self.lm.embedding = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the head; None of a base model."""
        return self.lm.head if self._has_head else None

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of tokens, as transformers does; the table keeps a multiple of ``config.pad_vocab`` rows.

        Args:
            new_num_tokens: tokens; None keeps their number.
            pad_to_multiple_of: in place of ``config.pad_vocab``, from now on.
            mean_resizing: draw new rows around the mean of the old ones.

        Returns:
            The embedding table.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        tokens = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = self.config.pad_vocab if pad_to_multiple_of is None else pad_to_multiple_of
        made = super().resize_token_embeddings(tokens, multiple, mean_resizing)
        self.config.vocab_size, self.config.pad_vocab, self.vocab_size = tokens, multiple, tokens
        if self.lm.head is not None:
            self.lm.head.out_features = len(self.lm.head.weight)
        return made  # type: ignore[return-value]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, allow_partial: bool = False, **kwargs: Any
    ) -> Any:
        """Return a saved model, as ``PreTrainedModel.from_pretrained`` does.

        Weights that the files lack are initialised as in a new model, and transformers says so. Files that both lack
        weights and hold others are those of another model, and refused; so is any way to unpickle objects.

        Args:
            pretrained_model_name_or_path: folder, or name on the hub.
            *args: as transformers has them.
            allow_partial: take the weights that both have, also where the files lack some and hold others.
            **kwargs: as transformers has them, and keys in place of the configuration's.

        Raises:
            FileNotFoundError: no such folder or file.
            ValueError: damaged files, weights of another model or size, quantised weights, an index that names files of
                other folders or tensors that are not there, or ``weights_only=False``.
        """
        safe = kwargs.get("weights_only", True)
        require(safe is True, "weights_only", safe, "True: pickled objects could run code")
        wants_info, resize = (kwargs.pop(name, False) for name in ("output_loading_info", "ignore_mismatched_sizes"))
        asked: dict[str, Any] = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with explain_bad_files(pretrained_model_name_or_path):
            files = WeightFiles(pretrained_model_name_or_path, kwargs)
            files.refuse_broken_promises()
            files.refuse_quantised_state()
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **asked)
        model, info = loaded
        refuse_other_weights(cls.__name__, info, resize=resize, allow_partial=allow_partial)
        if getattr(model, "hf_quantizer", None) is None:
            files.refuse_quantised_files(info["unexpected_keys"])
        else:
            refuse_to_leave_out(model)
        return (model, info) if wants_info else model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fill the parameters that came neither from the constructor nor from a file with the values of a new model.

        They depend on the depth of the stack and on the layer around a weight, so a whole new model is made. A model
        that has been filled once stays as it is, whatever was put into it since.
        """
        if self._whole:
            return
        parameters = dict(self.named_parameters())
        missing = {
            name: parameter
            for name, parameter in parameters.items()
            if not parameter.is_meta and not getattr(parameter, "_is_hf_initialized", False)
        }
        if missing:
            fresh = self.config.to_lm_options().make("cpu", torch.float32, head=self._has_head)
            values = dict(fresh.named_parameters(prefix="lm", remove_duplicate=False))
            for name, parameter in missing.items():
                parameter.copy_(values[name])
        self._whole = not any(parameter.is_meta for parameter in parameters.values())

    def _init_weights(self, module: nn.Module) -> None:
        """Fill the table or the head that `resize_token_embeddings` has made."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are evaluated again in backward."""
        return self.lm.backbone.checkpoint is not None

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        options = getattr(gradient_checkpointing_func, "keywords", {})
        if enable and options.get("use_reentrant", False):
            raise ValueError(
                "use_reentrant must be False: weights that are normalised once per call would get no gradient"
            )
        again = partial(gradient_checkpointing_func, partial(_evaluated, self.config))
        self.lm.backbone.checkpoint = again if enable else None
        self.lm.backbone.checkpoint_every = every_n_layers


def _kernels(config: ImplicitConfig) -> AbstractContextManager[Any]:
    eager = config._attn_implementation == "eager"
    return sdpa_kernel(SDPBackend.MATH) if eager else nullcontext()


def _evaluated(config: ImplicitConfig, block: Callable[..., Any], *args: Any) -> Any:
    """Return what a block says, with the attention of the configuration: backward is outside of the call."""
    with _kernels(config):
        return block(*args)
