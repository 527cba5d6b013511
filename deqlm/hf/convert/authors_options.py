"""The authors' config.json as options of ours."""

from __future__ import annotations

from typing import Any, NamedTuple

from deqlm.gradients import Gradient, Implicit, Phantom
from deqlm.hf.convert.authors_keys import FAMILIES, Keys
from deqlm.hf.solving import DeqOptions, Grad, NoGrad
from deqlm.training import Phase, Phases, warm_up
from deqlm_solvers import FixedPoint, Solve, Stop
from deqlm_solvers.core.checks import require, suggest, whole

__all__ = ["Translated", "translate"]

SOLVER = "deq_params.solver"
TRAINING = "deq_params.training"
NORM = "deq_params.norm"
BACKBONE = "backbone_config"
MIXER = "backbone_config.block_cfg"

OURS = "this is the only one that has an equal here"
OF_FAMILY = {"mamba2": "mamba2", "llama": "transformer"}


def _in_unit(value: float) -> bool:
    return 0 < value <= 1


class Translated(NamedTuple):
    """What a configuration of the authors says, in our words.

    Attributes:
        family: "mamba2" or "llama".
        sizes: of blocks, by the keys of our configurations.
        tokens: of the vocabulary.
        multiple: the embedding table has the next multiple of this many rows.
        tie: whether the head is the embedding table.
        head_bias: whether it has a bias.
        dropout: of the embeddings.
        backbone_dropout: of mixers and MLPs.
        weight_norm: whether weights are normalised.
        deq: how an implicit model is solved; None for an explicit one.
    """

    family: str
    sizes: dict[str, Any]
    tokens: int
    multiple: int
    tie: bool
    head_bias: bool
    dropout: float
    backbone_dropout: float
    weight_norm: bool
    deq: DeqOptions | None

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return -(-self.tokens // self.multiple) * self.multiple


def translate(keys: Keys) -> Translated:
    """Take from ``keys`` everything that has an effect.

    Raises:
        ValueError: a key that is missing or breaks its rule, or an option that has no equal here.
    """
    kind = keys.take("model_type", becomes="the class of the model")
    require(kind in FAMILIES, "model_type", kind, f"one of the authors', {suggest(str(kind), FAMILIES)}")
    family = FAMILIES[kind]
    backbone = keys.take("backbone_type", "implicit", becomes="implicit or explicit")
    require(isinstance(backbone, str), "backbone_type", backbone, "'implicit' or 'explicit'")
    # as there: every other word selects the implicit one
    implicit = "explicit" not in backbone
    keys.only(f"{BACKBONE}.block_type", [OF_FAMILY[family]], "mamba2", because=f"model_type is {kind!r}")
    keys.only(f"{BACKBONE}.pre_norm", [True], because=OURS)
    keys.only(f"{BACKBONE}.rms_norm", [True], True, because="LayerNorm has no equal here")
    width = keys.whole(f"{BACKBONE}.d_model", becomes="hidden_size")
    layers = keys.whole(f"{BACKBONE}.n_layer", becomes="num_hidden_layers")
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers}
    keys.only("d_embed", [width], width, because="embeddings of another width than the model's have no equal here")
    sizes |= _mamba2(keys, width) if family == "mamba2" else _llama(keys)
    sizes["intermediate_size"] = _hidden(keys, family)
    tokens, multiple = _vocabulary(keys, family)
    normed = implicit and keys.flag(f"{BACKBONE}.do_weight_norm", True, becomes="weight_norm")
    keys.ignore(f"{BACKBONE}.do_weight_norm", because="the weights of an explicit backbone are never normalised")
    return Translated(
        family=family,
        sizes=sizes,
        tokens=tokens,
        multiple=multiple,
        tie=keys.flag("tie_embeddings", True, becomes="tie_word_embeddings"),
        head_bias=keys.flag("head_bias", False, becomes="a bias of the head"),
        dropout=_probability(keys, "dropout", 0.05, "dropout of the embeddings"),
        backbone_dropout=_probability(keys, f"{BACKBONE}.dropout", 0.0, "dropout of mixers and MLPs"),
        weight_norm=normed,
        deq=_solving(keys, normed) if implicit else None,
    )


def _probability(keys: Keys, name: str, default: float, becomes: str) -> float:
    return keys.number(name, "in [0, 1)", lambda p: 0 <= p < 1, default, becomes=becomes)


def _vocabulary(keys: Keys, family: str) -> tuple[int, int]:
    if family == "mamba2":
        tokens = keys.whole("n_tokens", 50277, becomes="vocab_size")
        keys.ignore("vocab_size", because="n_tokens overwrites it")
    else:
        tokens = keys.whole("vocab_size", 50277, becomes="vocab_size")
    padded = keys.flag("pad_vocab", False, becomes="pad_vocab")
    if not padded:
        keys.ignore("pad_vocab_size_multiple", because="pad_vocab is false")
        return tokens, 1
    return tokens, keys.whole("pad_vocab_size_multiple", 8, becomes="pad_vocab")


def _hidden(keys: Keys, family: str) -> int | None:
    least = 2 if family == "llama" else 0
    inner = keys.whole(f"{BACKBONE}.d_inner", least=least, becomes="intermediate_size, two thirds of it")
    if not inner:
        keys.ignore(f"{BACKBONE}.mlp_type", because="without d_inner there is no MLP")
        return None
    keys.only(f"{BACKBONE}.mlp_type", ["llama_mlp"], "gated_mlp", because=OURS)
    return int(2 * inner / 3)


def _mamba2(keys: Keys, width: int) -> dict[str, Any]:
    keys.only(f"{BACKBONE}.norm_epsilon", [1e-5], 1e-5, because=OURS)
    for name, value in {"rmsnorm": True, "norm_before_gate": False, "bias": False, "conv_bias": True}.items():
        keys.only(f"{MIXER}.{name}", [value], value, because=OURS)
    keys.only(f"{MIXER}.D_has_hdim", [False], False, because=OURS)
    keys.only(f"{MIXER}.dt_limit", [(0.0, "inf"), (0.0, float("inf"))], (0.0, float("inf")), because=OURS)
    sizes = {
        "state_size": keys.whole(f"{MIXER}.d_state", 128, becomes="state_size"),
        "expand": keys.whole(f"{MIXER}.expand", 2, becomes="expand"),
        "head_dim": keys.whole(f"{MIXER}.headdim", 64, becomes="head_dim"),
        "conv_kernel": keys.whole(f"{MIXER}.d_conv", 4, becomes="conv_kernel"),
        "n_groups": keys.whole(f"{MIXER}.ngroups", 1, becomes="n_groups"),
    }
    inner = sizes["expand"] * width
    keys.only(f"{MIXER}.d_ssm", [None, inner], None, because="features beside the SSM have no equal here")
    return sizes


def _llama(keys: Keys) -> dict[str, Any]:
    keys.only(f"{MIXER}.bias", [False], False, because=OURS)
    keys.only(f"{MIXER}.apply_rotary", [True], True, because=OURS)
    eps = keys.number(f"{BACKBONE}.norm_epsilon", "> 0", lambda e: e > 0, 1e-5, becomes="rms_norm_eps")
    return {
        "rms_norm_eps": eps,
        "num_attention_heads": keys.whole(f"{MIXER}.n_head", becomes="num_attention_heads"),
        "rope_theta": keys.number(f"{MIXER}.rope_theta", "> 0", lambda t: t > 0, 5e5, becomes="rope_theta"),
    }


def _solving(keys: Keys, normed: bool) -> DeqOptions:
    _norm(keys, normed)
    keys.only(f"{SOLVER}.f_solver", ["fixed_point_iter"], because=OURS)
    keys.only(f"{SOLVER}.f_stop_mode", ["rel"], because=OURS)
    keys.only(f"{BACKBONE}.ema_alpha", [None], None, because="averages of iterates have no equal here")
    keys.only(f"{BACKBONE}.init_z_mode", [None, "zero", "zeros"], None, because="solves start at zero here")
    most = keys.whole(f"{SOLVER}.f_max_iter", becomes="deq.grad.stop.max_iter")
    tolerance = keys.number(
        f"{SOLVER}.f_tol", "> 0", lambda t: t > 0, becomes="rtol of deq.grad.stop and of deq.no_grad.stop"
    )
    tau = keys.number(
        f"{TRAINING}.tau", "in (0, 1]", _in_unit, 1.0, becomes="damping of the gradient and of deq.no_grad.solver"
    )
    evaluations = _evaluations(keys, most)
    gradient = _gradient(keys, tau)
    grad = Grad(solver=FixedPoint(), stop=Stop(max_iter=most, rtol=tolerance, keep="best_f"), gradient=gradient)
    no_grad = NoGrad(solver=FixedPoint(damping=tau), stop=Stop(max_iter=evaluations, rtol=tolerance, per="token"))
    return DeqOptions(grad=grad, no_grad=no_grad, phases=_phases(keys, grad, tau))


def _evaluations(keys: Keys, most: int) -> int:
    name = "deq.no_grad.stop.max_iter"
    fixed = keys.take(f"{SOLVER}.eval_f_max_iter")
    whole(f"{SOLVER}.eval_f_max_iter", fixed, 0)
    if fixed:
        keys.used[f"{SOLVER}.eval_f_max_iter"] = name
        keys.ignore(f"{SOLVER}.eval_factor", because="eval_f_max_iter is given")
    else:
        keys.inert[f"{SOLVER}.eval_f_max_iter"] = "it is 0, which leaves it to eval_factor"
        factor = keys.number(f"{SOLVER}.eval_factor", ">= 0", lambda f: f >= 0, becomes=f"{name}, times f_max_iter")
        fixed = int(most * factor)
    require(fixed >= 2, f"{SOLVER}.eval_f_max_iter, or f_max_iter * eval_factor", fixed, "two evaluations or more")
    return fixed


def _norm(keys: Keys, normed: bool) -> None:
    rule = [None, "none", "weight_norm"] if not normed else ["weight_norm"]
    keys.only(f"{NORM}.norm_type", rule, "weight_norm", because=OURS)
    for name in ("norm_no_scale", "norm_clip"):
        keys.only(f"{NORM}.{name}", [False], False, because=OURS)


def _gradient(keys: Keys, tau: float) -> Gradient:
    keys.only(f"{TRAINING}.n_states", [1], 1, because="losses at several points of one solve have no equal here")
    keys.only(f"{TRAINING}.indexing", [()], (), because="losses at several points of one solve have no equal here")
    keys.only(f"{TRAINING}.sup_gap", [-1], -1, because="losses within the phantom steps have no equal here")
    keys.only(f"{TRAINING}.sup_loc", [()], (), because="losses within the phantom steps have no equal here")
    implicit = [keys.flag(f"{TRAINING}.{name}", False, becomes="the gradient") for name in ("ift", "hook_ift")]
    if not any(implicit):
        backward = [f"{SOLVER}.b_solver", f"{SOLVER}.b_max_iter", f"{SOLVER}.b_tol", f"{SOLVER}.b_stop_mode"]
        keys.ignore(*backward, because="only ift and hook_ift solve backward")
        return Phantom(keys.whole(f"{TRAINING}.grad", 1, becomes="steps of the phantom gradient"), tau)
    keys.ignore(f"{TRAINING}.grad", because="ift takes the place of the phantom steps")
    keys.only(f"{SOLVER}.b_solver", ["fixed_point_iter"], because=OURS)
    keys.only(f"{SOLVER}.b_stop_mode", ["rel"], because=OURS)
    most = keys.whole(f"{SOLVER}.b_max_iter", becomes="max_iter of the implicit gradient's solve")
    tolerance = keys.number(f"{SOLVER}.b_tol", "> 0", lambda t: t > 0, becomes="rtol of the implicit gradient's solve")
    return Implicit(solve=Solve(FixedPoint(), Stop(max_iter=most, rtol=tolerance)))


def _phases(keys: Keys, grad: Grad, tau: float) -> Phases | None:
    steps = keys.whole(f"{BACKBONE}.pretrain_steps", 0, least=0, becomes="steps of the first of deq.phases")
    if not steps:
        keys.ignore(f"{BACKBONE}.pretrain_iter", because="pretrain_steps is 0")
        return None
    iterations = keys.whole(f"{BACKBONE}.pretrain_iter", 4, least=0, becomes="iterations of the first of deq.phases")
    # their loop evaluates once even for 0 iterations
    first = warm_up(steps, iterations=max(iterations, 1), damping=tau)
    return Phases((first, Phase(solver=grad.solver, stop=grad.stop, gradient=grad.gradient)))
