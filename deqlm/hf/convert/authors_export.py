"""A model of ours as config.json and tensors of the authors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor

from deqlm.gradients import Implicit, Phantom
from deqlm.hf.config import ImplicitConfig, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.convert.authors_keys import FAMILIES, Keys
from deqlm.hf.convert.authors_names import theirs
from deqlm.hf.convert.authors_options import translate
from deqlm.hf.model import ImplicitForCausalLM
from deqlm.hf.solving import DeqOptions
from deqlm.training import warm_up
from deqlm_solvers import FixedPoint, Stop
from deqlm_solvers.core.checks import require

__all__ = ["export_implicit_llm"]

CLASSES = {"implicit_mamba2": "ImplicitMambaForCausalLM", "implicit_llama3": "ImplicitLlamaForCausalLM"}
WORDS = "for the authors' code, which has no other"


def export_implicit_llm(model: ImplicitForCausalLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a model as the authors' configuration and state_dict, the inverse of `import_implicit_llm`.

    An imported model that was not changed gives back the configuration it came from.

    Args:
        model: of `deqlm.hf`.

    Returns:
        The content of config.json, and detached tensors that share the model's memory.

    Raises:
        ValueError: a model that solves, cuts or counts in a way that their code does not have.

    Examples:
        >>> from deqlm.hf import ImplicitLlamaConfig, ImplicitLlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        >>> deq = {"grad": {"stop": {"max_iter": 24, "rtol": 0.05, "keep": "best_f"}}}
        >>> model = ImplicitLlamaForCausalLM(ImplicitLlamaConfig(vocab_size=11, deq=deq, **sizes))
        >>> config, tensors = export_implicit_llm(model)
        >>> config["backbone_config"]["block_cfg"], tensors["criterion.decoder.weight"].shape
        ({'n_head': 2}, torch.Size([11, 16]))
    """
    made = _config(model.config)
    kept = model.config.imported
    if kept is not None:
        same = translate(Keys(kept)) == translate(Keys(made))
        made = copy.deepcopy(dict(kept)) if same else {**_others(kept, made), **made}
    tensors = {theirs(name): t.detach() for name, t in model.lm.state_dict().items()}
    ends = {name: tensors.pop(name) for name in list(tensors) if not name.startswith("backbone.")}
    return made, tensors | ends


def _others(kept: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in kept.items() if key not in made}


def _config(config: ImplicitConfig) -> dict[str, Any]:
    require(config.labels == "shifted", "labels", config.labels, f"'shifted' {WORDS}")
    mamba = isinstance(config, ImplicitMamba2Config)
    ok = mamba or isinstance(config, ImplicitLlamaConfig)
    require(ok, "the configuration", type(config).__name__, f"that of an implicit Mamba2 or Llama {WORDS}")
    kind = next(name for name, family in FAMILIES.items() if family == ("mamba2" if mamba else "llama"))
    backbone = {
        "block_type": "mamba2" if mamba else "transformer",
        "block_cfg": _mamba2(config) if mamba else _llama(config),
        **{"d_model": config.hidden_size, "n_layer": config.num_hidden_layers},
        "d_inner": _d_inner(config),
        **{"pre_norm": True, "rms_norm": True, "dropout": config.hidden_dropout},
    }
    if backbone["d_inner"]:
        backbone["mlp_type"] = "llama_mlp"
    if getattr(config, "rms_norm_eps", 1e-5) != 1e-5:
        backbone["norm_epsilon"] = config.rms_norm_eps
    normed = config.implicit if config.weight_norm is None else config.weight_norm
    require(config.implicit or not normed, "weight_norm", normed, f"False with implicit=False {WORDS}")
    deq: dict[str, Any] = {}
    if config.implicit:
        if not normed:
            backbone["do_weight_norm"] = False
        deq = _deq_params(config.deq)
        backbone |= _pretraining(config.deq)
    tokens = {"n_tokens": config.vocab_size} if mamba else {}
    padded = config.pad_vocab > 1
    return {
        **{"architectures": [CLASSES[kind]], "model_type": kind, "transformers_version": transformers.__version__},
        **{"backbone_type": "implicit" if config.implicit else "explicit", "vocab_size": config.vocab_size},
        **{**tokens, "d_embed": config.hidden_size, "dropout": config.embedding_dropout},
        **{"head_bias": config.head_bias, "tie_embeddings": config.tie_word_embeddings},
        **{"pad_vocab": padded, "pad_vocab_size_multiple": config.pad_vocab if padded else 8},
        **{"backbone_config": backbone, "deq_params": deq},
    }


def _mamba2(config: Any) -> dict[str, Any]:
    sizes = {"d_state": config.state_size, "expand": config.expand, "headdim": config.head_dim}
    rare = {"d_conv": (config.conv_kernel, 4), "ngroups": (config.n_groups, 1)}
    return sizes | {name: value for name, (value, default) in rare.items() if value != default}


def _llama(config: Any) -> dict[str, Any]:
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    require(pairs in (None, heads), "num_key_value_heads", pairs, f"num_attention_heads, {heads}, {WORDS}")
    require(config.sliding_window is None, "sliding_window", config.sliding_window, f"None {WORDS}")
    rare = {} if config.rope_theta == 5e5 else {"rope_theta": config.rope_theta}
    return {"n_head": heads, **rare}


def _d_inner(config: Any) -> int:
    """Return the d_inner whose int(2 d_inner / 3) is our width, 4 d_model if it is one; 0 without MLPs."""
    if config.intermediate_size is None:
        return 0
    wanted = config.intermediate_size
    usual = 4 * config.hidden_size
    return usual if int(2 * usual / 3) == wanted else math.ceil(1.5 * wanted)


def _deq_params(deq: DeqOptions) -> dict[str, Any]:
    stop, rest, solver = deq.grad.stop, deq.no_grad.stop, deq.no_grad.solver
    want = Stop(max_iter=stop.max_iter, rtol=stop.rtol, keep="best_f")
    require(deq.grad.solver == FixedPoint(), "deq.grad.solver", deq.grad.solver, f"FixedPoint() {WORDS}")
    require(stop == want, "deq.grad.stop", stop, f"of max_iter and rtol alone, with keep='best_f', {WORDS}")
    want = Stop(max_iter=rest.max_iter, rtol=stop.rtol, per="token")
    require(rest == want, "deq.no_grad.stop", rest, f"of max_iter alone, with per='token' and grad's rtol, {WORDS}")
    tau = solver.damping if isinstance(solver, FixedPoint) else None
    require(tau is not None and solver == FixedPoint(damping=tau), "deq.no_grad.solver", solver, f"FixedPoint {WORDS}")
    training, backward = _gradient(deq.grad.gradient, tau)
    usual = rest.max_iter == 4 * stop.max_iter
    solving = {
        **{"f_solver": "fixed_point_iter", "f_max_iter": stop.max_iter, "f_tol": stop.rtol, "f_stop_mode": "rel"},
        **{"b_solver": "fixed_point_iter", **backward, "b_stop_mode": "rel"},
        **{"eval_factor": 4.0 if usual else 0.0, "eval_f_max_iter": 0 if usual else rest.max_iter},
    }
    one = {"core": "sliced", "n_states": 1, "indexing": [], "sup_gap": -1, "sup_loc": []}
    norm = {"norm_type": "weight_norm", "norm_no_scale": False, "norm_clip": False}
    penalty = {"jac_loss_weight": 0, "jac_loss_freq": 0}
    return {"solver": solving, "norm": norm, "training": {**one, **training, "tau": tau}, "regularization": penalty}


def _gradient(gradient: Any, tau: float | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what their sections "training" and "solver" say of a gradient."""
    if isinstance(gradient, Implicit):
        how = gradient.backward()
        want = Stop(max_iter=how.stop.max_iter, rtol=how.stop.rtol)
        same = how.solver == FixedPoint() and how.stop == want and gradient == Implicit(solve=how)
        require(same, "deq.grad.gradient", gradient, f"solved by FixedPoint() to a relative tolerance {WORDS}")
        return {"ift": True, "hook_ift": False, "grad": 1}, {"b_max_iter": want.max_iter, "b_tol": want.rtol}
    same = isinstance(gradient, Phantom) and gradient.damping == tau
    require(same, "deq.grad.gradient", gradient, f"Phantom(..., {tau}), the damping without grad, {WORDS}")
    return {"ift": False, "hook_ift": False, "grad": gradient.steps}, {"b_max_iter": 32, "b_tol": 1e-3}


def _pretraining(deq: DeqOptions) -> dict[str, int]:
    if deq.phases is None:
        return {"pretrain_iter": 4, "pretrain_steps": 0}
    plan = deq.phases.phases
    rule = f"one warm_up and then what deq.grad says {WORDS}"
    require(len(plan) == 2 and plan[0].steps is not None, "deq.phases", deq.phases, rule)
    first, then = plan
    same = (then.steps, then.solver, then.stop, then.gradient)
    require(same == (None, deq.grad.solver, deq.grad.stop, deq.grad.gradient), "deq.phases", deq.phases, rule)
    steps, count = first.steps, first.stop.max_iter
    tau = deq.no_grad.solver.damping  # type: ignore[attr-defined]
    require(first == warm_up(steps, iterations=count, damping=tau), "deq.phases", deq.phases, rule)
    return {"pretrain_iter": count, "pretrain_steps": steps or 0}
