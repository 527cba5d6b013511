"""The contract suite catches wrong mixers: each one here breaks one promise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm.layers import Attention, Context, Mamba2, VariationalDropout
from deqlm.testing import check_mixer, mixer_checks


@dataclass(frozen=True)
class Sum:
    """What a Right has summed, (B, D), and how many slots it has seen."""

    state: Tensor
    slots: int = 0

    def rows(self, index: Tensor) -> Sum:
        return replace(self, state=self.state[index])


class Right(nn.Module):
    """A decaying sum of all tokens, right in everything."""

    def __init__(self, d_model: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_model = self.d_inject = d_model
        self.in_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = VariationalDropout(dropout, d_model)

    def forward(self, z, u=None, context=None):
        return self.forward_chunk(z, u, self.empty_cache(len(z)), context)[0]

    def forward_chunk(self, z, u, cache, context=None):
        context = Context() if context is None else context
        x, h, sums = self.read(z, u, context), cache.state, []
        for t in range(z.shape[1]):
            h = self.next(h, x[:, t].to(h.dtype))
            sums.append(h)
        y = context.apply(self.out_proj, torch.stack(sums, dim=1).to(x.dtype))
        return context.keep(self.drop(y, context)), Sum(h, cache.slots + z.shape[1])

    def read(self, z, u, context):
        x = context.apply(self.in_proj, context.keep(z))
        return context.keep(x if u is None else x + u)

    def next(self, h, x):
        return 0.5 * h + x

    def drop(self, y, context):
        return context.apply(self.dropout, y)

    def flops(self, context):
        return 2 * self.d_model

    def input_weight(self):
        return self.in_proj.weight

    def empty_cache(self, batch):
        weight = next(iter(self.out_proj.parameters()))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return Sum(torch.zeros(batch, self.d_model, dtype=dtype, device=weight.device))


class HasNoCache(Right):
    empty_cache = property()


class ReturnsDouble(Right):
    def forward(self, z, u=None, context=None):
        return super().forward(z, u, context).float()


class ForgetsTheCache(Right):
    def forward_chunk(self, z, u, cache, context=None):
        return super().forward_chunk(z, u, self.empty_cache(len(z)), context)


class CountsTheLastChunk(Right):
    def forward_chunk(self, z, u, cache, context=None):
        y, cache = super().forward_chunk(z, u, cache, context)
        return y, replace(cache, slots=z.shape[1])


class WritesTheCache(Right):
    def forward_chunk(self, z, u, cache, context=None):
        y, new = super().forward_chunk(z, u, cache, context)
        cache.state.copy_(new.state)
        return y, new


@dataclass(frozen=True)
class Sorted(Sum):
    def rows(self, index: Tensor) -> Sum:
        return super().rows(index.sort().values)


class SortsRows(Right):
    def forward_chunk(self, z, u, cache, context=None):
        y, new = super().forward_chunk(z, u, cache, context)
        return y, Sorted(new.state, new.slots)


class LooksAhead(Right):
    def read(self, z, u, context):
        x = super().read(z, u, context)
        return x + 0.1 * x.roll(-1, dims=1)


class MixesRows(Right):
    def read(self, z, u, context):
        x = super().read(z, u, context)
        return x + 1e-6 * x.mean(0)


class InjectsOfItself(Right):
    def read(self, z, u, context):
        return super().read(z, torch.ones_like(z) if u is None else u, context)


class IgnoresWhatIsInjected(Right):
    def read(self, z, u, context):
        return super().read(z, None, context)


class RemembersItsInput(Right):
    def read(self, z, u, context):
        self.last = z.detach()
        return super().read(z, u, context)


class WritesItsInput(Right):
    def read(self, z, u, context):
        if not z.requires_grad:
            z.clamp_(-1.0, 1.0)
        return super().read(z, u, context)


class CountsDown(Right):
    def flops(self, context):
        return 100 - context


class SwapsItsInput(Right):
    def input_weight(self):
        return self.in_proj.weight.T


class CutsTheGraph(Right):
    def next(self, h, x):
        return 0.5 * h.detach() + x


class ReadsPadding(Right):
    def read(self, z, u, context):
        x = context.apply(self.in_proj, context.keep(z))
        return x if u is None else x + context.keep(u)


class CountsPadding(Right):
    def forward_chunk(self, z, u, cache, context=None):
        y, new = super().forward_chunk(z, u, cache, context)
        place = cache.slots + torch.arange(z.shape[1], dtype=y.dtype, device=y.device)
        return y * (1 + 0.01 * place[:, None]), new


class ProjectsNaN(Right):
    def read(self, z, u, context):
        x = context.apply(self.in_proj, z)
        return context.keep(x if u is None else x + u)


class DrawsEachTime(Right):
    def drop(self, y, context):
        return F.dropout(y, self.dropout.p, training=self.training)


class NeverDraws(Right):
    def drop(self, y, context):
        return y


class ReadsPastItsLayer(Right):
    def read(self, z, u, context):
        x = F.linear(context.keep(z), self.in_proj.weight, self.in_proj.bias)
        return context.keep(x if u is None else x + u)


class HasAnIdleParameter(Right):
    def __init__(self, d_model: int, dropout: float = 0.0) -> None:
        super().__init__(d_model, dropout)
        self.idle = nn.Parameter(torch.ones(3))


class CannotBeCopied(Right):
    def __reduce_ex__(self, protocol):
        raise TypeError("there is one only")


class SumsInHalf(Right):
    def empty_cache(self, batch):
        weight = next(iter(self.out_proj.parameters()))
        return Sum(torch.zeros(batch, self.d_model, dtype=weight.dtype, device=weight.device))


class LivesOnTheCpu(Right):
    def __init__(self, d_model: int, dropout: float = 0.0) -> None:
        super().__init__(d_model, dropout)
        self.in_proj.bias = nn.Parameter(torch.zeros(d_model, device="cpu"))


CAUGHT = [
    (HasNoCache, "has_the_names_of_a_mixer"),
    (ReturnsDouble, "has_the_names_of_a_mixer"),
    (ForgetsTheCache, "chunks_equal_the_whole"),
    (CountsTheLastChunk, "caches_do_not_depend_on_the_chunks"),
    (WritesTheCache, "a_cache_is_read_and_never_written"),
    (SortsRows, "rows_of_a_cache_can_be_chosen"),
    (LooksAhead, "chunks_equal_the_whole"),
    (LooksAhead, "later_tokens_and_other_rows_change_nothing"),
    (MixesRows, "later_tokens_and_other_rows_change_nothing"),
    (InjectsOfItself, "nothing_injected_is_zero_injected"),
    (IgnoresWhatIsInjected, "nothing_injected_is_zero_injected"),
    (RemembersItsInput, "nothing_stays_on_the_module"),
    (WritesItsInput, "nothing_stays_on_the_module"),
    (CountsDown, "says_its_cost_and_where_input_enters"),
    (SwapsItsInput, "says_its_cost_and_where_input_enters"),
    (CutsTheGraph, "finite_differences_agree"),
    (ReadsPadding, "padding_changes_no_real_token"),
    (CountsPadding, "padding_changes_no_real_token"),
    (CountsPadding, "generation_goes_on_from_padded_prompts"),
    (ProjectsNaN, "nan_at_padding_reaches_no_gradient"),
    (DrawsEachTime, "noise_and_weights_hold_within_a_call"),
    (NeverDraws, "noise_and_weights_hold_within_a_call"),
    (ReadsPastItsLayer, "calls_its_layers_in_every_evaluation"),
    (HasAnIdleParameter, "weight_norm_changes_no_value"),
    (CannotBeCopied, "can_be_copied_pickled_and_saved"),
    (SumsInHalf, "precisions_are_kept"),
    (LivesOnTheCpu, "can_be_made_on_the_meta_device"),
]


@pytest.mark.parametrize(("wrong", "promise"), CAUGHT)
def test_wrong_mixers_are_caught(wrong: type[Right], promise: str) -> None:
    check = dict(mixer_checks(wrong))[promise]
    with pytest.raises(AssertionError, match=rf"{wrong.__name__} breaks '{promise}'\n  asked: .+\n  seen: .+"):
        check()


def test_every_promise_is_broken_by_one_of_them() -> None:
    assert {promise for _, promise in CAUGHT} == {label for label, _ in mixer_checks(Right)}


def test_a_right_mixer_passes() -> None:
    check_mixer(Right)
    check_mixer(lambda **more: Right(6, **more))


def test_a_mixer_without_noise_that_a_function_made_passes() -> None:
    class Quiet(Right):
        def __init__(self, d_model: int) -> None:
            super().__init__(d_model)

    check_mixer(Quiet)
    check_mixer(lambda: Quiet(6))


def test_what_makes_no_mixer_is_refused() -> None:
    with pytest.raises(TypeError, match="mixer must be a class or a function that makes one, got an object Right"):
        check_mixer(Right(4))
    with pytest.raises(TypeError, match="mixer must be a class or a function that makes one, got an object str"):
        check_mixer("mamba2")  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"mixer Attention cannot be made as Attention\(16\): .*n_head.* lambda \*\*more"
    ):
        check_mixer(Attention)
    with pytest.raises(TypeError, match=r"mixer Mamba2 cannot be made as Mamba2\(16\): .*headdim"):
        check_mixer(Mamba2)
