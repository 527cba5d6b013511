"""A layer that returns more than the new state, and one that cannot start at zero."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import deqlm

Out = namedtuple("Out", ["state", "weights"])


class Rich(nn.Module):
    """Half of its input, in a container."""

    def __init__(self, made):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.made = made

    def forward(self, z):
        value = 0.5 * self.linear(z).tanh()
        return self.made(value, z.sum())


FORMS = {
    "tuple": (lambda value, more: (value, more), 0),
    "list from its end": (lambda value, more: [more, value], -1),
    "dict": (lambda value, more: {"state": value, "loss": more}, "state"),
    "named tuple": (Out, "state"),
    "named tuple by position": (Out, 0),
    "object": (lambda value, more: SimpleNamespace(state=value), "state"),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_part_of_the_output_is_the_state(form):
    made, output = FORMS[form]
    layer, x = Rich(made), torch.randn(4, 3)
    deq = deqlm.DEQ(layer, output=output, stop={"rtol": 1e-6})
    y, sol = deq(x, with_stats=True)
    assert sol.converged.all()
    torch.testing.assert_close(y, 0.5 * layer.linear(y + x).tanh(), rtol=0, atol=1e-5)
    y.sum().backward()
    assert layer.linear.weight.grad is not None
    assert sum(1 for _ in deq.parameters()) == 2


def test_a_recurrent_layer_needs_one_word():
    torch.manual_seed(0)
    gru = nn.GRU(4, 4, batch_first=True)
    x = torch.randn(2, 5, 4)
    y = deqlm.DEQ(gru, output=0, stop={"rtol": 1e-6})(x)
    torch.testing.assert_close(y, gru(y + x)[0], rtol=0, atol=1e-5)


def test_a_function_may_return_more_too():
    weight = torch.randn(3, 3) / 4
    deq = deqlm.DEQ(lambda z: ((z @ weight).tanh(), "more"), output=0)
    assert deq(torch.randn(2, 3)).shape == (2, 3)
    norm = nn.BatchNorm1d(3)
    with pytest.warns(UserWarning, match="uses the module 'norm'"):
        deq = deqlm.DEQ(lambda z: (0.1 * norm(z), 1), output=0, batch_dims=0)
    deq(torch.randn(8, 3))
    assert norm.num_batches_tracked == 1


def test_state_dicts_go_round_and_diagnosis_sees_the_part():
    torch.manual_seed(0)
    one, other = (deqlm.DEQ(nn.GRU(4, 4, batch_first=True), output=0) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(one(x), other(x))
    assert deqlm.diagnose(one, x).converged


@pytest.mark.parametrize("output", [1.5, True, [0], Out])
def test_an_output_that_is_no_part_is_refused(output):
    with pytest.raises(ValueError, match="output must be a position or a name"):
        deqlm.DEQ(nn.Linear(3, 3), output=output)
    with pytest.raises(ValueError, match="output must be a position or a name"):
        deqlm.DEQ(lambda z: z, output=output)


@pytest.mark.parametrize(
    ("layer", "output", "error", "text"),
    [
        (nn.Linear(3, 3), 0, TypeError, "output=0 needs a layer that returns a tuple, a list or names, got a tensor"),
        (Rich(Out), 2, ValueError, "a position below 2, got 2"),
        (Rich(Out), "stat", ValueError, "a position below 2, got 'stat'"),
        (Rich(lambda v, m: {"state": v}), "loss", ValueError, "one of the names 'state', got 'loss'"),
        (Rich(lambda v, m: {"state": v}), 0, ValueError, "one of the names 'state', got 0"),
        (nn.GRU(3, 3), None, TypeError, "say which part is the new state, DEQ(layer, output=0)"),
    ],
)
def test_a_part_that_is_not_there_is_named(layer, output, error, text):
    x = torch.zeros(2, 4, 3) if isinstance(layer, nn.GRU) else torch.zeros(2, 3)
    with pytest.raises(error) as caught:
        deqlm.DEQ(layer, output=output)(x)
    assert text in str(caught.value)


class Picky(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        if not z.any():
            raise RuntimeError("singular at zero")
        return z.cos()


def test_an_error_at_the_default_start_says_that_there_are_others():
    deq, zero, one = deqlm.DEQ(Picky()), torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="singular at zero") as caught:
        deq(zero)
    assert any("give start=" in note for note in caught.value.__notes__)
    assert deq(zero, start=one).shape == (2, 3)
    with pytest.raises(RuntimeError, match="singular at zero") as caught:
        deq(zero, start=zero)
    assert not hasattr(caught.value, "__notes__")
