"""Every key of the authors' config.json is used, or named as without effect, or refused; and the way back."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import deqlm
from deqlm import FixedPoint, Phantom, Stop
from deqlm.hf import (
    DeqOptions,
    ImplicitLlamaConfig,
    ImplicitLlamaForCausalLM,
    ImplicitMamba2Config,
    ImplicitMamba2ForCausalLM,
    export_implicit_llm,
    import_implicit_llm,
)
from deqlm.hf.convert.authors_keys import SECTIONS
from deqlm.models import preset
from deqlm.training import free, warm_up
from hf.authors_reference import TOKENS, config, rows, state

FAMILIES = ("mamba2", "llama")
KINDS = ("implicit", "explicit")
TINY = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 1}
THEIRS = {"grad": {"stop": {"max_iter": 24, "rtol": 0.05, "keep": "best_f"}}}


def names(given, prefix=""):
    for key, value in given.items():
        name = f"{prefix}{key}"
        if name in SECTIONS:
            yield from names(value, f"{name}.")
        else:
            yield name


def changed(given, name, value):
    """Return a copy in which the key of this dotted name has this value; None deletes it."""
    given = copy.deepcopy(given)
    *path, last = name.split(".")
    section = given
    for part in path:
        section = section[part]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return given


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_accounted_for_once(family, kind):
    given = config(family, kind)
    before = copy.deepcopy(given)
    model, report = import_implicit_llm(given)
    assert given == before
    assert sorted([*report.used, *report.no_effect]) == sorted(names(given))
    assert (report.family, report.implicit) == (family, kind == "implicit") == (family, model.config.implicit)
    assert report.stored["tokenizer"] == "EleutherAI/gpt-neox-20b"
    for name in names(given):
        assert f"\n  {name}: " in str(report)
    if kind == "implicit":
        for name in ("norm.norm_clip_val", "training.gamma", "regularization.jac_incremental"):
            assert f"deq_params.{name}" in report.no_effect


@pytest.mark.parametrize(
    ("family", "phase", "name"),
    [
        ("mamba2", "4+1", "mamba2-130m-pretrain"),
        ("mamba2", "24+4", "mamba2-1.3b-implicit"),
        ("llama", "4+1", "llama3-370m-pretrain"),
        ("llama", "24+4", "llama3-370m-implicit"),
        ("llama", "32+4", "llama3-1.3b-implicit"),
    ],
)
def test_their_phases_are_our_presets(family, phase, name):
    model, _ = import_implicit_llm(config(family, phase=phase))
    assert model.config.deq == DeqOptions.of_preset(preset(name))


def test_options_of_solves():
    given = config("mamba2")
    solver, training = given["deq_params"]["solver"], given["deq_params"]["training"]
    solver |= {"f_max_iter": 32, "f_tol": 0.01, "eval_factor": 0.0, "eval_f_max_iter": 2048}
    training |= {"tau": 0.5, "grad": 6}
    given["backbone_config"] |= {"pretrain_steps": 4005, "dropout": 0.1}
    given["dropout"] = 0.2
    model, report = import_implicit_llm(given)
    assert (model.config.hidden_dropout, model.config.embedding_dropout) == (0.1, 0.2)
    assert model.solve.stop == Stop(max_iter=32, rtol=0.01, keep="best_f")
    assert model.solve.solver == FixedPoint()
    assert model.gradient == Phantom(6, 0.5)
    assert model.no_grad.solver == FixedPoint(damping=0.5)
    assert model.no_grad.stop == Stop(max_iter=2048, rtol=0.01, per="token")
    first, then = model.config.deq.phases.phases
    assert first == warm_up(4005, iterations=4, damping=0.5)
    assert then == free(max_iter=32, phantom=6, damping=0.5, rtol=0.01)
    assert report.no_effect["deq_params.solver.eval_factor"] == "eval_f_max_iter is given"
    assert any("optimizer steps" in note for note in report.notes)


def test_the_implicit_gradient_has_their_backward_solve():
    given = config("llama")
    given["deq_params"]["training"]["ift"] = True
    model, report = import_implicit_llm(given)
    assert model.gradient == deqlm.Implicit(solve=deqlm.Solve(FixedPoint(), Stop(max_iter=32, rtol=1e-3)))
    assert "deq_params.training.grad" in report.no_effect


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", "mamba2", "model_type must be one of the authors'"),
        ("model_type", None, "none for 'model_type'"),
        ("d_embed", 8, "d_embed must be 16"),
        ("tie_embeddings", "yes", "tie_embeddings must be true or false"),
        ("dropout", 1.5, "dropout must be in"),
        ("backbone_config.d_model", None, r"none for 'backbone_config\.d_model'"),
        ("backbone_config.d_model", 0, r"backbone_config\.d_model must be a whole number"),
        ("backbone_config.block_type", "mamba2", r"block_type must be 'transformer' \(model_type is"),
        ("backbone_config.pre_norm", False, "pre_norm must be True"),
        ("backbone_config.rms_norm", False, "LayerNorm has no equal here"),
        ("backbone_config.mlp_type", "gated_mlp", "mlp_type must be 'llama_mlp'"),
        ("backbone_config.mlp_type", None, "mlp_type must be 'llama_mlp'"),
        ("backbone_config.ema_alpha", 0.1, "averages of iterates"),
        ("backbone_config.init_z_mode", "input", "solves start at zero"),
        ("backbone_config.block_cfg.bias", True, "bias must be False"),
        ("backbone_config.block_cfg.n_head", 3, "num_attention_heads"),
        ("deq_params.solver.f_solver", "anderson", "f_solver must be 'fixed_point_iter'"),
        ("deq_params.solver.f_stop_mode", "abs", "f_stop_mode must be 'rel'"),
        ("deq_params.solver.f_tol", 0.0, "f_tol must be > 0"),
        ("deq_params.solver.eval_factor", 0.0, "two evaluations or more"),
        ("deq_params.solver.eval_factor", None, "none for 'deq_params.solver.eval_factor'"),
        ("deq_params.norm.norm_type", "spectral_norm", "norm_type must be 'weight_norm'"),
        ("deq_params.norm.norm_clip", True, "norm_clip must be False"),
        ("deq_params.norm.norm_no_scale", True, "norm_no_scale must be False"),
        ("deq_params.training.n_states", 3, "several points of one solve"),
        ("deq_params.training.indexing", [4], "several points of one solve"),
        ("deq_params.training.sup_loc", [1], "within the phantom steps"),
        ("deq_params.training.tau", 1.2, "tau must be in"),
        ("backbone_config", 3, "backbone_config must be a mapping"),
        ("backbone_config.d_modle", 16, "refuses the key 'd_modle': did you mean 'd_model'"),
    ],
)
def test_what_has_no_equal_here_is_refused(name, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        import_implicit_llm(changed(config("llama"), name, value))


@pytest.mark.parametrize("name", ["rmsnorm", "conv_bias", "norm_before_gate", "D_has_hdim"])
def test_mamba2_options_without_an_equal_are_refused(name):
    usual = name in ("rmsnorm", "conv_bias")
    import_implicit_llm(changed(config("mamba2"), f"backbone_config.block_cfg.{name}", usual))
    with pytest.raises(ValueError, match=f"{name} must be {usual}"):
        import_implicit_llm(changed(config("mamba2"), f"backbone_config.block_cfg.{name}", not usual))
    with pytest.raises(ValueError, match="dt_limit must be"):
        import_implicit_llm(changed(config("mamba2"), "backbone_config.block_cfg.dt_limit", [0.0, 0.1]))
    import_implicit_llm(changed(config("mamba2"), "backbone_config.block_cfg.dt_limit", [0.0, math.inf]))


def test_unknown_keys_are_reported_as_their_code_treats_them():
    given = config("mamba2", wandb="on")
    given["backbone_config"]["block_cfg"]["d_sate"] = 5
    given["deq_params"]["solver"]["f_max_itr"] = 3
    _, report = import_implicit_llm(given)
    assert "nothing reads this one" in report.no_effect["wandb"]
    assert "do not know this one" in report.no_effect["backbone_config.block_cfg.d_sate"]
    assert "ignores it" in report.no_effect["deq_params.solver.f_max_itr"]


def test_options_of_initial_values_need_weights():
    given = changed(config("mamba2"), "backbone_config.block_cfg.dt_min", 0.01)
    with pytest.raises(ValueError, match="absent where no weights are given"):
        import_implicit_llm(given)
    _, report = import_implicit_llm(given, state(given))
    assert "initial weights only" in report.no_effect["backbone_config.block_cfg.dt_min"]


def variants():
    for family in FAMILIES:
        for kind in KINDS:
            yield f"{family}-{kind}", config(family, kind)
        yield f"{family}-untied", config(family, tie_embeddings=False, pad_vocab=False)
        yield f"{family}-plain", changed(config(family), "backbone_config.do_weight_norm", False)
        yield f"{family}-warm-up", changed(config(family), "backbone_config.pretrain_steps", 12)
        yield f"{family}-ift", changed(config(family), "deq_params.training.ift", True)
        yield f"{family}-evaluations", changed(config(family), "deq_params.solver.eval_f_max_iter", 7)
    yield "llama-padded", config("llama", pad_vocab=True)
    yield (
        "mamba2-mlp",
        changed(changed(config("mamba2"), "backbone_config.d_inner", 32), "backbone_config.mlp_type", "llama_mlp"),
    )
    yield "mamba2-sizes", changed(config("mamba2"), "backbone_config.block_cfg.ngroups", 2)


def tensors_of(given):
    """Return tensors of a configuration, made by a model of ours where the reference has no such option."""
    model, _ = import_implicit_llm(given)
    return export_implicit_llm(model)[1]


@pytest.mark.parametrize(("name", "given"), list(variants()), ids=lambda v: v if isinstance(v, str) else "")
def test_export_gives_back_what_was_imported(name, given):
    tensors = tensors_of(given)
    model, _ = import_implicit_llm(given, tensors)
    config_back, tensors_back = export_implicit_llm(model)
    assert config_back == given
    assert list(tensors_back) == list(tensors)
    assert all(torch.equal(tensors_back[name], tensors[name]) for name in tensors)
    # without the configuration that it came from, the used keys come back
    model.config.imported = None
    plain, _ = export_implicit_llm(model)
    again, report = import_implicit_llm(plain, tensors_back)
    assert again.config.deq == model.config.deq
    used = {key for key in report.used if key in set(names(given))}
    flat = {key: value for key, value in leaves(given) if key in used}
    assert {key: value for key, value in leaves(plain) if key in flat} == flat


def leaves(given, prefix=""):
    for key, value in given.items():
        if f"{prefix}{key}" in SECTIONS:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_and_their_order_are_those_of_their_files(family, kind):
    given = config(family, kind)
    made = state(given)
    exported = tensors_of(given)
    assert list(exported) == list(made)
    assert {n: t.shape for n, t in exported.items()} == {n: t.shape for n, t in made.items()}
    assert exported["criterion.decoder.weight"].data_ptr() == exported["word_emb.emb.weight"].data_ptr()


@pytest.mark.parametrize(
    "model",
    [
        lambda: ImplicitMamba2ForCausalLM(ImplicitMamba2Config(**TINY, state_size=4, deq=THEIRS)),
        lambda: ImplicitLlamaForCausalLM(
            ImplicitLlamaConfig(**TINY, rms_norm_eps=1e-6, pad_vocab=8, head_bias=True, deq=THEIRS)
        ),
        lambda: ImplicitLlamaForCausalLM(ImplicitLlamaConfig(**TINY, implicit=False)),
    ],
    ids=["mamba2", "llama", "explicit"],
)
def test_import_of_an_export_is_the_same_model(model):
    model = model()
    again, _ = import_implicit_llm(*export_implicit_llm(model))
    again.config.imported = None
    ours, back = model.config.to_dict(), again.config.to_dict()
    assert {k: v for k, v in back.items() if k != "dtype"} == {k: v for k, v in ours.items() if k != "dtype"}
    state, copied = model.state_dict(), again.state_dict()
    assert list(state) == list(copied)
    assert all(torch.equal(state[name], copied[name]) for name in state)


def test_the_configuration_survives_saving(tmp_path):
    given = config("llama")
    model, _ = import_implicit_llm(given, state(given))
    model.save_pretrained(tmp_path)
    again = ImplicitLlamaForCausalLM.from_pretrained(tmp_path)
    assert export_implicit_llm(again)[0] == given
    ids = torch.randint(TOKENS, (2, 5))
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_changed_model_exports_the_change():
    given = config("mamba2")
    model, _ = import_implicit_llm(given, state(given))
    model.set_deq(model.config.deq.replace(grad=model.config.deq.grad.replace(gradient=Phantom(2, 0.8))))
    made, _ = export_implicit_llm(model)
    assert made["deq_params"]["training"]["grad"] == 2
    assert made["tokenizer"] == given["tokenizer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "aligned"}, "labels must be 'shifted'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads must be num_attention_heads"),
        ({"sliding_window": 2}, "sliding_window must be None for the authors' code"),
        ({"deq": {"grad": {"solver": "anderson", "stop": {}}}}, "deq.grad.solver must be FixedPoint"),
        ({"deq": {"grad": {"stop": {"max_iter": 9}}}}, "keep='best_f'"),
        ({"deq": {}}, "keep='best_f'"),
        ({"deq": {**THEIRS, "no_grad": {"stop": {"rtol": 0.01, "per": "token"}}}}, "deq.no_grad.stop must be"),
        ({"deq": {**THEIRS, "no_grad": {"solver": "anderson"}}}, "deq.no_grad.solver must be FixedPoint"),
        ({"deq": {"grad": {**THEIRS["grad"], "gradient": {"name": "phantom", "damping": 0.5}}}}, "must be Phantom"),
        ({"deq": {**THEIRS, "phases": {"phases": [warm_up(3).to_dict()]}}}, "deq.phases must be one warm_up"),
        ({"implicit": False, "weight_norm": True}, "weight_norm must be False"),
    ],
)
def test_what_their_code_does_not_have_is_not_exported(change, message):
    model = ImplicitLlamaForCausalLM(ImplicitLlamaConfig(**TINY, num_attention_heads=2, **change))
    with pytest.raises(ValueError, match=message):
        export_implicit_llm(model)


@pytest.mark.parametrize("padded", [True, False])
def test_tables_come_with_padding_or_without(padded):
    given = config("mamba2")
    tensors = state(given)
    assert rows(given) == 48
    if not padded:
        table = tensors["word_emb.emb.weight"][:TOKENS]
        tensors |= {"word_emb.emb.weight": table, "criterion.decoder.weight": table}
    model, report = import_implicit_llm(given, tensors)
    assert model(torch.tensor([[1, 2]])).logits.shape[-1] == (48 if padded else TOKENS)
    assert any("without the padding" in note for note in report.notes) != padded
    back = export_implicit_llm(model)
    assert back[0]["pad_vocab"] == padded
    assert back[0]["tokenizer"] == given["tokenizer"]
    assert torch.equal(back[1]["word_emb.emb.weight"], tensors["word_emb.emb.weight"])
