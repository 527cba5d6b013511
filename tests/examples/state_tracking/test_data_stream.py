"""Streams: the same batches with any number of workers, others on every rank, exact resume."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from examples.state_tracking.data import Stream, word_problem

OPTIONS = {"batch": 3, "length": 7, "seed": 5}


def stream(**change):
    return Stream(word_problem("A5xM", p=0.5), **{**OPTIONS, **change})


def taken(source, n):
    return [words.inputs for words in islice(source, n)]


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batches_are_those_of_the_problem():
    mine = stream()
    problem = word_problem("A5xM", p=0.5)
    for step, words in enumerate(islice(mine, 4)):
        right = problem.draw(3, 7, seed=5, step=step)
        assert torch.equal(words.inputs, right.inputs)
        assert torch.equal(words.targets, right.targets)
    assert mine.step == 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_do_not_change_the_batches(workers):
    """Two workers would give every batch twice if each ran through the whole stream."""
    loader = DataLoader(stream(start=2), batch_size=None, num_workers=workers)
    got = taken(loader, 5)
    assert equal(got, [stream().batch_at(step).inputs for step in range(2, 7)])


def test_ranks_see_other_batches(monkeypatch):
    ranks = [taken(stream(rank=rank), 5) for rank in range(3)]
    rows = {tuple(row) for batches in ranks for batch in batches for row in batch.tolist()}
    assert len(rows) == 3 * 5 * 3
    assert equal(ranks[1], taken(stream(rank=1), 5))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert equal(ranks[2], taken(stream(), 5))


def test_resume_is_exact():
    through = taken(stream(), 9)
    first = stream()
    start = taken(first, 4)
    state = first.state_dict()
    second = stream()
    second.load_state_dict(state)
    assert equal(through, start + taken(second, 5))
    assert second.step == 9
    assert equal(through[4:], taken(stream(start=4), 5))


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch": 4}, {"length": 8}, {"split": "test"}, {"rank": 1}])
def test_the_state_of_another_stream(change):
    state = stream(**change).state_dict()
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name} must be {value!r} to go on with this state"):
        stream().load_state_dict(state)


def test_the_state_of_another_problem():
    with pytest.raises(ValueError, match=r"p must be 0\.25 to go on"):
        stream().load_state_dict(Stream(word_problem("A5xM", p=0.25), **OPTIONS).state_dict())
    with pytest.raises(ValueError, match="problem must be 'S3' to go on"):
        stream().load_state_dict(Stream(word_problem("S3", p=0.5), **OPTIONS).state_dict())
    with pytest.raises(ValueError, match="state must be the state of a stream"):
        stream().load_state_dict({"step": 3})
    with pytest.raises(ValueError, match="step must be a whole number >= 0, got -3"):
        stream().load_state_dict({**stream().state_dict(), "step": -3})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length": 0}, "length must be a whole number >= 1, got 0"),
        ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
        ({"start": -1}, "start must be a whole number >= 0, got -1"),
        ({"split": "tst"}, "unknown split 'tst': did you mean 'test'"),
    ],
)
def test_wrong_options_fail_at_construction(change, says):
    with pytest.raises(ValueError, match=says):
        stream(**change)
