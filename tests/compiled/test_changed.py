"""Compiled calls of inputs and layers that are odd, or were changed since; captured maps run by torch's operations."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import deqlm
from deqlm import DEQ, Compile, NotCompiledError

QUICK = Compile(loop="python")
EXACT = {"rtol": 1e-6}


class Cell(nn.Module):
    """tanh of an affine map; what it returns can be changed."""

    def __init__(self, after=None):
        super().__init__()
        self.affine = nn.Linear(3, 3)
        with torch.no_grad():
            self.affine.weight.mul_(0.5)
        self.after = after

    def forward(self, z):
        out = torch.tanh(self.affine(z))
        return out if self.after is None else self.after(out)


class Scaled(nn.Module):
    """Multiplies by a number."""

    factor = 1.0

    def forward(self, z):
        return self.factor * z


@pytest.fixture
def cell():
    torch.manual_seed(0)
    return Cell()


def pair(layer, **settings):
    """Return a DEQ that is compiled and the same that is not."""
    return DEQ(layer, stop=EXACT, compile=QUICK, **settings), DEQ(layer, stop=EXACT, **settings)


def gradients(deq, x):
    return torch.autograd.grad(deq(x).square().sum(), list(deq.parameters()))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("solver", ["fixed_point", "anderson"])
def test_states_without_numbers_are_solved_at_every_call(cell, shape, solver):
    deq, _ = pair(cell if shape[1] else nn.Tanh(), solver=solver)
    with torch.no_grad():
        for _ in range(3):
            assert deq(torch.zeros(shape)).shape == shape
    x = torch.zeros(shape, requires_grad=True)
    deq(x).sum().backward()
    assert x.grad.shape == shape


def test_an_input_that_is_negated_when_it_is_read(cell):
    x = torch.randn(2, 3, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    deq, eager = pair(cell)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(deq(x), eager(x))


def test_weights_that_are_cached_for_the_call_are_quiet_and_get_their_gradients(cell):
    parametrizations.weight_norm(cell.affine)
    deq, eager = pair(cell)
    x = torch.randn(2, 3)
    expected = gradients(eager, x)
    with parametrize.cached():  # warnings are errors here
        deq(x).square().sum().backward()
    for one, p in zip(expected, cell.parameters(), strict=True):
        torch.testing.assert_close(p.grad, one, rtol=1e-4, atol=1e-5)


def test_a_layer_that_moves_buffers_in_place_of_one_that_moves_none_is_refused(cell):
    cell.after = nn.Identity()
    deq, _ = pair(cell)
    with torch.no_grad():
        for _ in range(2):
            deq(torch.ones(4, 3))
        cell.after = nn.BatchNorm1d(3)
        for _ in range(2):
            with pytest.raises(NotCompiledError, match="moves buffers"):
                deq(torch.ones(4, 3))
    assert cell.after.num_batches_tracked <= 2


@pytest.mark.parametrize(
    ("after", "error", "rule"),
    [
        (torch.Tensor.double, ValueError, "the dtype of f"),
        (lambda out: out[:, :2], ValueError, "the shape of f"),
        (lambda out: (out, out), TypeError, "the structure of z"),
    ],
)
def test_a_layer_that_returns_something_else_since_says_so_as_it_does_eagerly(cell, after, error, rule):
    deq, _ = pair(cell)
    with torch.no_grad():
        for _ in range(2):
            deq(torch.ones(2, 3))
        cell.after = after
        with pytest.raises(error, match=rule):
            deq(torch.ones(2, 3))


def test_a_layer_that_cannot_be_compiled_since_is_solved_eagerly_where_that_was_asked(cell):
    deq = DEQ(cell, stop=EXACT, compile=Compile(loop="python", on_refuse="eager"))
    eager = DEQ(cell, stop=EXACT)
    x = torch.ones(2, 3)
    with torch.no_grad():
        for _ in range(2):
            deq(x)
        cell.after = lambda out: 2 * out if float(out.sum()) > 1e9 else out
        with pytest.warns(UserWarning, match="solving eagerly"):
            y, sol = deq(x, with_stats=True)
        z, other = eager(x, with_stats=True)
    assert torch.equal(y, z)
    assert sol.cost == other.cost


@pytest.mark.slow
def test_a_number_that_changes_is_compiled_anew_and_refused_when_it_always_does():
    layer = Cell()
    layer.after = Scaled()
    deq, eager = pair(layer, on_failure="ignore")
    x = torch.ones(2, 3)
    for layer.after.factor in (0.125, 0.25, 0.5):
        for one, other in zip(gradients(deq, x), gradients(eager, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    layer.after.factor = 0.75
    with torch._dynamo.config.patch(recompile_limit=3), pytest.raises(NotCompiledError, match="as a tensor"):
        deq(x)


def test_a_copy_of_a_compiled_function_looks_at_what_the_function_reaches(cell):
    made = copy.deepcopy(deqlm.compile(lambda z: cell(z), loop="python"))
    with torch.no_grad():
        made(torch.ones(2, 3))
        made = copy.deepcopy(made)
        for _ in range(2):
            made(torch.ones(2, 3))
        cell.register_forward_hook(lambda module, args, out: 0.5 * out)
        with pytest.raises(NotCompiledError, match="has a hook"):
            made(torch.ones(2, 3))


def test_threads_that_call_one_module_wait_for_no_compiler(cell):
    deq, eager = pair(cell)
    inputs = [torch.randn(2, 3) for _ in range(3)]
    expected = [eager(x).detach() for x in inputs]
    wrong = []

    def call(i):
        for k in range(4):
            try:
                with torch.set_grad_enabled(k % 2 == 0):
                    torch.testing.assert_close(deq(inputs[i]).detach(), expected[i])
            except Exception as error:
                wrong.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filters belong to all threads at once
        threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
