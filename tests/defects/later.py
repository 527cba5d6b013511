"""Defects of torchdeq whose counterpart here comes later: run beside all the same, so that the table is honest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from defects.maps import F64
from deqlm.testing.solvers.counting import Counted


def slowly(z: Tensor) -> Tensor:
    return -1.01 * z + 1


def theirs_drops_the_remainder_of_the_states() -> None:
    from defects import peer

    counted = Counted(slowly)
    states, _ = peer.torchdeq.get_deq(core="sliced", n_states=3, f_max_iter=10, f_tol=1e-9)(counted, torch.zeros(1, 2))
    assert len(states) == 3
    assert counted.calls - 3 == 9, "ten solver steps were asked for, besides the three that carry the gradient"


def theirs_corrects_on_cuda_only() -> None:
    from defects import peer

    def corrected() -> Tensor:
        states = [torch.zeros(2) for _ in range(3)]
        return peer.torchdeq.loss.fp_correction(
            lambda a, b: (a - b).abs().mean(), (states, torch.ones(2)), weight_func="const"
        )

    if torch.cuda.is_available():
        assert corrected().shape == (3,), "a loss should be a number"
        return
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        corrected()


def normed() -> nn.Sequential:
    from defects import peer

    model = nn.Sequential(nn.Linear(3, 3))
    peer.torchdeq.norm.apply_norm(model)
    return model


def theirs_has_stale_weights_and_two_names() -> None:
    from defects import peer

    with pytest.raises(TypeError, match="norm_clip_value"):
        peer.torchdeq.norm.apply_norm(nn.Sequential(nn.Linear(3, 3)), norm_clip_value=0.5)
    model, x = normed(), torch.ones(1, 3)
    before = model(x)
    with torch.no_grad():
        model[0].weight_g.mul_(2)
    assert torch.equal(model(x), before), "a step of the optimiser has no effect until reset_norm"
    twin = normed()
    twin.load_state_dict(model.state_dict())
    assert not torch.equal(twin(x), model(x))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)


def theirs_returns_one_state_too_few() -> None:
    from defects import peer

    solver = peer.get_solver("broyden")
    _, states, _ = solver(slowly, torch.zeros(1, 2, dtype=F64), indexing=[1, 2, 3], max_iter=10, tol=0.0)
    assert len(states) == 2
