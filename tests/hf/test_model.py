"""The model classes: the same numbers as `ImplicitLM`, and the calls that transformers and its users make."""

from __future__ import annotations

import copy
import importlib.util
import pickle

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from deqlm import Chunked, OneStep, Phantom, Sequential, Status, Stop
from deqlm.hf import DeqOptions, register
from deqlm.layers import Mamba2
from deqlm.training import bounded
from hf.tiny import BASES, FAMILIES, MODELS, VOCAB, config, converging, model, tokens
from models.families import contract

TIGHT = Stop(rtol=1e-10, max_iter=200)
BOTH = pytest.mark.parametrize("family", FAMILIES)


@BOTH
@pytest.mark.parametrize("grad", [False, True])
def test_the_numbers_are_those_of_the_language_model(family, grad):
    made, ids = model(family), tokens()
    with torch.set_grad_enabled(grad):
        ours, plain = made(ids, labels=ids), made.lm(ids, labels=ids)
    assert torch.equal(ours.logits, plain.logits)
    assert torch.equal(ours.loss, plain.loss)
    assert torch.equal(ours.last_hidden_state, plain.state)
    assert torch.equal(ours.steps, plain.solution.steps)
    assert torch.equal(ours.residual, plain.solution.residual)
    assert ours.status.tolist() == plain.solution.status.tolist()
    assert ours.solution.z.shape == ours.last_hidden_state.shape


@BOTH
def test_the_deq_section_decides_by_grad_mode(family):
    section = {
        "grad": {"stop": {"max_iter": 3, "rtol": 0}, "gradient": "one_step"},
        "no_grad": {"solver": "anderson", "stop": {"max_iter": 5, "rtol": 0}},
        "on_failure": "raise",
    }
    made, ids = model(family, deq=section), tokens()
    assert made(ids).steps.tolist() == [3, 3]
    with torch.no_grad():
        assert made(ids).steps.tolist() == [5, 5]
    assert made.gradient == OneStep()
    assert made.lm.failures.on_failure == "raise"


@BOTH
def test_stop_and_mode_of_a_call_leave_the_configuration_alone(family):
    made, ids = converging(family), tokens()
    before = made.config.to_dict()
    with torch.no_grad():
        called = made(ids, stop=TIGHT, mode=Chunked(3))
        by_dict = made(ids, stop=TIGHT.to_dict(), mode={"name": "chunked", "size": 3})
        assert made.config.to_dict() == before
        assert made(ids).steps.max() < called.steps.max()
        section = made.config.deq
        made.set_deq(section.replace(mode=Chunked(3), no_grad=section.no_grad.replace(stop=TIGHT.replace(per="token"))))
        configured = made(ids)
    assert torch.equal(called.logits, configured.logits)
    assert torch.equal(called.logits, by_dict.logits)
    assert (called.status == Status.CONVERGED).all()


def test_an_explicit_twin_has_no_solution():
    made = model("llama", implicit=False)
    out = made(tokens())
    assert out.steps is None
    assert out.solution is None
    with pytest.raises(ValueError, match="stop must be None for an explicit model"):
        made(tokens(), stop=TIGHT)
    with pytest.raises(ValueError, match="nothing is solved"):
        made.set_deq({"on_failure": "warn"})


@BOTH
def test_shifted_loss_is_that_of_transformers(family):
    made, ids = model(family), tokens(3, 9)
    labels = ids.clone()
    labels[0, :4] = labels[2, 5] = -100
    out = made(ids, labels=labels)
    assert torch.allclose(out.loss, ForCausalLMLoss(out.logits, labels, VOCAB))
    count = torch.tensor(40)
    divided = made(ids, labels=labels, num_items_in_batch=count).loss
    assert torch.allclose(divided, ForCausalLMLoss(out.logits, labels, VOCAB, num_items_in_batch=count))
    assert divided < out.loss


def test_aligned_loss_compares_a_label_with_its_own_logits():
    made, ids = model("mamba2", labels="aligned"), tokens()
    labels = tokens()
    labels[1, 2:] = -100
    out = made(ids, labels=labels)
    chosen = labels != -100
    assert torch.allclose(out.loss, torch.nn.functional.cross_entropy(out.logits[chosen], labels[chosen]))


@BOTH
def test_only_some_logits(family):
    made, ids = model(family), tokens()
    with torch.no_grad():
        out = made(ids)
        assert torch.allclose(made(ids, logits_to_keep=2).logits, out.logits[:, -2:], atol=1e-6)
        index = torch.tensor([0, 3])
        assert torch.allclose(made(ids, logits_to_keep=index).logits, out.logits[:, index], atol=1e-6)


@BOTH
def test_a_cache_continues_a_left_padded_batch(family):
    made, ids = converging(family), tokens(2, 7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = made(ids, attention_mask=mask, position_ids=positions, stop=TIGHT)
        first = made(ids[:, :5], attention_mask=mask[:, :5], stop=TIGHT)
        rest = made(
            ids[:, 5:],
            attention_mask=mask,
            past_key_values=first.cache,
            position_ids=positions[:, 5:],
            cache_position=torch.arange(5, 7),
            stop=TIGHT,
        )
        alone = made(ids[1:, 3:], stop=TIGHT)
    assert first.cache.get_seq_length() == 5
    assert rest.past_key_values.get_seq_length() == 7
    assert torch.allclose(rest.logits, whole.logits[:, 5:], atol=1e-8)
    assert torch.allclose(whole.logits[1:, 3:], alone.logits, atol=1e-8)


@BOTH
def test_embeddings_in_place_of_tokens(family):
    made, ids = model(family), tokens()
    out = made(inputs_embeds=made.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids))
    assert torch.equal(out.logits, made(ids).logits)


def test_a_cache_is_returned_without_grad_or_where_it_is_asked_for():
    made, ids = model("llama"), tokens()
    assert made(ids).cache is None
    assert made(ids, use_cache=True).cache is not None
    with torch.no_grad():
        assert made(ids).cache is not None
        assert made(ids, use_cache=False).cache is None
        made.config.use_cache = False
        assert made(ids).cache is None


def test_a_tuple_where_it_is_asked_for():
    made, ids = model("llama"), tokens()
    loss, logits, *_ = made(ids, labels=ids, return_dict=False)
    out = made(ids, labels=ids)
    assert torch.equal(loss, out[0])
    assert torch.equal(logits, out["logits"])


def test_a_single_token():
    made = model("mamba2")
    assert made(tokens(2, 1)).logits.shape == (2, 1, VOCAB)


def test_phases_change_the_model_and_the_section_stays():
    plan = {"phases": [bounded(2).to_dict(), bounded(3, max_iter=7).to_dict()]}
    made = model("llama", deq={"phases": plan})
    for step, most in ((0, 4), (2, 7)):
        made.config.deq.phases.apply(made, step)
        assert (made.solve.stop.max_iter, made.gradient) == (most, Phantom(1, 0.8))
    assert made.config.deq.grad == DeqOptions().grad


def test_the_section_that_is_set_is_saved(tmp_path):
    made = model("llama")
    made.set_deq({"mode": "sequential"})
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm.mode == Sequential()


def test_registration_may_be_repeated():
    register()
    made = AutoModel.from_config(config("mamba2"))
    assert type(made) is BASES["mamba2"]
    assert type(AutoModelForCausalLM.from_config(config("llama"))) is MODELS["llama"]
    assert made(tokens()).last_hidden_state.shape == (2, 7, 16)


@BOTH
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("size", [40, 18, 33])
def test_resized_vocabulary(family, tie, size, tmp_path):
    made = model(family, pad_vocab=4, tie_word_embeddings=tie)
    before = made.get_input_embeddings().weight.detach().clone()
    made.resize_token_embeddings(size, mean_resizing=size != 33)
    rows = -(-size // 4) * 4
    assert made.config.vocab_size == size
    assert made.lm.embedding.weight.shape == made.lm.head.weight.shape == (rows, 16)
    assert (made.lm.head.weight is made.lm.embedding.weight) is tie
    kept = min(rows, len(before))
    assert torch.equal(made.get_input_embeddings().weight[:kept], before[:kept])
    assert made.get_input_embeddings().weight.isfinite().all()
    ids = torch.tensor([[size - 1, 0]])
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids, labels=ids).logits, made(ids, labels=ids).logits)


def test_embeddings_and_head_can_be_replaced():
    made = model("llama")
    made.set_input_embeddings(torch.nn.Embedding(VOCAB, 16))
    made.tie_weights()
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    head = torch.nn.Linear(16, VOCAB)
    made.set_output_embeddings(head)
    assert made.get_output_embeddings() is head


def saved_bytes(made, ids) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the bytes that autograd keeps of a forward, parameters apart, and the gradients."""
    known = {p.untyped_storage().data_ptr() for p in made.parameters()}
    total = 0

    def pack(t):
        nonlocal total
        if t.untyped_storage().data_ptr() not in known:
            known.add(t.untyped_storage().data_ptr())
            total += t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = made(ids, labels=ids).loss
    made.zero_grad()
    loss.backward()
    return total, {name: p.grad.clone() for name, p in made.named_parameters()}


def by_torch_operations(made):
    """Return a copy without compiled twins, which keep their inputs alone."""
    made = copy.deepcopy(made)
    for part in made.modules():
        if isinstance(part, Mamba2):
            part.impl = "torch"
    return made


def set_checkpointing(made, on: bool, **options) -> None:
    """Call it by the name that this release of transformers does not warn about."""
    name = "activation_checkpointing" if hasattr(made, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(made, f"{name}_enable")(options or None)
    else:
        getattr(made, f"{name}_disable")()


@BOTH
@pytest.mark.parametrize("changes", [{}, {"deq": {"grad": {"gradient": "implicit"}}}, {"implicit": False}])
def test_checkpointing_saves_memory_and_no_digit_of_the_gradient(family, changes):
    made = model(family, torch.float64, hidden_dropout=0.1, **changes)
    if made.config.implicit:
        contract(made.lm)
    made.train()
    ids = tokens(2, 16)
    by_torch, _ = saved_bytes(by_torch_operations(made), ids)
    torch.manual_seed(1)
    plain, gradients = saved_bytes(made, ids)
    set_checkpointing(made, True)
    torch.manual_seed(1)
    less, again = saved_bytes(made, ids)
    assert less < by_torch / 3
    assert less < plain
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())
    set_checkpointing(made, False)
    assert saved_bytes(made, ids)[0] > plain / 2


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(ValueError, match="use_reentrant must be False"):
        set_checkpointing(model("llama"), True, use_reentrant=True)


@BOTH
def test_weights_in_bfloat16(family):
    made, ids = model(family), tokens()
    half = copy.deepcopy(made).to(torch.bfloat16)
    out, exact = half(ids, labels=ids), made(ids, labels=ids)
    assert out.solution.z.dtype == torch.float32
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert abs(out.loss - exact.loss) < 0.05
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


@BOTH
def test_autocast(family):
    made, ids = model(family), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        out = made(ids, labels=ids)
    out.loss.backward()
    assert abs(out.loss - made(ids, labels=ids).loss) < 0.05
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in made.parameters())


@BOTH
@pytest.mark.parametrize("tie", [True, False])
def test_copies_and_pickles(family, tie):
    made, ids = model(family, tie_word_embeddings=tie), tokens()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (other.lm.head.weight is other.lm.embedding.weight) is tie
        assert other.lm.embedding.weight is not made.lm.embedding.weight
        assert torch.equal(other(ids).logits, made(ids).logits)
        assert other.config == made.config


def test_no_other_attention_is_promised():
    with pytest.raises(ValueError, match="does not support Flash Attention 2"):
        AutoModelForCausalLM.from_config(config("llama"), attn_implementation="flash_attention_2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="Trainer needs accelerate")
@BOTH
def test_trainer(family, tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": torch.arange(i, i + 9), "labels": torch.arange(i, i + 9)} for i in range(8)]
    where = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    steps = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
    options = TrainingArguments(**where, **batches, **steps)
    first = Trainer(model=model(family), args=options, train_dataset=rows, eval_dataset=rows)
    first.train()
    losses = [entry["loss"] for entry in first.state.log_history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0])
    assert first.label_names == ["labels"], "others would be asked for, and there would be no loss"
    assert all("eval_loss" in entry for entry in first.state.log_history if "eval_runtime" in entry)
    assert first.predict(rows).predictions.shape == (8, 9, VOCAB)
    resumed = Trainer(model=model(family), args=options, train_dataset=rows, eval_dataset=rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for ours, theirs in zip(first.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@BOTH
@pytest.mark.parametrize("solver", ["newton", "newton_krylov", "dogleg"])
def test_solvers_that_differentiate_work_without_grad(family, solver):
    """The weights of such a call are made without a graph; the steps are those with grad."""
    how = {"solver": {"name": solver}, "stop": {"max_iter": 80, "rtol": 1e-3}}
    deq = {"grad": how, "no_grad": how, "mode": "simultaneous", "on_failure": "ignore"}
    made = model(family, torch.float64, hidden_size=8, num_hidden_layers=1, deq=deq)
    ids = tokens()[:1, :3]
    with_grad = made(ids).steps
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = made(ids)
        assert out.logits.isfinite().all()
        assert (out.steps - with_grad).abs().max() <= 2


def test_a_call_and_a_generation_have_their_own_solver_and_gradient():
    made = model("llama")
    ids = torch.tensor([[1, 2, 3]])
    how = {"stop": {"max_iter": 3, "rtol": 0.0}, "solver": "anderson"}
    a = made(ids, labels=ids, gradient="one_step", **how)
    b = made.lm(ids, labels=ids, gradient="one_step", **how)
    assert torch.equal(a.loss, b.loss)
    assert made.last.solver.name == "anderson"
    made.generate(ids, max_new_tokens=1, do_sample=False, solver="broyden", on_failure="ignore")
    assert made.last.solver.name == "broyden"
