"""``generate`` for implicit models: what transformers' own loops need to know of caches, solves and padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast, get_args

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.utils.generic import ModelOutput

from deqlm.equilibrium.settings import in_use
from deqlm.hf.arguments import check_positions, one_cache, one_stop, real_tokens
from deqlm.hf.cache import DecodeCache
from deqlm.hf.record import Beside, SolveRecord
from deqlm.hf.refused import option, refuse_options
from deqlm.hf.solving import Start
from deqlm.models.failing import WhenFailed, check_when_failed
from deqlm.models.inputs import require_tensor
from deqlm.sequence.modes import MODES, Mode
from deqlm_solvers import SOLVERS, Solver, Stop
from deqlm_solvers.core.checks import require

if TYPE_CHECKING:
    from deqlm.hf.config import ImplicitConfig
    from deqlm.models import ImplicitLM

__all__ = ["ImplicitGenerationMixin"]

_KNOWN = inspect.signature(vars(GenerationMixin)["prepare_inputs_for_generation"]).parameters
CACHE = "cache" if "cache" in _KNOWN else "past_key_values"
"""What the installed release of transformers calls the cache."""

OF_THE_LOOP = ("position_ids", "cache_position", "tokenizer")
"""What transformers' loops hand to every forward, though this one has no use for it."""


class ImplicitGenerationMixin(GenerationMixin):
    """Generation with a model whose hidden state is a fixed point; to stand before ``PreTrainedModel`` among the bases.

    Greedy decoding, sampling, beam search and beam sampling are transformers' own. A prompt is solved chunk after
    chunk, every new token by a solve of its own on top of the cache.
    """

    if TYPE_CHECKING:
        config: ImplicitConfig
        device: torch.device
        lm: ImplicitLM

    _is_stateful = True
    _supported_generation_modes: ClassVar[list[GenerationMode]] = [
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
    ]

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        past_key_values: DecodeCache | None = None,
        cache: DecodeCache | None = None,
        stop: Stop | Mapping[str, Any] | None = None,
        solver: str | Mapping[str, Any] | Solver | None = None,
        mode: str | Mapping[str, Any] | Mode | None = None,
        start: Start | None = None,
        on_failure: WhenFailed | None = None,
        **kwargs: Any,
    ) -> ModelOutput | Tensor:
        """Return tokens that continue a prompt, as ``GenerationMixin.generate`` does, with options of the solves.

        Rows of several lengths are padded on the left, with an ``attention_mask``. With ``return_dict_in_generate`` the
        output also holds ``steps`` and ``status`` (rows, new tokens), int64 and int8: the evaluations of f by the solve
        of the prompt, and then of each token that was fed back, and how it ended (`deqlm.Status`). With beams, a column
        has the rows of its own time. One `deqlm.ConvergenceWarning` per call tells how many solves did not converge.

        Args:
            inputs: tokens of the prompts, (B, L) int64, L >= 1.
            generation_config: as transformers has it.
            past_key_values: earlier tokens, from a forward with ``use_cache`` or an earlier output; it is not changed.
                ``inputs`` are then all tokens, or the ``attention_mask`` covers the earlier ones too.
            cache: another name of it.
            stop: when solves end, in place of the configuration's, for prompt and new tokens.
            solver: what solves, an object, a name or a dict, likewise.
            mode: how the prompt is cut, in place of the configuration's; a single token is always one solve.
            start: "zero", or "previous": the solve of a new token starts from the state of the token before. The answer
                is the same within the tolerance, the number of evaluations is not. None is the configuration's, which
                takes effect where there is a cache.
            on_failure: "auto" and "warn" warn once, behind the last token; "raise" raises at the first solve that does
                not converge; "ignore" says nothing. None is the model's.
            **kwargs: all other options of transformers.

        Raises:
            ValueError: no token, padding on the right or within a prompt, ids out of range, a cache of another batch
                size, or an option that would be ignored.
            TypeError: a cache of another kind, or prompts or a mask that are no tensors.
        """
        held = one_cache(past_key_values, cache)
        _check_prompt(inputs, held, kwargs)
        require(start is None or start in get_args(Start), "start", start, f"one of {get_args(Start)}")
        require(
            start is None or self.config.implicit, "start", start, "None for an explicit model, which solves nothing"
        )
        uncached = kwargs.get("use_cache", getattr(generation_config, "use_cache", None)) is False
        if uncached:
            require(start != "previous", "start", start, "'zero' with use_cache=False, which keeps no state")
            require(held is None, "past_key_values", held, "None with use_cache=False")
        asked = (self.generation_config, generation_config, kwargs)
        refuse_options(*asked)
        given = {
            "stop": one_stop(stop),
            "solver": None if solver is None else SOLVERS.make(solver),
            "start": start,
            "mode": None if mode is None else MODES.make(mode),
            CACHE: held,
        }
        policy = self._policy(on_failure)
        given["on_failure"] = None if policy is None else "raise" if policy == "raise" else "ignore"
        record = SolveRecord()
        options = {name: value for name, value in given.items() if value is not None}
        with _home(self.device):
            result: Any = super().generate(inputs, generation_config, record=record, **options, **kwargs)  # type: ignore[misc]
        if not record.steps:
            return result
        if isinstance(result, ModelOutput):
            result["steps"], result["status"] = (torch.stack(t, dim=1) for t in (record.steps, record.status))
        if policy in ("auto", "warn"):
            sequences: Any = result["sequences"] if isinstance(result, ModelOutput) else result
            beams = (option("num_beams", *asked) or 1) > 1
            new = None if beams else sequences[:, -len(record.steps) :]
            how, _ = in_use((self.lm.solve, self.lm.gradient, self.lm.no_grad), given["solver"], given["stop"], None)
            deq = self.config.deq
            modes = (deq.prompt_mode if given["mode"] is None else given["mode"], deq.token_mode)
            record.warn(new, option("eos_token_id", *asked), how, modes)
        return result

    def _policy(self, on_failure: WhenFailed | None) -> WhenFailed | None:
        """Return what to do about solves that do not converge; None for an explicit model."""
        if on_failure is not None:
            check_when_failed(on_failure)
        if self.config.implicit:
            return self.lm.failures.on_failure if on_failure is None else on_failure
        require(on_failure is None, "on_failure", on_failure, "None for an explicit model, which solves nothing")
        return None

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: DecodeCache | None = None,
        cache: DecodeCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        mode: Mode | None = None,
        start: Start | None = None,
        record: SolveRecord | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of the next forward.

        Args:
            input_ids: all tokens so far, or those that follow the cache.
            next_sequence_length: how many of them are new; None leaves it to cache and mask.
            past_key_values: what holds the others.
            cache: another name of it.
            attention_mask: (B, T), of all tokens so far; 0 at padding. None where nothing is.
            inputs_embeds: in place of the tokens in the first iteration.
            is_first_iteration: whether this is the prompt.
            mode: how a prompt is cut; None is the configuration's.
            start: where the solve of a new token starts; None is the configuration's.
            record: what takes down the solve of the forward.
            **kwargs: handed on, but for the positions, which follow from the mask and are looked at once.

        Raises:
            ValueError: no new token, a mask of another length, or padding that is not on the left.
        """
        held = one_cache(past_key_values, cache)
        past = 0 if held is None else held.get_seq_length()
        embed = inputs_embeds is not None and is_first_iteration
        tokens = inputs_embeds if embed else input_ids
        assert tokens is not None
        count = tokens.shape[1] if attention_mask is None or not past else attention_mask.shape[1] - past
        count = count if next_sequence_length is None else next_sequence_length
        if not 1 <= count <= tokens.shape[1]:
            raise ValueError(
                f"the cache holds {past} tokens and {tokens.shape[1]} were given: give all tokens, at least one of "
                "them new, or an attention_mask over the earlier and the new ones"
            )
        if attention_mask is not None and is_first_iteration:
            _check_padding(attention_mask)
        if is_first_iteration and kwargs.get("position_ids") is not None:
            before, new = None if held is None else held.value, tokens[:, -count:]
            positions = kwargs["position_ids"][:, -count:]
            check_positions(positions, None, new, real_tokens(attention_mask, new, before), before)
        given = {name: value for name, value in kwargs.items() if name not in OF_THE_LOOP}
        given |= {"past_key_values": held, "attention_mask": attention_mask, "record": record}
        # the weights of an offloaded model are on the device "meta" between calls
        home = tokens.device if self.device.type == "meta" else self.device
        given["inputs_embeds" if embed else "input_ids"] = tokens[:, -count:].to(home)
        deq = self.config.deq
        if count > 1:
            given["mode"] = deq.prompt_mode if mode is None else mode
            return given
        given["mode"] = deq.token_mode
        if held is not None and (deq.start if start is None else start) == "previous":
            given["start"] = held.state
        return given

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: rows of a solve stop at their own time, and paged attention knows no such cache.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("continuous batching is not supported: call generate with a left-padded batch")

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
    ) -> Tensor:
        """Return the mask of prompts that came without one: a token of padding between real ones is a token."""
        mask = super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)
        return mask | ((mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0))

    def _get_logits_processor(self, *args: Any, **more: Any) -> LogitsProcessorList:
        """Return the processors; one that calls the model solves as this call says, and beside its solves."""
        made = super()._get_logits_processor(*args, **more)  # type: ignore[misc]
        known, call = more.get("model_kwargs") or {}, cast(Any, self)
        options = {name: known[name] for name in ("stop", "solver", "on_failure") if name in known}
        for processor in made:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processor.model = partial(call, record=Beside(known["record"]), **options)
        return made

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        if generation_config.use_cache:
            model_kwargs.setdefault(CACHE, DecodeCache())

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], **more: Any
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **more)
        if outputs.cache is not None:
            model_kwargs[CACHE] = outputs.cache
        model_kwargs["record"].close()
        return model_kwargs


def _home(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which transformers' helper tensors lie on ``device``, where torch's default is elsewhere."""
    default = torch.get_default_device()
    return nullcontext() if default.type in ("cpu", device.type) else torch.device(device)


def _check_prompt(inputs: Tensor | None, held: DecodeCache | None, kwargs: Mapping[str, Any]) -> None:
    ids = kwargs.get("input_ids") if inputs is None else inputs
    mask = kwargs.get("attention_mask")
    if mask is not None:
        require_tensor("attention_mask", mask)
    if ids is None:
        return
    require_tensor("the prompts", ids)
    require(ids.dim() == 2, "the prompts", tuple(ids.shape), "tokens of shape (B, L)")
    least = 0 if kwargs.get("inputs_embeds") is not None else 1
    ok = ids.shape[0] >= 1 and ids.shape[1] >= least
    require(ok, "the prompts", tuple(ids.shape), "of shape (B, L) with at least one row and at least one token")
    if mask is not None and least:
        # transformers drops a mask of ones without a look at its shape
        past = 0 if held is None else held.get_seq_length()
        fitting = sorted({tuple(ids.shape), (ids.shape[0], past + ids.shape[1])})
        require(tuple(mask.shape) in fitting, "attention_mask", tuple(mask.shape), f"of a shape in {fitting}")


def _check_padding(mask: Tensor) -> None:
    real = mask.bool()
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise ValueError("attention_mask must have padding on the left only: tokenizer.padding_side = 'left'")
