"""Only matrices decay, every parameter is in one group, and one step equals AdamW written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deqlm.models import preset
from deqlm.training import adamw, decay_groups


def names(model, group):
    of = {id(p): name for name, p in model.named_parameters()}
    return {of[id(p)] for p in group["params"]}


def test_matrices_of_the_models_decay_and_nothing_else():
    small = {"d_model": 32, "vocab_size": 60}
    model = preset("mamba2-state-tracking-implicit").replace(**small).make()
    decaying, kept = decay_groups(model, 0.1)
    assert names(model, decaying) == {
        "backbone.injection.weight_v",
        *(f"backbone.layers.0.mixer.{part}.weight_v" for part in ("in_proj", "conv1d", "out_proj")),
    }
    assert names(model, decaying) | names(model, kept) == {name for name, _ in model.named_parameters()}
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    assert {name for group in decay_groups(model, 0.0) for name in names(model, group)} == {"1.weight", "1.bias"}


def test_a_step_is_the_rule_of_adamw():
    model = nn.Linear(3, 2).double()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adamw(model, lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    model(torch.ones(1, 3, dtype=torch.float64)).pow(2).sum().backward()
    optimizer.step()
    # after one step both moments, corrected for their start, are the gradient and its square
    for old, new, decay in zip(before, model.parameters(), (0.5, 0.0), strict=True):
        g = new.grad
        expected = old * (1 - 0.1 * decay) - 0.1 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-12, atol=1e-12)


def test_bad_values_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weight_decay must be >= 0"):
        adamw(model, lr=0.1, weight_decay=-1)
    with pytest.raises(ValueError, match="lr must be > 0"):
        adamw(model, lr=0)
    with pytest.raises(ValueError, match="model must be a module with trainable parameters, got 'ReLU'"):
        adamw(nn.ReLU(), lr=0.1)
