"""Windows: every story once per epoch, aligned targets, carried rows that continue, exact resume, ranks."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.catbabi.data import EOS, IGNORE, PAD, Stories, Story, Windows, joint_vocabulary, load, write_folder

WORDS = ["mary", "john", "went", "to", "the", "garden", "kitchen", "where", "is"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return load(write_folder(tmp_path_factory.mktemp("babi"), stories=12, held_out=2)).splits["train"]


def made(lengths):
    """Stories of given lengths that begin with words of their own and, where there is room, end in a question."""
    texts = []
    for i, length in enumerate(lengths):
        words = [f"story{i}", *(WORDS[k % len(WORDS)] for k in range(length - 1))]
        if length > 3:
            words[-2:] = ["?", "garden"]
        texts.append(Story(1 + i % 3, tuple(words)))
    return Stories(texts, joint_vocabulary(texts))


def whole_stories(stories):
    """Return every story's tokens behind its <eos>, counted."""
    starts, lengths = stories.starts.tolist(), stories.lengths.tolist()
    return Counter(tuple(stories.tokens[s : s + n].tolist()) for s, n in zip(starts, lengths, strict=True))


def streams(windows, number):
    """Return the real tokens of an epoch, (input, target, task), put together again row by row."""
    rows = {}
    for k, batch in enumerate(windows.epoch(number)):
        for row in range(len(batch.inputs)):
            real = batch.tasks[row] > 0
            place = row if windows.carried else (k, row)
            triples = zip(*(part[row][real].tolist() for part in batch[:3]), strict=True)
            rows.setdefault(place, []).extend(triples)
    return list(rows.values())


def split_stories(tokens):
    parts = []
    for token in tokens:
        if token == EOS:
            parts.append([])
        parts[-1].append(token)
    return parts


sizes = st.lists(st.integers(1, 40), min_size=4, max_size=30)


@given(sizes, st.integers(1, 4), st.integers(1, 25), st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_story_once_per_epoch(lengths, batch, length, carried, shuffle, number):
    stories = made([*lengths, 9])
    windows = Windows(stories=stories, batch=batch, length=length, carried=carried, shuffle=shuffle, mode="lm", seed=3)
    rows = streams(windows, number)
    inputs = [token for row in rows for token, _, _ in row]
    if carried or length >= 41:
        assert all(row[0][0] == EOS for row in rows)
        assert Counter(tuple(part) for row in rows for part in split_stories([t for t, _, _ in row])) == whole_stories(
            stories
        )
    assert Counter(inputs) == Counter(stories.tokens.tolist())
    assert len(inputs) == len(stories.tokens)
    for row in rows:
        for (_, target, _), (following, _, _) in pairwise(row):
            assert target == following
        assert row == [] or not carried or row[-1][1] == EOS


@given(sizes, st.integers(1, 3), st.integers(5, 30))
def test_independent_windows_cut_only_what_does_not_fit(lengths, batch, length):
    stories = made([*lengths, 9])
    windows = Windows(stories=stories, batch=batch, length=length, carried=False, mode="lm", seed=1)
    assert windows.cut() == int((stories.lengths > length).sum())
    if windows.cut() == 0:
        rows = streams(windows, 0)
        assert all(row[0][0] == EOS for row in rows if row)
        parts = Counter(tuple(part) for row in rows for part in split_stories([t for t, _, _ in row]))
        assert parts == whole_stories(stories)


def test_known_windows():
    stories = made([4, 2, 7])
    carried = Windows(stories=stories, batch=1, length=6, shuffle=False, mode="lm")
    batches = list(carried.epoch())
    name = stories.vocabulary.names
    text = [[name[t] for t in batch.inputs[0].tolist()] for batch in batches]
    assert text == [
        ["<eos>", "story0", "mary", "?", "garden", "<eos>"],
        ["story1", "mary", "<eos>", "story2", "mary", "john"],
        ["went", "to", "?", "garden", "<pad>", "<pad>"],
    ]
    assert [batch.fresh for batch in batches] == [True, False, False]
    assert [name[t] for t in batches[0].targets[0].tolist()] == ["story0", "mary", "?", "garden", "<eos>", "story1"]
    assert batches[2].targets[0, 3:].tolist() == [EOS, IGNORE, IGNORE]
    assert [batch.tasks[0].tolist() for batch in batches] == [
        [1, 1, 1, 1, 1, 2],
        [2, 2, 3, 3, 3, 3],
        [3, 3, 3, 3, 0, 0],
    ]
    assert carried.cut() == 2
    packed = Windows(stories=stories, batch=2, length=8, carried=False, shuffle=False, mode="lm")
    (batch,) = packed.epoch()
    text = [[name[t] for t in row] for row in batch.inputs.tolist()]
    assert text == [
        ["<eos>", "story0", "mary", "?", "garden", "<eos>", "story1", "mary"],
        ["<eos>", "story2", "mary", "john", "went", "to", "?", "garden"],
    ]
    assert batch.fresh
    assert packed.cut() == 0


@pytest.mark.parametrize("carried", [True, False])
def test_modes(stories, carried):
    """In qm the targets are the answers, seen nowhere before; lm has the same batches with all targets."""
    options = {"stories": stories, "batch": 3, "length": 50, "carried": carried}
    lm, qm = Windows(mode="lm", **options), Windows(mode="qm", **options)
    answers = 0
    for every, asked in zip(lm.epoch(), qm.epoch(), strict=True):
        assert torch.equal(every.inputs, asked.inputs)
        real = every.tasks > 0
        assert ((every.targets != IGNORE) == real).all()
        assert ((every.inputs == PAD) == ~real).all()
        where = qm.questions(asked)
        assert ((asked.targets != IGNORE) == where).all()
        assert torch.equal(asked.targets[where], every.targets[where])
        answers += int(where.sum())
    assert answers == sum(count.questions for count in stories.counts().values()) == 12 * (4 * 5 + 1)


def test_carried_rows_hold_about_the_same(stories):
    windows = Windows(stories=stories, batch=4, length=20, mode="lm")
    longest = max(map(len, streams(windows, 0)))
    assert longest <= len(stories.tokens) / 4 + stories.lengths.max()
    assert windows.cut() > 0


def test_epochs_differ_and_seeds_differ(stories):
    def first(number=0, **change):
        return next(Windows(stories=stories, batch=2, length=30, **change).epoch(number)).inputs

    assert torch.equal(first(), first())
    assert not torch.equal(first(), first(1))
    assert not torch.equal(first(), first(seed=1))
    assert torch.equal(first(0, shuffle=False), first(1, shuffle=False))


@pytest.mark.parametrize("carried", [True, False])
def test_resume_is_exact(stories, carried):
    def windows():
        return Windows(stories=stories, batch=6, length=60, carried=carried)

    through = list(islice(windows().batches(), 40))
    assert windows().epoch_of(39) >= 2
    later = list(islice(windows().batches(start=23), 17))
    for a, b in zip(through[23:], later, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        assert a.fresh == b.fresh
    epochs = [batch for number in range(windows().epoch_of(39) + 1) for batch in windows().epoch(number)]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(through, epochs, strict=False))


@pytest.mark.parametrize("carried", [True, False])
def test_ranks_share_the_stories(stories, carried):
    ranks = [
        Windows(stories=stories, batch=2, length=40, carried=carried, mode="lm", rank=rank, ranks=3)
        for rank in range(3)
    ]
    assert len({len(list(windows.epoch())) for windows in ranks}) == 1
    rows = [row for windows in ranks for row in streams(windows, 0)]
    assert Counter(t for row in rows for t, _, _ in row) == Counter(stories.tokens.tolist())
    if carried:
        assert Counter(tuple(p) for row in rows for p in split_stories([t for t, _, _ in row])) == whole_stories(
            stories
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
        ({"length": 0}, "length must be a whole number >= 1, got 0"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"ranks": 2, "rank": 2}, "rank must be below ranks = 2, got 2"),
        ({"mode": "ra"}, "unknown mode 'ra': .*known: lm, qm"),
        ({"batch": 61}, "batch must be at most 60 over all ranks"),
    ],
)
def test_wrong_options(stories, change, says):
    with pytest.raises(ValueError, match=says):
        Windows(stories=stories, **{"batch": 2, **change})


def test_stories_without_questions():
    plain = made([2, 3, 2])
    Windows(stories=plain, batch=1, mode="lm")
    with pytest.raises(ValueError, match="mode must be 'lm' for stories without a question, got 'qm'"):
        Windows(stories=plain, batch=1)
    with pytest.raises(ValueError, match="stories must be at least one story"):
        Stories([], plain.vocabulary)
    with pytest.raises(ValueError, match="unknown word 'cellar'"):
        Stories([Story(1, ("cellar", "."))], plain.vocabulary)
