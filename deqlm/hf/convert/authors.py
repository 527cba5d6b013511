"""Bringing in the models of the authors of "Implicit language models are RNNs"."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqlm.gradients import Implicit
from deqlm.hf.checkpoints import FLOATS, Source, common_dtype, fill, read_config, read_tensors
from deqlm.hf.config import ImplicitConfig, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.convert.authors_keys import Keys
from deqlm.hf.convert.authors_names import EMBEDDING, HEAD, theirs
from deqlm.hf.convert.authors_options import Translated, translate
from deqlm.hf.convert.authors_report import ImportReport
from deqlm.hf.model import ImplicitForCausalLM, ImplicitLlamaForCausalLM, ImplicitMamba2ForCausalLM
from deqlm_solvers.core.checks import require

__all__ = ["import_implicit_llm"]


def import_implicit_llm(config: Source, state_dict: Source | None = None) -> tuple[ImplicitForCausalLM, ImportReport]:
    """Return a model of ours from the authors' files, and a report that accounts for every key.

    Given their weights and tokens, a training forward is theirs: logits and loss, the rule by which a solve stops and
    chooses its iterate, the phantom steps, the unrolled warm-up. Their options f_* become ``deq.grad``, tau and eval_*
    ``deq.no_grad``, pretrain_* the first of ``deq.phases``.

    Args:
        config: the content of their config.json, a path to it, or a folder with it and the weights.
        state_dict: tensors by their names, or a file or folder of them; safetensors, or files that ``torch.load`` reads
            with ``weights_only=True``. None takes the weights of a folder ``config``, or else initial ones. An
            embedding table may have rows of padding or not.

    Returns:
        The model, in the dtype of the tensors, and an `ImportReport`, whose ``str`` reads well.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that is missing, breaks its rule or asks for something that has no equal here; tensors that
            are missing, unexpected or of another shape, which are named; a file that is damaged or pickled.
        TypeError: a key of ``backbone_config`` that their code refuses.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML, and the code that its authors published.

    Examples:
        >>> from deqlm.hf import export_implicit_llm
        >>> grad = {"stop": {"max_iter": 24, "rtol": 0.05, "keep": "best_f"}}
        >>> config = ImplicitLlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, deq={"grad": grad})
        >>> theirs, tensors = export_implicit_llm(ImplicitLlamaForCausalLM(config))
        >>> model, report = import_implicit_llm(theirs, tensors)
        >>> report.used["backbone_config.d_model"], report.no_effect["deq_params.training.core"]
        ('hidden_size', 'with one state and no indexing both cores do the same')
    """
    given = read_config(config)
    tensors = _tensors(config, state_dict)
    keys = Keys(given)
    said = translate(keys)
    stored, no_effect = keys.rest(implicit=said.deq is not None, weights=tensors is not None)
    unpadded = tensors is not None and len(tensors.get(EMBEDDING, ())) == said.tokens != said.rows
    if unpadded:
        said = said._replace(multiple=1)
    notes = _notes(said, tensors)
    if unpadded:
        notes.append(f"the embedding table has {said.tokens} rows, without the padding that pad_vocab asks for")
    model: Any = _model(said, given)
    weights = "none given, initial values"
    if tensors is not None:
        model.to(common_dtype(tensors.values()))
        _load(model, tensors, said)
        weights = f"{len(tensors)} tensors, {str(model.dtype).removeprefix('torch.')}"
    report = ImportReport(said.family, said.deq is not None, weights, keys.used, no_effect, stored, tuple(notes))
    return model, report


def _tensors(config: Source, state_dict: Source | None) -> dict[str, Tensor] | None:
    if state_dict is not None:
        tensors = read_tensors(state_dict)
        require(tensors is not None, "state_dict", state_dict, "a folder that holds weights")
        return tensors
    # a path to config.json alone means the configuration alone
    alone = isinstance(config, Mapping) or Path(config).is_file()
    return None if alone else read_tensors(config)


def _model(said: Translated, given: Mapping[str, Any]) -> ImplicitForCausalLM:
    mamba = said.family == "mamba2"
    made: dict[str, Any] = {
        **{"vocab_size": said.tokens, "pad_vocab": said.multiple, "implicit": said.deq is not None},
        **{"weight_norm": None if said.weight_norm == (said.deq is not None) else said.weight_norm},
        **{"hidden_dropout": said.backbone_dropout, "embedding_dropout": said.dropout},
        **{"tie_word_embeddings": said.tie, "head_bias": said.head_bias},
        **{"labels": "shifted", "deq": said.deq, "imported": copy.deepcopy(dict(given))},
        **said.sizes,
    }
    config: ImplicitConfig = ImplicitMamba2Config(**made) if mamba else ImplicitLlamaConfig(**made)
    return ImplicitMamba2ForCausalLM(config) if mamba else ImplicitLlamaForCausalLM(config)


def _load(model: ImplicitForCausalLM, tensors: Mapping[str, Tensor], said: Translated) -> None:
    tensors = dict(tensors)
    if said.tie and EMBEDDING in tensors:
        head = tensors.setdefault(HEAD, tensors[EMBEDDING])
        same = head is tensors[EMBEDDING] or torch.equal(head, tensors[EMBEDDING])
        require(same, HEAD, "other numbers", f"equal to {EMBEDDING}, because tie_embeddings is true")
    kind = "explicit" if said.deq is None else "implicit"
    fill(model.lm, tensors, theirs, f"an {kind} {said.family} of this configuration")


def _notes(said: Translated, tensors: Mapping[str, Tensor] | None) -> list[str]:
    notes = []
    if said.deq is not None:
        notes.append(
            "their evaluation ends by one norm over the whole batch, relative to the old iterate; here every token of "
            "every row is tested, relative to the new one, so numbers of evaluations differ and answers within rtol"
        )
        if said.deq.phases is not None:
            notes.append("they count forwards of the warm-up; deq.phases counts optimizer steps")
        if isinstance(said.deq.grad.gradient, Implicit):
            notes.append("the backward solve of ift ends per row, theirs when all rows pass")
    if said.rows != said.tokens:
        notes.append(f"the loss is over all {said.rows} logits; with labels their code fails on a padded vocabulary")
    if said.family == "llama" and said.backbone_dropout:
        notes.append("dropout masks are fixed within a solve; theirs change, and attention probabilities drop out too")
    if tensors is None and said.weight_norm:
        notes.append("initial output projections are scaled by depth; under weight normalisation theirs are not")
    broken = [name for name, t in (tensors or {}).items() if t.dtype in FLOATS and not t.isfinite().all()]
    if broken:
        notes.append(f"these tensors hold numbers that are not finite: {', '.join(broken)}")
    return notes
