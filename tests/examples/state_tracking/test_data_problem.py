"""Word problems: aligned right products, the share of easy tokens, names, and batches as a function of the step."""

from __future__ import annotations

import doctest
from collections import Counter
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.state_tracking.data import Vocabulary, WordProblem, aperiodic, cyclic, word_problem


@pytest.mark.parametrize("module", ["algebra", "problem", "stream", "vocabulary", "files"])
def test_docstrings(module):
    found = import_module(f"examples.state_tracking.data.{module}")
    failed, _ = doctest.testmod(found, optionflags=doctest.ELLIPSIS)
    assert not failed


@pytest.mark.parametrize("name", ["Z2", "S3", "A5", "S5", "S3xZ2", "A5xM", "A5xMxM", "M"])
def test_targets_are_aligned_right_products(name):
    problem = word_problem(name)
    x, y = problem.draw(5, 23, seed=1)
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (5, 23)
    table = problem.algebra.table
    for row, targets in zip(x.tolist(), y.tolist(), strict=True):
        state = row[0]
        assert targets[0] == state
        for element, target in zip(row[1:], targets[1:], strict=True):
            state = table[state, element]
            assert target == state
    assert torch.equal(problem.targets(x), y)
    assert torch.equal(problem.targets(x.int()), y)
    assert torch.equal(problem.targets(x[0]), y[0])


def test_permutations_track_a_deck():
    """Multiplying from the right is what moves of a deck do to the word: followed here without any table."""
    problem = word_problem("S5")
    x, y = problem.draw(4, 50, seed=2)
    for row, targets in zip(x.tolist(), y.tolist(), strict=True):
        state = list(range(5))
        for element, target in zip(row, targets, strict=True):
            images = [int(letter) - 1 for letter in problem.vocabulary.names[element]]
            state = [state[image] for image in images]
            assert "".join(str(i + 1) for i in state) == problem.vocabulary.names[target]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9, 1.0])
def test_p_is_the_probability_of_an_easy_token(p):
    """The authors' help text has it the other way round; with p = .9 the group must stand still most of the time."""
    problem = word_problem("A5", monoid="M", p=p)
    x, _ = problem.draw(200, 250, seed=3)
    share = (x // 4 != 0).double().mean().item()
    expected = (1 - p) * 59 / 60
    spread = (expected * (1 - expected) / x.numel()) ** 0.5
    assert abs(share - expected) <= 5 * spread
    assert torch.equal(problem.hard(x), x // 4 != 0)
    monoid = Counter((x % 4).flatten().tolist())
    assert all(abs(monoid[m] / x.numel() - 0.25) < 0.01 for m in range(4))


def test_elements_are_uniform():
    x, _ = word_problem("S3").draw(300, 200, seed=4)
    counts = torch.bincount(x.flatten(), minlength=6)
    chi2 = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi2 < 30  # 5 degrees of freedom: probability 1e-5


def test_p_only_replaces_elements_by_the_identity():
    plain = word_problem("A5xM")
    x = plain.draw(300, 100, seed=5).inputs
    easy, targets = plain.with_p(0.5).draw(300, 100, seed=5)
    assert torch.equal(plain.targets(easy), targets)
    same = easy == x
    assert (easy[~same] // 4 == 0).all()
    assert (easy[~same] == x[~same] % 4).all()
    assert 0.3 < same.double().mean() < 0.7


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(1, 4), st.integers(1, 20))
def test_a_batch_is_a_function_of_its_arguments(seed, step, batch, length):
    problem = word_problem("S5xM", p=0.3)
    torch.rand(1)
    first = problem.draw(batch, length, seed=seed, step=step)
    again = word_problem("S5", "M", 0.3).draw(batch, length, seed=seed, step=step)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)


def test_other_arguments_give_other_batches():
    problem = word_problem("A5")
    changes = [{"seed": 1}, {"step": 1}, {"split": "valid"}, {"split": "test"}, {"rank": 1}]
    changes += [{"seed": 2**32}, {"seed": 2**64}, {"step": 2**32}]
    batches = [problem.draw(4, 32, **change).inputs for change in [{}, *changes]]
    rows = {tuple(row) for batch in batches for row in batch.tolist()}
    assert len(rows) == 4 * len(batches)
    longer = problem.draw(4, 64).inputs[:, :32]
    assert not (longer == batches[0]).all()


def test_names_and_vocabulary():
    problem = word_problem("A5xM", p=0.1)
    assert (len(problem), problem.name, len(problem.vocabulary)) == (240, "A5xM", 240)
    assert problem.vocabulary.names[:5] == ("12345,E", "12345,A", "12345,B", "12345,X", "12453,E")
    assert word_problem("S3_x_Z4").name == "S3xZ4"
    assert word_problem(problem.name, p=problem.p).name == problem.name
    assert problem.vocabulary.decode(problem.vocabulary.encode(["12453,E"])) == ["12453,E"]
    assert repr(problem) == "WordProblem(A5xM, p=0.1, 240 tokens)"


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "half", True])
def test_p_outside_of_its_range(p):
    with pytest.raises(ValueError, match=r"p must be a? ?(number )?in \[0, 1\]"):
        word_problem("S3", p=p)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("s3", "unknown group or monoid 's3': did you mean 'S3'"),
        ("D5", "unknown group or monoid 'D5': did you mean"),
        ("Q8xZ2", "unknown group or monoid 'Q8' in 'Q8xZ2'"),
        ("", "unknown group or monoid ''"),
        ("S0", "unknown group or monoid 'S0'"),
        ("S5x", "unknown group or monoid '' in 'S5x'"),
        ("S9", "at most 1000 elements, got 9"),
        (5, 'name must be a text such as "A5xM", got 5'),
        ("MxA5", "groups first, then monoids, got 'MxA5'"),
    ],
)
def test_unknown_names(name, says):
    with pytest.raises(ValueError, match=says):
        word_problem(name)


def test_wrong_factors():
    with pytest.raises(ValueError, match="p must be 0 without a group, M has none"):
        word_problem("M", p=0.5)
    with pytest.raises(ValueError, match="groups must be groups; give monoids as monoids, got 'M'"):
        WordProblem((aperiodic(),))
    with pytest.raises(ValueError, match="groups and monoids must be at least one"):
        WordProblem(())
    assert len(WordProblem((cyclic(3),), (cyclic(2),), p=1.0)) == 6  # a group may be a factor that p leaves alone


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length": 0}, "length must be a whole number >= 1, got 0"),
        ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
        ({"length": 2.0}, "length must be a whole number"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"step": -1}, "step must be a whole number >= 0"),
        ({"rank": -1}, "rank must be a whole number >= 0"),
        ({"split": "trian"}, "unknown split 'trian': did you mean 'train'"),
    ],
)
def test_wrong_batches(change, says):
    with pytest.raises(ValueError, match=says):
        word_problem("S3").draw(**{"batch": 2, "length": 3, **change})


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (torch.tensor([[0, 6]]), r"tokens must be in 0\.\.5, the elements of S3, got \(0, 6\)"),
        (torch.tensor([[-1, 0]]), r"tokens must be in 0\.\.5"),
        (torch.tensor([[0.0, 1.0]]), "dtype of tokens must be an integer type, got torch.float32"),
        (torch.tensor([[True]]), "dtype of tokens must be an integer type"),
        (torch.empty(2, 0, dtype=torch.int64), r"shape of tokens must be \(\.\.\., L\) with L >= 1"),
    ],
)
def test_tokens_of_another_problem(tokens, says):
    with pytest.raises(ValueError, match=says):
        word_problem("S3").targets(tokens)


def test_the_vocabulary_fits_the_model():
    vocabulary = word_problem("A5xM").vocabulary
    vocabulary.check_model(240)
    vocabulary.check_model(256, padded=True)
    with pytest.raises(
        ValueError, match=r"vocab_size of the model must be 240, got 60: the data has 240 tokens \('12345"
    ):
        vocabulary.check_model(60)
    with pytest.raises(ValueError, match="must be 240, got 256"):
        vocabulary.check_model(256)
    with pytest.raises(ValueError, match="must be at least 240, got 239"):
        vocabulary.check_model(239, padded=True)


def test_vocabulary_input():
    with pytest.raises(ValueError, match=r"names must be all different, got \['a'\]"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="names must be at least one name"):
        Vocabulary([])
    words = Vocabulary(["kitchen", "garden"])
    assert words == Vocabulary(["kitchen", "garden"]) != Vocabulary(["garden", "kitchen"])
    assert "garden" in words
    with pytest.raises(
        ValueError, match="unknown word 'kitchn', it is not among the 2 of the vocabulary: did you mean"
    ):
        words.encode(["kitchn"])
    with pytest.raises(ValueError, match=r"token must be in 0\.\.1, got 2"):
        words.decode([2])


@pytest.mark.parametrize("name", ["A5:2", "A5:6", "A5:12", "S5:4", "S5:8", "S5:32", "S3:2"])
def test_tokens_of_generators_reach_the_whole_group(name):
    problem = word_problem(name)
    words = problem.draw(64, 200, seed=1)
    group, chosen = problem.groups[0], problem.groups[0].generators(int(name.partition(":")[2]))
    assert words.inputs.unique().tolist() == chosen.tolist()
    assert 0 not in chosen
    assert len(words.targets[:, 100:].unique()) == len(group)
    assert torch.equal(problem.targets(words.inputs), words.targets)
    assert problem.name == name
    assert len(problem) == len(group)
    assert problem.groups[0].generators(len(chosen)).tolist() == chosen.tolist()


def test_generators_leave_the_other_draws_alone():
    plain, all_of_them = word_problem("S3"), word_problem("S3").draw(4, 9, seed=2)
    assert torch.equal(plain.draw(4, 9, seed=2).inputs, all_of_them.inputs)
    assert plain.generators is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("S5:0", r"generators of S5 must be a whole number in 1..119, got 0"),
        ("S5:120", r"generators of S5 must be a whole number in 1..119, got 120"),
        ("S5:1", r"generators of S5 must be more than 1"),
        ("S5:x", r"generators of a name must be a whole number"),
        ("A5xM:2", r"generators must be None for anything but one group, got 2"),
    ],
)
def test_generators_that_cannot_be_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        word_problem(name)
