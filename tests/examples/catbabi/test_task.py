"""CatbAbI in the training loop: what counts, what identifies the data, both kinds of windows, exact resume."""

from __future__ import annotations

import pytest
import torch

from deqlm.models import LMOptions, Mamba2Options
from deqlm.training import CheckpointError, Curriculum, Stage, checkpoints
from examples.catbabi.data import IGNORE, PAD, load, write_folder
from examples.catbabi.task import CatbAbI
from examples.loop import Batch, LoopOptions, train

STAGE = Stage(length=60, rows=3)
OPTIONS = LoopOptions(steps=4, curriculum=Curriculum((STAGE,)), warm_up=0, lr=0.01, log_every=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load(write_folder(tmp_path_factory.mktemp("babi"), tasks=(1, 6), stories=6, held_out=2))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return load(write_folder(tmp_path_factory.mktemp("babi"), tasks=(1, 6), stories=6, held_out=2, seed=1))


def mamba(corpus, **changes):
    torch.manual_seed(0)
    few = {"max_iter": 3, "eval_max_iter": 3} if changes.get("implicit", True) else {}
    sizes = {"vocab_size": len(corpus.vocabulary), "d_model": 8, "n_layer": 1, **few, **changes}
    return LMOptions(**sizes, mixer=Mamba2Options(d_state=4, headdim=8), labels="aligned").make()


def test_a_batch_is_a_window_with_its_mask(corpus):
    batch = CatbAbI(corpus).batch(0, 0, STAGE)
    asked = batch.ids == corpus.vocabulary.token("?")
    assert torch.equal(batch.mask, batch.ids != PAD)
    assert torch.equal(batch.targets != IGNORE, asked)
    words = CatbAbI(corpus, mode="lm").batch(0, 0, STAGE)
    assert torch.equal(words.targets != IGNORE, words.mask)
    again = CatbAbI(corpus).batch(0, 0, STAGE)
    assert torch.equal(again.ids, batch.ids)
    assert not torch.equal(CatbAbI(corpus).batch(1, 0, STAGE).ids, batch.ids)


def test_scores_count_targets_only(corpus):
    targets = torch.tensor([[IGNORE, 2, 3, IGNORE]])
    logits = torch.nn.functional.one_hot(torch.tensor([[2, 2, 2, 2]]), 5).float()
    batch = Batch(torch.ones_like(targets), targets)
    assert CatbAbI(corpus).scores(logits, batch) == {"accuracy": torch.tensor(0.5)}


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("carried", [True, False])
def test_both_families_learn_in_both_kinds_of_windows(corpus, implicit, carried):
    task = CatbAbI(corpus, carried=carried, watched=8)
    run = train(mamba(corpus, implicit=implicit), task, OPTIONS.replace(carry=carried))
    assert run.records[-1]["loss"] < run.records[0]["loss"]
    assert set(run.evaluations[-1]) == {"step", "accuracy", "task 1", "task 6"}


def test_a_carried_training_resumes_to_the_bit(corpus, tmp_path):
    options = OPTIONS.replace(carry=True, decay="constant")
    whole, first, second = (mamba(corpus) for _ in range(3))
    task = CatbAbI(corpus, carried=True)
    train(whole, task, options)
    train(first, task, options.replace(steps=2), folder=tmp_path)
    train(second, CatbAbI(corpus, carried=True), options, folder=tmp_path, resume=True)
    weights = zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_a_short_stage_holds_openings_and_is_watched_on_openings(corpus):
    longest = int(corpus.splits["train"].lengths.max())
    stages = Curriculum((Stage(length=24, rows=4, steps=2), Stage(length=longest, rows=3)))
    task = CatbAbI(corpus, openings=True, watched=8)
    run = train(mamba(corpus, implicit=False), task, OPTIONS.replace(curriculum=stages, evaluate_every=1))
    assert (run.steps, run.stage) == (4, 1)
    short, whole = (task.batch(0, 0, stage) for stage in stages.stages)
    assert short.ids.shape == (4, 24)
    answers = corpus.splits["train"].openings(24)
    assert {tuple(row[row != PAD].tolist()) for row in short.ids} <= {
        tuple(answers.tokens[start : start + n].tolist())
        for start, n in zip(answers.starts, answers.lengths, strict=True)
    }
    assert torch.equal(whole.ids, CatbAbI(corpus).batch(0, 0, stages.stages[1]).ids)


def test_batches_without_a_question_teach_nothing(corpus):
    # windows of three tokens seldom hold a "?"
    options = OPTIONS.replace(steps=12, carry=True, curriculum=Curriculum((Stage(length=3, rows=2),)))
    run = train(mamba(corpus, implicit=False), CatbAbI(corpus, carried=True), options)
    assert run.steps == 12
    assert 0 < sum(record["steps"] for record in run.records) < 12


@pytest.mark.parametrize("change", ["stories", "mode", "windows"])
def test_a_checkpoint_of_another_experiment_is_refused(corpus, other, tmp_path, change):
    train(mamba(corpus, implicit=False), CatbAbI(corpus), OPTIONS.replace(steps=1, warm_up=0), folder=tmp_path)
    task = {
        "stories": CatbAbI(other),
        "mode": CatbAbI(corpus, mode="lm"),
        "windows": CatbAbI(corpus, carried=True),
    }[change]
    name = {"stories": "task.tokens", "mode": "task.mode", "windows": "task.carried"}[change]
    model = mamba(task.corpus, implicit=False)
    with pytest.raises(CheckpointError, match=f"belongs to another experiment: .*{name} is"):
        train(model, task, OPTIONS.replace(steps=1), folder=tmp_path, resume=True)
    assert len(checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("more", [-1, 1])
def test_a_model_of_another_vocabulary_is_refused(corpus, more):
    size = len(corpus.vocabulary)
    model = mamba(corpus, vocab_size=size + more)
    with pytest.raises(ValueError, match=f"vocab_size of the model must be {size}, got {size + more}: .* other data"):
        CatbAbI(corpus).check_model(model)
