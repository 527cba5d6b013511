"""Language models are diagnosed as they evaluate and generate; one with two solutions is named."""

from __future__ import annotations

import pytest
import torch

import deqlm
from deqlm import Anderson, Stop
from deqlm.diagnostics import Cause, Probes
from deqlm.layers import Attention, Block
from deqlm.models import Backbone, ImplicitLM

IDS = torch.arange(12).reshape(2, 6)
QUICK = Probes(krylov=12)


def model(two_solutions: bool = False) -> ImplicitLM:
    """Return a small model; with two solutions its state is drawn to a direction or to its opposite."""
    torch.manual_seed(0)
    made = ImplicitLM(Backbone([Block(Attention(16, n_head=2))], weight_norm=False), vocab_size=12).eval()
    if two_solutions:
        mixer = made.backbone.layers[0].mixer
        with torch.no_grad():
            mixer.wv.weight.copy_(torch.ones(16, 16) / 16)
            mixer.out_proj.weight.copy_(5 * torch.eye(16))
            made.backbone.injection.weight.mul_(0.05)
            made.backbone.injection.bias.zero_()
    return made


def test_a_model_with_two_solutions_is_named():
    lm = model(two_solutions=True)
    found = deqlm.diagnose(lm, IDS, probes=QUICK)
    assert found.converged
    assert found.cause is Cause.PATH_DEPENDENT
    assert "cached and uncached text of a model may differ" in " ".join(str(found).split())
    with torch.no_grad():
        one, other = (lm(IDS, start=sign * torch.ones(1, 1, 16)).state for sign in (1.0, -1.0))
    assert (one - other).norm() > one.norm()


def test_a_loose_tolerance_hides_no_second_solution():
    found = deqlm.diagnose(lambda z: torch.tanh(2 * z), torch.full((4, 6), 0.5), stop=Stop(rtol=0.1), probes=QUICK)
    assert found.cause is Cause.PATH_DEPENDENT


def test_a_healthy_model_is_healthy_and_left_as_it_was():
    lm = model().train()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    found = deqlm.diagnose(lm, IDS, probes=QUICK)
    assert found.healthy
    assert found.causality == "causal"
    assert found.solver == "FixedPoint(damping=0.8)"
    assert lm.training
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())


def test_padding_is_left_out():
    lm = model()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :2] = False
    found = deqlm.diagnose(lm, IDS, token_mask=mask, probes=QUICK)
    with torch.no_grad():
        steps = lm(IDS, mask=mask, mode="simultaneous").solution.steps
    assert found.steps == tuple(steps.tolist())


def test_a_suggestion_can_be_applied_to_a_model():
    lm = model()
    lm.no_grad = deqlm.Solve("fixed_point", Stop(max_iter=3, rtol=1e-4, per="token"))
    found = deqlm.diagnose(lm, IDS, probes=QUICK)
    assert found.suggestion.worked
    made = found.suggestion.apply(lm)
    assert made.backbone is lm.backbone
    assert lm.no_grad.stop.max_iter == 3
    with torch.no_grad():
        assert bool(made(IDS, mode="simultaneous").solution.converged.all())


def test_bad_requests_are_refused():
    with pytest.raises(TypeError, match="token_mask"):
        deqlm.diagnose(model(), IDS, solver=Anderson())
    twin = ImplicitLM(Backbone([Block(Attention(16, n_head=2))], implicit=False), vocab_size=12)
    with pytest.raises(ValueError, match="solves nothing"):
        deqlm.diagnose(twin, IDS)


def test_a_model_of_hugging_face_is_its_inner_one():
    pytest.importorskip("transformers")
    from deqlm.hf import ImplicitLlamaConfig, ImplicitLlamaForCausalLM

    config = ImplicitLlamaConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    lm = ImplicitLlamaForCausalLM(config).eval()
    found = deqlm.diagnose(lm, IDS, probes=QUICK)
    assert found.unknowns == 6 * 16
    assert found.status == deqlm.diagnose(lm.lm, IDS, probes=QUICK).status


def test_derivatives_of_a_model_are_those_by_its_state():
    """Weight normalisation makes weights once per call, without a graph where grad mode is off."""
    torch.manual_seed(0)
    normed = ImplicitLM(Backbone([Block(Attention(16, n_head=2))]), vocab_size=12).eval()
    found = deqlm.diagnose(normed, IDS, probes=QUICK)
    assert found.contraction is not None
    assert found.contraction.radius is not None
