"""Accuracy per task against counts by hand, the baseline of one answer, and carried state."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from torch import nn

from deqlm.models import LMOptions, LMOutput, Mamba2Options
from examples.catbabi.data import Stories, Story, joint_vocabulary, load, write_folder
from examples.catbabi.evaluate import guesses, score


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load(write_folder(tmp_path_factory.mktemp("babi"), stories=6, held_out=4))


class Always(nn.Module):
    """Says the same word everywhere."""

    def __init__(self, words, word):
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(word), words).float())

    def forward(self, ids, mask=None, cache=None, use_cache=False):
        logits = self.logits.expand(*ids.shape, -1)
        return LMOutput(logits, None, None, logits, (0,) if use_cache else None)


def answers(stories):
    """Return task -> counted answers, read story by story."""
    found = defaultdict(Counter)
    for start, length, task in zip(stories.starts, stories.lengths, stories.tasks, strict=True):
        tokens = stories.tokens[start : start + length]
        found[int(task)].update(tokens[1:][tokens[:-1] == stories.question].tolist())
    return found


@pytest.mark.parametrize("carried", [True, False])
def test_score_counts_answers_by_task(corpus, carried):
    stories = corpus.splits["test"]
    counted = answers(stories)
    word = counted[6].most_common(1)[0][0]
    found = score(Always(len(corpus.vocabulary), word), stories, rows=3, length=100, carried=carried)
    for task, each in counted.items():
        assert found["tasks"][str(task)] == {"accuracy": each[word] / each.total(), "questions": each.total()}
    total = sum(each.total() for each in counted.values())
    assert found["questions"] == total
    assert found["accuracy"] == pytest.approx(sum(each[word] for each in counted.values()) / total)


def test_one_answer_per_task_is_the_most_frequent_of_training(corpus):
    train, test = corpus.splits["train"], corpus.splits["test"]
    best = {task: each.most_common(1)[0][0] for task, each in answers(train).items()}
    expected = {task: each[best[task]] / each.total() for task, each in answers(test).items()}
    found = guesses(train, test)
    assert found["tasks"] == {str(task): pytest.approx(value) for task, value in expected.items()}
    right = sum(each[best[task]] for task, each in answers(test).items())
    assert found["accuracy"] == pytest.approx(right / sum(each.total() for each in answers(test).values()))


def test_state_goes_from_window_to_window_only_when_carried(corpus):
    stories, seen = corpus.splits["test"], []

    class Watching(Always):
        def forward(self, ids, mask=None, cache=None, use_cache=False):
            seen.append(cache)
            return super().forward(ids, mask, cache, use_cache)

    model = Watching(len(corpus.vocabulary), 2)
    score(model, stories, rows=2, length=100, carried=True)
    assert seen[0] is None
    assert len(seen) > 2
    assert all(cache == (0,) for cache in seen[1:])
    seen.clear()
    score(model, stories, rows=2, length=100)
    assert set(seen) == {None}


def test_carried_windows_are_one_long_text():
    texts = [Story(1, ("mary", "went", "to", "the", "garden", ".", "where", "is", "mary", "?", "garden"))] * 3
    stories = Stories(texts, joint_vocabulary(texts))
    torch.manual_seed(0)
    sizes = {"vocab_size": len(stories.vocabulary), "d_model": 8, "n_layer": 1, "implicit": False, "labels": "aligned"}
    model = LMOptions(**sizes, mixer=Mamba2Options(d_state=4, headdim=8)).make().double().eval()
    whole = score(model, stories, rows=1, length=len(stories.tokens), carried=True)
    parts = score(model, stories, rows=1, length=5, carried=True)
    assert (whole["accuracy"], whole["questions"]) == (parts["accuracy"], 3)


def test_cut_stories_and_costs_are_told(corpus):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(corpus.vocabulary), "d_model": 8, "n_layer": 1, "max_iter": 2, "eval_max_iter": 2}
    model = LMOptions(**sizes, mixer=Mamba2Options(d_state=4, headdim=8), labels="aligned").make().eval()
    stories = corpus.splits["test"]
    found = score(model, stories, rows=2, length=40, batches=3, mode="simultaneous")
    assert found["cut"] > 0
    assert 0 <= found["converged"] <= 1
    assert 0 < found["evaluations_per_token"] <= 3


def test_bad_input_is_refused(corpus):
    stories = corpus.splits["test"]
    with pytest.raises(ValueError, match="batches"):
        score(Always(3, 0), stories, rows=2, length=40, batches=0)
    sizes = {"vocab_size": 5, "d_model": 8, "n_layer": 1, "implicit": False, "labels": "aligned"}
    small = LMOptions(**sizes, mixer=Mamba2Options(d_state=4, headdim=8)).make()
    with pytest.raises(ValueError, match="ids must be from 0 to 4"):
        score(small, stories, rows=2, length=40)
