"""States along the way, losses on them, normalised weights and rows that wait, by the names of torchdeq."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import deqlm
from defects.maps import F64
from deqlm.compat import torchdeq as ours
from deqlm.testing.solvers.counting import Counted


def slowly(z: Tensor) -> Tensor:
    return -1.01 * z + 1


def ours_makes_all_evaluations() -> None:
    counted = Counted(slowly)
    deq = ours.get_deq(core="sliced", n_states=3, f_max_iter=10, f_tol=0.0)
    states, _ = deq(counted, torch.zeros(1, 2))
    assert len(states) == 3
    assert counted.calls - 3 == 10


def theirs_drops_the_remainder_of_the_states() -> None:
    from defects import peer

    counted = Counted(slowly)
    states, _ = peer.torchdeq.get_deq(core="sliced", n_states=3, f_max_iter=10, f_tol=1e-9)(counted, torch.zeros(1, 2))
    assert len(states) == 3
    assert counted.calls - 3 == 9, "ten solver steps were asked for, besides the three that carry the gradient"


def absolute(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def ours_corrects_everywhere() -> None:
    states = [torch.zeros(2) for _ in range(3)]
    loss = ours.fp_correction(absolute, (states, torch.ones(2)), weight_func="const")
    assert loss.shape == ()
    assert loss.item() == 3.0


def theirs_corrects_on_cuda_only() -> None:
    from defects import peer

    def corrected() -> Tensor:
        states = [torch.zeros(2) for _ in range(3)]
        return peer.torchdeq.loss.fp_correction(absolute, (states, torch.ones(2)), weight_func="const")

    if torch.cuda.is_available():
        assert corrected().shape == (3,), "a loss should be a number"
        return
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        corrected()


def ours_has_weights_that_never_go_stale() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.ones(1, 3)
    ours.apply_norm(model, norm_clip=True, norm_clip_value=5.0)
    before = model(x)
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    assert not torch.equal(model(x), before)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


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


def ours_returns_every_state() -> None:
    for solver in ("fixed_point_iter", "anderson", "broyden"):
        _, states, _ = ours.get_solver(solver)(
            slowly, torch.zeros(1, 2, dtype=F64), indexing=[1, 2, 3], max_iter=10, tol=0.0
        )
        assert len(states) == 3


def theirs_returns_one_state_too_few() -> None:
    from defects import peer

    solver = peer.get_solver("broyden")
    _, states, _ = solver(slowly, torch.zeros(1, 2, dtype=F64), indexing=[1, 2, 3], max_iter=10, tol=0.0)
    assert len(states) == 2


def chain(z: Tensor, weight: Tensor) -> Tensor:
    """Each row follows from the one before it, as the steps of a sampler do."""
    before = torch.cat([torch.ones(1, z.shape[1], dtype=z.dtype), z[:-1]])
    return before * weight


def ours_wakes_rows_that_begin_solved() -> None:
    weight = torch.tensor(0.9, dtype=F64, requires_grad=True)
    sol = deqlm.solve(lambda z: chain(z, weight), torch.zeros(5, 2, dtype=F64), batch_dims=0, solver="fixed_point")
    sol.z[-1].sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(2 * 5 * 0.9**4, rel=1e-6)


def theirs_leaves_them_asleep() -> None:
    from defects import peer

    weight = torch.tensor(0.9, dtype=F64, requires_grad=True)
    deq = peer.torchdeq.get_deq(f_max_iter=20, f_tol=1e-9, ift=True, b_max_iter=50, b_tol=1e-9)
    (z,), info = deq(lambda z: chain(z, weight), torch.zeros(5, 2, dtype=F64))
    z[-1].sum().backward()
    assert info["abs_lowest"].max() == 0, "every row is said to be solved"
    assert z[2:].eq(0).all()
    assert weight.grad == 0


def penalised(library, **options) -> Tensor:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, dtype=F64)
    deq = library.get_deq(f_max_iter=200, f_tol=1e-12, b_max_iter=200, b_tol=1e-12, **options)
    (z,), _ = deq(lambda z: 0.9 * torch.sin(layer(z)), torch.zeros(2, 4, dtype=F64))
    torch.manual_seed(1)
    return library.jac_reg(0.9 * torch.sin(layer(z)), z)


def ours_penalises_the_jacobian_of_f() -> None:
    torch.testing.assert_close(penalised(ours, hook_ift=True), penalised(ours, ift=True))


def theirs_penalises_another_matrix() -> None:
    from defects import peer

    hooked, plain = (penalised(peer.torchdeq, **{name: True}) for name in ("hook_ift", "ift"))
    assert abs(hooked.item() - plain.item()) > 0.1 * plain.item()


def pair(a: Tensor, b: Tensor) -> list[Tensor]:
    return [0.5 * b + 1, 0.5 * a]


def ours_takes_lists_of_states_by_indexing() -> None:
    deq = ours.get_deq(f_solver="simple_fixed_point_iter", core="indexing", f_max_iter=40).eval()
    (state,), _ = deq(pair, [torch.zeros(2, 3), torch.zeros(2, 3)])
    torch.testing.assert_close(state[0], torch.full((2, 3), 4 / 3))


def theirs_crashes_on_lists_of_states() -> None:
    from defects import peer

    deq = peer.torchdeq.get_deq(f_solver="simple_fixed_point_iter", core="indexing", f_max_iter=40).eval()
    with pytest.raises(AttributeError, match="device"):
        deq(pair, [torch.zeros(2, 3), torch.zeros(2, 3)])
