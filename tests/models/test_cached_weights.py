"""Models whose weights are made by torch's own parametrizations."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from deqlm.layers import Attention, Block
from deqlm.models import Backbone, ImplicitLM


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_weights_that_torch_caches_keep_their_gradient(kind):
    """Within parametrize.cached() the first use makes a weight, and that of a solve has no graph."""
    torch.manual_seed(0)
    model = ImplicitLM(Backbone([Block(Attention(8, n_head=2))], weight_norm=False), vocab_size=5).double()
    for layer in [m for m in model.backbone.modules() if type(m) is nn.Linear]:
        kind(layer)
    ids, grads = torch.randint(5, (2, 4)), []
    for cached in (False, True):
        model.zero_grad()
        with parametrize.cached() if cached else nullcontext():
            loss = model(ids, labels=ids).loss
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, kept in zip(*grads, strict=True):
        torch.testing.assert_close(kept, plain)
    with parametrize.cached():
        with torch.no_grad():
            model(ids, on_failure="ignore")
        with pytest.raises(RuntimeError, match="the weight of a ParametrizedLinear that a call without grad made"):
            model(ids)
