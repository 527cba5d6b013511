"""Sequences and labels of the automata, against slow readings of the same sentences."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.loop import IGNORED
from examples.state_tracking.automata import contract as contracts
from examples.state_tracking.automata.contract import Contract
from examples.state_tracking.automata.tasks import CONTRACTS, TABLE, contract


def test_docstrings():
    assert not doctest.testmod(contracts).failed


def read(name, tokens):
    """Return the answer to one sequence, told by Python itself."""
    words = [CONTRACTS[name].inputs[token] for token in tokens]
    if name == "parity":
        return words.count("b") % 2
    if name == "even_pairs":
        text = "".join(words)
        return sum(text[i : i + 2] in ("ab", "ba") for i in range(len(text) - 1)) % 2
    if name == "cycle_navigation":
        return sum(map(int, words)) % 5
    assert words[-1] == "="
    return eval("".join(words[:-1])) % 5


ONE_ANSWER = [name for name, found in CONTRACTS.items() if found.label == "last token"]


@pytest.mark.parametrize("name", ONE_ANSWER)
@given(length=st.integers(2, 60), seed=st.integers(0, 10**6))
def test_answers_are_what_the_words_say(name, length, seed):
    found = contract(name)
    ids, answers = found.draw(5, length, seed=seed)
    assert ids.shape == (5, found.tokens(length))
    assert ids.dtype == answers.dtype == torch.int64
    assert int(ids.max()) < len(found.inputs)
    assert answers.tolist() == [read(name, row) for row in ids.tolist()]


@given(length=st.integers(2, 60), seed=st.integers(0, 10**6))
def test_a_session_prints_what_python_would(length, seed):
    found = contract("repl_traces")
    ids, targets = found.draw(4, length, seed=seed)
    assert ids.shape == targets.shape == (4, found.tokens(length))
    assert torch.equal(found.labels(ids, targets), targets)
    for tokens, labels in zip(ids.tolist(), targets.tolist(), strict=True):
        words, state, told = [found.inputs[token] for token in tokens], dict(zip("abcde", "01234", strict=True)), []
        for statement, one, other in zip(words[::3], words[1::3], words[2::3], strict=True):
            if statement == "print":
                told += [IGNORED, int(state[one]), IGNORED]
                assert other == state[one]
            else:
                told += [IGNORED] * 3
                assert one != other
                state[one], state[other] = state[other], state[one]
        assert told == labels
        assert words[-3] == "print"


@pytest.mark.parametrize("name", ONE_ANSWER)
def test_every_token_and_answer_occurs(name):
    found = contract(name)
    ids, answers = found.draw(400, 20)
    assert ids.unique().tolist() == list(range(len(found.inputs)))
    assert answers.unique().tolist() == list(range(len(found.answers)))


def test_a_batch_depends_on_its_arguments_only():
    parity = contract("parity")
    first, again = parity.draw(64, 9, seed=3, step=4), parity.draw(64, 9, seed=3, step=4)
    assert torch.equal(first[0], again[0])
    others = [{"seed": 2, "step": 4}, {"seed": 3, "step": 5}, {"seed": 3, "step": 4, "split": "test"}]
    assert not any(torch.equal(first[0], parity.draw(64, 9, **other)[0]) for other in others)


def test_one_label_counts():
    ids, answers = contract("parity").draw(3, 4)
    labels = contract("parity").labels(ids, answers)
    assert (labels[:, :-1] == IGNORED).all()
    assert torch.equal(labels[:, -1], answers)


def test_the_source_rounds_lengths_up_where_an_equals_sign_ends_them():
    assert [contract("modular_arithmetic").tokens(n) for n in (3, 4, 39)] == [4, 4, 40]
    assert contract("modular_arithmetic_brackets").tokens(3) == 4


def test_a_contract_says_all_that_a_result_needs():
    for name in TABLE:
        line, data = contract(name).line(), contract(name).to_dict()
        assert all(part in line for part in (name, "3-40", "40-256", "last token only", "exact", data["revision"][:12]))
        assert data["label"] == "last token"
        assert len(data["revision"]) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fidelity": "near"}, "fidelity must be 'exact' or 'reconstructed', got 'near'"),
        ({"trained": (1, 40)}, "shortest length of trained must be a whole number >= 2, got 1"),
        ({"tested": (9, 8)}, "tested must be shortest length first, got"),
    ],
)
def test_a_contract_that_cannot_be_is_refused(change, message):
    given = {name: getattr(contract("parity"), name) for name in Contract.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        Contract(**{**given, **change})


def test_what_cannot_be_drawn_is_named():
    parity = contract("parity")
    with pytest.raises(ValueError, match="length must be a whole number >= 2, got 1"):
        parity.draw(2, 1)
    with pytest.raises(ValueError, match="unknown split 'tests'"):
        parity.draw(2, 5, split="tests")
    with pytest.raises(KeyError, match=r"unknown task 'party'.*parity"):
        contract("party")
