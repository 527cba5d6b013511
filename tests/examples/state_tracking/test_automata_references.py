"""The references: their recurrences against explicit matrices in float64, and that they learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.state_tracking.automata import references
from examples.state_tracking.automata.references import LSTM, PDSSM, DeltaProduct, Reference, delta_product, pd_ssm

LAYERS = {"lstm": LSTM, "delta_product": DeltaProduct, "pd_ssm": PDSSM}


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_delta_product_is_a_product_of_householder_matrices():
    torch.manual_seed(0)
    length, steps, size = 6, 3, 4
    q, k = drawn(1, length, 1, size), F.normalize(drawn(1, length, steps, 1, size), dim=-1)
    v, beta, gate = (
        drawn(1, length, steps, 1, 2),
        2 * torch.rand(1, length, steps, 1).double(),
        torch.rand(1, length, 1),
    )
    state, eye = torch.zeros(size, 2).double(), torch.eye(size).double()
    for t in range(length):
        transition, entering = gate[0, t, 0] * eye, torch.zeros(size, 2).double()
        for j in range(steps):
            key, step = k[0, t, j, 0], beta[0, t, j, 0]
            reflection = eye - step * torch.outer(key, key)
            transition = reflection @ transition
            entering = reflection @ entering + step * torch.outer(key, v[0, t, j, 0])
        state = transition @ state + entering
        found = delta_product(q, k, v, beta, gate)[0, t, 0]
        torch.testing.assert_close(found, state.T @ q[0, t, 0])


def test_two_reflections_make_a_rotation():
    k = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).view(1, 1, 2, 1, 2).expand(1, 3, 2, 1, 2)
    v = torch.zeros(1, 3, 2, 1, 2)
    v[0, 0, 0, 0] = torch.tensor([1.0, 0.0])
    beta, gate, q = torch.full((1, 3, 2, 1), 2.0), torch.ones(1, 3, 1), torch.eye(2)
    rows = [delta_product(row.expand(1, 3, 1, 2), k, v, beta, gate)[0, :, 0] for row in q]
    lengths = torch.stack(rows).square().sum((0, 2))
    torch.testing.assert_close(lengths[1:], lengths[:1].expand(2))


def test_pd_ssm_is_a_walk_of_columns_with_one_entry():
    torch.manual_seed(0)
    size, length = 4, 7
    select, inputs = drawn(1, length, size, size), torch.complex(drawn(1, length, size), drawn(1, length, size))
    diagonal = torch.polar(torch.rand(1, length, size).double(), drawn(1, length, size))
    state = torch.tensor([1.0, 0, 0, 0], dtype=torch.complex128)
    found = pd_ssm(select, diagonal, inputs)
    for t in range(length):
        later = inputs[0, t].clone()
        for column in range(size):
            later[int(select[0, t, :, column].argmax())] += diagonal[0, t, column] * state[column]
        state = later
        torch.testing.assert_close(found[0, t], state)


def test_pd_ssm_runs_an_automaton_exactly():
    flips = torch.tensor([0, 1, 1, 0, 1, 1, 1])
    swap, stay = torch.tensor([[0.0, 1], [1, 0]]), torch.eye(2)
    select = torch.stack([swap if flip else stay for flip in flips])[None]
    ones = torch.ones(1, len(flips), 2, dtype=torch.complex64)
    states = pd_ssm(select, ones, 0 * ones)[0]
    assert states.real.argmax(-1).tolist() == (flips.cumsum(0) % 2).tolist()


def test_the_choice_of_a_column_has_the_gradient_of_its_softmax():
    torch.manual_seed(0)
    select = torch.randn(1, 1, 3, 3, requires_grad=True)
    ones = torch.ones(1, 1, 3, dtype=torch.complex64)
    weights = torch.tensor([1.0, -2.0, 3.0])
    (pd_ssm(select, ones, 0 * ones).real * weights).sum().backward()
    soft = select.detach().clone().requires_grad_()
    (soft.softmax(-2)[0, 0, :, 0] * weights).sum().backward()
    torch.testing.assert_close(select.grad, soft.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_causal_and_all_of_it_is_trained(name):
    torch.manual_seed(0)
    model = Reference(5, 8, [LAYERS[name](8), LAYERS[name](8)])
    ids = torch.randint(5, (3, 7))
    labels = torch.full_like(ids, -100)
    labels[:, -1] = 1
    output = model(ids, labels=labels)
    later = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % 5], dim=1)
    torch.testing.assert_close(model(later).logits[:, :4], output.logits[:, :4])
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model(ids).loss is None


def test_a_mask_is_refused():
    with pytest.raises(ValueError, match="mask must be None"):
        Reference(2, 4, [nn.Identity()])(torch.zeros(1, 2).long(), mask=torch.ones(1, 2).bool())


def test_sizes_below_one_are_named():
    for make, name in ((lambda: DeltaProduct(8, steps=0), "steps"), (lambda: PDSSM(8, size=0), "size")):
        with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got 0"):
            make()
    assert set(references.__all__) > {"Reference", "Output"}
