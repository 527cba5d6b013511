"""A mixer that another package registers makes a language model, and says itself what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deqlm.models import LMOptions, MixerOptions, model_cost
from deqlm.models.options import MIXERS
from deqlm_solvers import options
from models.shift import Counted, Shift


@pytest.fixture
def registered(monkeypatch):
    """Make options of language models with a mixer of that class."""

    def register(kind: type[Shift]) -> LMOptions:
        @options
        class ShiftOptions(MixerOptions):
            def make(self, d_model: int, **more: Any) -> nn.Module:
                return kind(d_model, **more)

        MIXERS.register("shift", override=True)(ShiftOptions)
        return LMOptions(vocab_size=11, d_model=8, n_layer=2, mixer="shift")  # type: ignore[arg-type]

    monkeypatch.setattr(MIXERS, "_classes", dict(MIXERS._classes))
    return register


def test_a_registered_mixer_says_what_it_costs(registered):
    sizes = registered(Counted)
    model, cost = sizes.make("meta"), model_cost(sizes, context=5)
    backbone, token = model.backbone, torch.zeros(1, 1, 8, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.forward_chunk(token, None, backbone.empty_cache(1))
    assert cost.evaluation == counter.get_total_flops()
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    ids = torch.tensor([[3, 1, 4]])
    assert registered(Counted).make().eval()(ids).logits.isfinite().all()


def test_one_that_does_not_say_is_refused_with_the_remedy(registered):
    with pytest.raises(TypeError, match=r"the cost of a Shift is not known: give it flops\(context\)"):
        model_cost(registered(Shift))
