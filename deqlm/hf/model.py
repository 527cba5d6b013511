"""The model classes that transformers loads, trains and generates with, around `deqlm.models.ImplicitLM`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from deqlm.gradients import Gradient
from deqlm.hf.arguments import check_positions, one_cache, one_stop, real_tokens
from deqlm.hf.auto_map import InstalledCode
from deqlm.hf.cache import DecodeCache
from deqlm.hf.config import ImplicitConfig, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.generation import ImplicitGenerationMixin
from deqlm.hf.loading import WeightFiles, explain_bad_files, refuse_other_weights, refuse_to_leave_out
from deqlm.hf.output import ImplicitCausalLMOutput
from deqlm.hf.record import SolveRecord
from deqlm.hf.solving import DeqOptions
from deqlm.models.failing import WhenFailed
from deqlm.sequence.modes import Mode
from deqlm_solvers import Solution, Solve, Solver, Stop
from deqlm_solvers.core.checks import require, suggest

__all__ = ["ImplicitForCausalLM", "ImplicitLlamaForCausalLM", "ImplicitMamba2ForCausalLM"]


class ImplicitForCausalLM(InstalledCode, ImplicitGenerationMixin, PreTrainedModel):
    """What both families share: an `ImplicitLM` of the configuration's options, with the calls of transformers.

    ``solve``, ``gradient`` and ``no_grad`` say how the model is solved now; they start as ``config.deq`` says, and
    `deqlm.training.Phases` changes them from step to step. ``config.deq`` is what is saved: `set_deq` changes both.

    Args:
        config: of the family.

    Attributes:
        lm: the model itself.
    """

    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    """``Trainer`` gives the number of labels of all accumulated batches, ``num_items_in_batch``."""
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm.head.weight": "lm.embedding.weight"}  # type: ignore[misc]
    _no_split_modules: ClassVar[list[str]] = ["ImplicitLM"]  # type: ignore[misc]
    _supports_sdpa = True

    config_class = ImplicitConfig
    config: ImplicitConfig

    def __init__(self, config: ImplicitConfig, **unknown: Any) -> None:
        for key in unknown:
            raise TypeError(f"{type(self).__name__} got an unknown option {key!r}: {suggest(key, config.own_keys())}")
        super().__init__(config)
        asked = config._attn_implementation
        require(asked in (None, "sdpa"), "attn_implementation", asked, "'sdpa'; there is no other")
        self.gradient_checkpointing = False
        self.lm = config.to_lm_options().make(dtype=torch.get_default_dtype())
        config.deq.apply(self.lm)
        if not self.lm.embedding.weight.is_meta:
            # final values, see initialize_weights
            for parameter in self.lm.parameters():
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.post_init()

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
        *,
        cache: DecodeCache | None = None,
        num_items_in_batch: int | Tensor | None = None,
        mode: str | Mapping[str, Any] | Mode | None = None,
        stop: Stop | Mapping[str, Any] | None = None,
        solver: str | Mapping[str, Any] | Solver | None = None,
        gradient: str | Mapping[str, Any] | Gradient | None = None,
        start: Tensor | None = None,
        on_failure: WhenFailed | None = None,
        record: SolveRecord | None = None,
    ) -> ImplicitCausalLMOutput | tuple[Any, ...]:
        """Return logits, the loss if there are labels, and what the solve came to.

        Args:
            input_ids: tokens, (B, L), whole numbers, L >= 1.
            attention_mask: (B, T), 1 at real tokens and 0 at padding, of the T = P + L tokens in the cache and here;
                None if all are real.
            position_ids: (B, L) or (1, L); they follow from mask and cache, and others are refused.
            past_key_values: cache of P earlier tokens, which stays as it is.
            inputs_embeds: in place of ``input_ids``, (B, L, D).
            labels: (B, L), whole numbers; -100 does not count, nor does padding. Shifted or aligned, as the
                configuration says.
            use_cache: return the cache behind the last token; None is the configuration's choice without grad, and
                False with.
            cache_position: (L,), P to P + L - 1; others are refused.
            logits_to_keep: make logits of so many last tokens alone, or of those of an index; 0 is all.
            return_dict: False returns a tuple of what is not None; None is the configuration's choice.
            output_hidden_states: must be false, because the layers are parts of one map; see ``last_hidden_state``.
            output_attentions: must be false.
            cache: another name of ``past_key_values``.
            num_items_in_batch: the loss is the sum over labels divided by this; None is their number.
            mode: a mode of `deqlm.sequence.modes` in place of the configuration's.
            stop: a `deqlm.Stop`, or a dict of its fields, in place of that of the solve in use.
            solver: an object, a name or a dict, in place of that of the solve in use.
            gradient: likewise, in place of the configuration's.
            start: where the solve starts, see `deqlm.models.ImplicitLM`.
            on_failure: "auto", "warn", "raise" or "ignore", in place of the configuration's.
            record: takes down what the solve came to, for ``generate``.

        Raises:
            ValueError: tokens or labels out of range, no token, a mask, positions or a cache that do not fit, or an
                option that would be ignored.
            TypeError: a cache of another kind, or what must be a tensor is none.
        """
        for name, given in (("output_hidden_states", output_hidden_states), ("output_attentions", output_attentions)):
            asked = getattr(self.config, name) if given is None else given
            require(not asked, name, asked, "false: all layers are one map, whose point is out.last_hidden_state")
        before = one_cache(past_key_values, cache)
        held = None if before is None else before.value
        tokens = input_ids if input_ids is not None else inputs_embeds
        mask = None
        if isinstance(tokens, Tensor) and tokens.dim() > 1:
            mask = real_tokens(attention_mask, tokens, held)
            check_positions(position_ids, cache_position, tokens, mask, held)
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled()
        out = self.lm(
            input_ids,
            embeddings=inputs_embeds,
            mask=mask,
            labels=labels,
            cache=held,
            use_cache=use_cache,
            mode=mode,
            stop=one_stop(stop),
            solver=solver,
            gradient=gradient,
            start=start,
            logits_to_keep=logits_to_keep,
            label_count=num_items_in_batch,
            on_failure=on_failure,
        )
        sol = out.solution
        if record is not None and sol is not None:
            record.add(sol)
        made = ImplicitCausalLMOutput(
            loss=out.loss,
            logits=out.logits,
            cache=None if out.cache is None else DecodeCache().after(out),
            last_hidden_state=out.state,
            steps=None if sol is None else sol.steps,
            residual=None if sol is None else sol.residual,
            status=None if sol is None else sol.status,
            solution=sol,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return made if as_dict else made.to_tuple()

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
    def _prompt_mode(self) -> Mode:
        return self.config.deq.prompt_mode

    @property
    def _start(self) -> str:
        return self.config.deq.start

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding table."""
        return self.lm.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Set the embedding table; ``tie_weights`` ties the head to it again."""
        self.lm.embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        """Return the head."""
        return self.lm.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Set the head."""
        self.lm.head = new_embeddings

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
        self.lm.head.out_features = len(self.lm.head.weight)
        return made  # type: ignore[return-value]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a saved model, as ``PreTrainedModel.from_pretrained`` does.

        Weights that the files lack are initialised as in a new model, and transformers says so. Files that both lack
        weights and hold others are those of another model, and refused; so is any way to unpickle objects.

        Args:
            pretrained_model_name_or_path: folder, or name on the hub.
            *args: as transformers has them.
            **kwargs: likewise, and keys in place of the configuration's.

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
        refuse_other_weights(cls.__name__, info, resize=resize)
        if getattr(model, "hf_quantizer", None) is None:
            files.refuse_quantised_files(info["unexpected_keys"])
        else:
            refuse_to_leave_out(model)
        return (model, info) if wants_info else model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fill the parameters that came neither from the constructor nor from a file with the values of a new model.

        They depend on the depth of the stack and on the layer around a weight, so a whole new model is made.
        """
        missing = {
            name: parameter
            for name, parameter in self.named_parameters()
            if not parameter.is_meta and not getattr(parameter, "_is_hf_initialized", False)
        }
        if not missing:
            return
        fresh = self.config.to_lm_options().make("cpu", torch.float32)
        values = dict(fresh.named_parameters(prefix="lm", remove_duplicate=False))
        for name, parameter in missing.items():
            parameter.copy_(values[name])

    def _init_weights(self, module: nn.Module) -> None:
        """Fill the table or the head that `resize_token_embeddings` has made."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()

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
        self.gradient_checkpointing = enable
        self.lm.backbone.checkpoint = gradient_checkpointing_func if enable else None
        self.lm.backbone.checkpoint_every = every_n_layers


class ImplicitMamba2ForCausalLM(ImplicitForCausalLM):
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
    config: ImplicitMamba2Config


class ImplicitLlamaForCausalLM(ImplicitForCausalLM):
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
    config: ImplicitLlamaConfig
