"""Groups and monoids: axioms, and products against permutations that are composed one by one."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.state_tracking import data

GROUPS = ["Z1", "Z2", "Z7", "S1", "S2", "S3", "S4", "S5", "A1", "A3", "A4", "A5", "S3xZ2", "A4xZ5", "Z2xZ2xZ2"]
ORDERS = dict(zip(GROUPS, [1, 2, 7, 1, 2, 6, 24, 120, 1, 3, 12, 60, 12, 60, 8], strict=True))
MONOIDS = ["M", "F", "MxM", "MxF", "A5xM"]


def whole(name):
    return data.word_problem(name).algebra


@pytest.mark.parametrize("name", [*GROUPS, *MONOIDS])
def test_axioms(name):
    algebra = whole(name)
    n = len(algebra)
    assert n == ORDERS.get(name, n)
    assert len(set(algebra.elements)) == n
    assert algebra.table.min() >= 0
    assert algebra.table.max() < n
    assert algebra.is_associative()
    everything = np.arange(n)
    assert (algebra.times(np.zeros_like(everything), everything) == everything).all()
    assert (algebra.times(everything, np.zeros_like(everything)) == everything).all()
    assert algebra.is_group == (name in GROUPS)


@pytest.mark.parametrize("name", GROUPS)
def test_inverses(name):
    algebra = whole(name)
    everything = np.arange(len(algebra))
    inverse = algebra.inverse(everything)
    assert (algebra.times(everything, inverse) == 0).all()
    assert (algebra.times(inverse, everything) == 0).all()
    assert (np.sort(algebra.table, axis=1) == everything).all()  # a Latin square
    assert (np.sort(algebra.table, axis=0) == everything[:, None]).all()


def test_monoids_have_no_inverses():
    with pytest.raises(ValueError, match="M must be a group to have inverses"):
        data.aperiodic().inverse(np.array([1]))


def even(images):
    swaps = 0
    images = list(images)
    for i in range(len(images)):  # sort by swaps and count them
        while images[i] != i:
            j = images[i]
            images[i], images[j] = images[j], images[i]
            swaps += 1
    return swaps % 2 == 0


@pytest.mark.parametrize(("name", "n"), [("S3", 3), ("S4", 4), ("S5", 5), ("A3", 3), ("A4", 4), ("A5", 5)])
def test_tables_compose_permutations(name, n):
    """Elements in lexicographic order; a·b maps i to a(b(i)), as the authors' data has it."""
    known = [images for images in permutations(range(n)) if name[0] == "S" or even(images)]
    number = {images: k for k, images in enumerate(known)}
    table = [[number[tuple(a[b[i]] for i in range(n))] for b in known] for a in known]
    algebra = whole(name)
    assert algebra.table.tolist() == table
    assert algebra.elements == tuple("".join(str(i + 1) for i in images) for images in known)


def test_the_direction_of_composition_shows():
    """ "213" after "132" is not "132" after "213": a table of the other direction would swap these two."""
    group = data.symmetric(3)
    a, b = group.elements.index("213"), group.elements.index("132")
    assert group.elements[group.table[a, b]] == "231"
    assert group.elements[group.table[b, a]] == "312"


def test_cyclic_groups_add():
    assert all(data.cyclic(9).table[a, b] == (a + b) % 9 for a in range(9) for b in range(9))


def test_the_authors_monoid():
    rows = {"E": "EABX", "A": "AXXX", "B": "BABX", "X": "XXXX"}
    monoid = data.aperiodic()
    assert {a: "".join(monoid.elements[k] for k in monoid.table[i]) for i, a in enumerate(monoid.elements)} == rows
    powers = np.arange(4)
    for _ in range(3):
        powers = monoid.times(powers, np.arange(4))
    assert (monoid.times(powers, np.arange(4)) == powers).all()  # aperiodic: x^5 = x^4


def test_flip_flop_keeps_the_last_write():
    monoid = data.flip_flop()
    word = [monoid.elements.index(letter) for letter in "EESEREESSE"]
    assert [monoid.elements[k] for k in monoid.running(np.array(word))] == list("EESSRRRSSS")


@pytest.mark.parametrize("name", ["S3xZ2", "A4xZ5", "A5xM", "S3xMxF"])
def test_direct_products_work_on_each_factor(name):
    problem = data.word_problem(name)
    sizes = [len(factor) for factor in problem.factors]
    rng = np.random.default_rng(3)
    left, right = rng.integers(len(problem), size=(2, 200))
    got = np.unravel_index(problem.algebra.times(left, right), sizes)
    parts = zip(problem.factors, np.unravel_index(left, sizes), np.unravel_index(right, sizes), strict=True)
    for result, (factor, a, b) in zip(got, parts, strict=True):
        assert (result == factor.table[a, b]).all()


@given(st.sampled_from(["S3", "A5", "M", "F", "Z5"]), st.integers(1, 40), st.integers(0, 2**32))
def test_running_products_equal_a_loop(name, length, seed):
    algebra = whole(name)
    x = np.random.default_rng(seed).integers(len(algebra), size=(3, length))
    expected = []
    for row in x:
        state, states = 0, []
        for element in row:
            state = algebra.table[state, element]
            states.append(state)
        expected.append(states)
    before = x.copy()
    assert algebra.running(x).tolist() == expected
    assert (x == before).all()


def test_wrong_tables_are_refused():
    good = np.array([[0, 1], [1, 0]])
    data.Algebra("Z2", ("0", "1"), good)
    with pytest.raises(ValueError, match=r"table must be \(3, 3\)"):
        data.Algebra("bad", ("0", "1", "2"), good)
    with pytest.raises(ValueError, match=r"products of bad must be whole numbers in 0\.\.1"):
        data.Algebra("bad", ("0", "1"), good * 2)
    with pytest.raises(ValueError, match="products of bad must be whole numbers"):
        data.Algebra("bad", ("0", "1"), good * 1.0)
    with pytest.raises(ValueError, match="element 0 of bad must be the identity, got 'a'"):
        data.Algebra("bad", ("a", "b"), np.array([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match="must be associative"):
        data.adjoin_identity("bad", "ab", [[1, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"table must be \(2, 2\)"):
        data.adjoin_identity("bad", "ab", [[1]])


@pytest.mark.parametrize("make", [data.cyclic, data.symmetric, data.alternating])
def test_orders(make):
    with pytest.raises(ValueError, match="whole number >= 1, got 0"):
        make(0)
    with pytest.raises(ValueError, match="small enough for a group of at most 1000 elements, got 2000"):
        make(2000)


def test_products_that_do_not_fit_in_memory():
    with pytest.raises(ValueError, match="order of S6xS6 must be at most"):
        _ = data.word_problem("S6xS6").algebra
