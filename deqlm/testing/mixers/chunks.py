"""A mixer is causal and pure, and chunks equal the whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deqlm.testing.check import expect
from deqlm.testing.mixers.inputs import F64, Make, by_chunks, cache_leaves, expect_close, inputs

__all__ = [
    "a_cache_is_read_and_never_written",
    "caches_do_not_depend_on_the_chunks",
    "chunks_equal_the_whole",
    "finite_differences_agree",
    "has_the_names_of_a_mixer",
    "later_tokens_and_other_rows_change_nothing",
    "nothing_injected_is_zero_injected",
    "nothing_stays_on_the_module",
    "rows_of_a_cache_can_be_chosen",
    "says_its_cost_and_where_input_enters",
]

NAMES = ("d_model", "d_inject", "forward_chunk", "empty_cache")


def has_the_names_of_a_mixer(make: Make) -> None:
    """It is an nn.Module with d_model, d_inject, forward_chunk and empty_cache, and z keeps shape and dtype."""
    mixer = make()
    expect(isinstance(mixer, nn.Module), "{} is no nn.Module", type(mixer).__name__)
    missing = [name for name in NAMES if not hasattr(mixer, name)]
    expect(not missing, "{} is missing", ", ".join(missing))
    z, u = inputs(mixer.double())
    y = mixer(z, u)
    expect(y.shape == z.shape, "z is {}, the output {}", tuple(z.shape), tuple(y.shape))
    expect(y.dtype == z.dtype, "z is {}, the output {}", z.dtype, y.dtype)


def chunks_equal_the_whole(make: Make) -> None:
    """Chunk after chunk, token by token or at once: the outputs agree to rounding."""
    for cuts in (range(1, 21), range(3, 21, 3), (16,), (), (1, 2, 9)):
        mixer = make().double()
        z, u = inputs(mixer)
        y, _ = by_chunks(mixer, z, u, cuts)
        expect_close(y, mixer(z, u), f"chunks that end at {list(cuts)} and the whole")


def caches_do_not_depend_on_the_chunks(make: Make) -> None:
    """The cache after all tokens is the same, in type and value, however they were cut."""
    mixer = make().double()
    z, u = inputs(mixer)
    caches = [list(cache_leaves(by_chunks(mixer, z, u, cuts)[1])) for cuts in ((1, 2, 9), ())]
    expect(len(caches[0]) == len(caches[1]), "{} values and {}", len(caches[0]), len(caches[1]))
    for a, b in zip(*caches, strict=True):
        expect(type(a) is type(b), "{} and {}", type(a).__name__, type(b).__name__)
        if isinstance(a, Tensor):
            expect_close(a, b, "caches of chunks and of the whole")
        else:
            expect(a == b, "caches of chunks and of the whole: {!r} and {!r}", a, b)


def a_cache_is_read_and_never_written(make: Make) -> None:
    """An evaluation leaves the cache that it reads as it was, so that a second one gives the same bits."""
    mixer = make().double()
    z, u = inputs(mixer)
    _, cache = by_chunks(mixer, z, u, (4,))
    before = [t.clone() if isinstance(t, Tensor) else t for t in cache_leaves(cache)]
    first = mixer.forward_chunk(z[:, :2], u[:, :2], cache)[0]
    second = mixer.forward_chunk(z[:, :2], u[:, :2], cache)[0]
    expect(torch.equal(first, second), "a second evaluation differs by {}", (first - second).abs().max())
    for a, b in zip(cache_leaves(cache), before, strict=True):
        same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        expect(same, "the cache holds {}, and held {}", a, b)


def rows_of_a_cache_can_be_chosen(make: Make) -> None:
    """cache.rows(index) goes on with those rows, in that order, repeated or left out."""
    mixer = make().double()
    z, u = inputs(mixer)
    _, cache = mixer.forward_chunk(z[:, :9], u[:, :9], mixer.empty_cache(3))
    rows = torch.tensor([2, 0, 2])
    chosen = mixer.forward_chunk(z[rows, 9:], u[rows, 9:], cache.rows(rows))[0]
    expect_close(chosen, mixer.forward_chunk(z[:, 9:], u[:, 9:], cache)[0][rows], "chosen rows and all")


def later_tokens_and_other_rows_change_nothing(make: Make) -> None:
    """The output at a token depends on that token, the ones before and its own row only, NaN elsewhere included."""
    mixer = make().double()
    z, u = inputs(mixer)
    y = mixer(z, u)
    z[:, 12:], u[:, 12:] = torch.randn_like(z[:, 12:]), torch.randn_like(u[:, 12:])
    z[1], u[1] = torch.nan, torch.nan
    rows = [0, 2]
    changed = mixer(z, u)
    expect_close(changed[rows, :12], y[rows, :12], "tokens before those that changed")
    expect(not torch.allclose(changed[rows, 12:], y[rows, 12:]), "the output does not depend on z and u")


def nothing_injected_is_zero_injected(make: Make) -> None:
    """u=None has the bits of a u of zeros, and another u another output."""
    mixer = make().double()
    z, u = inputs(mixer)
    expect(torch.equal(mixer(z), mixer(z, torch.zeros_like(u))), "u=None and u=0 differ")
    expect(not torch.allclose(mixer(z), mixer(z, u)), "u changes nothing")


def nothing_stays_on_the_module(make: Make) -> None:
    """An evaluation adds, changes and removes no attribute and no buffer, and writes neither z nor u."""
    mixer = make().double()
    z, u = inputs(mixer)
    given = z.clone(), u.clone()

    def look() -> dict[str, object]:
        found: dict[str, object] = {}
        for name, part in mixer.named_modules():
            found |= {f"{name}.{attribute}": id(value) for attribute, value in vars(part).items()}
            found |= {f"{name}.{buffer}": (id(t), t._version) for buffer, t in part.named_buffers(recurse=False)}
        return found

    before = look()
    mixer(z, u)
    by_chunks(mixer, z, u, (4,))
    after = look()
    moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    expect(not moved, "{} changed", ", ".join(moved))
    expect(torch.equal(z, given[0]) and torch.equal(u, given[1]), "z or u was written")


def says_its_cost_and_where_input_enters(make: Make) -> None:
    """A flops(context) never falls with the context; an input_weight() is the W with mixer(0, W v) = mixer(v)."""
    mixer = make().double()
    if hasattr(mixer, "flops"):
        counts = [mixer.flops(context) for context in (0, 1, 9)]
        rising = all(type(n) is int and n >= 0 for n in counts) and counts == sorted(counts)
        expect(rising, "flops of a past of 0, 1 and 9 tokens are {}", counts)
    if hasattr(mixer, "input_weight"):
        z, _ = inputs(mixer)
        weight, want = mixer.input_weight(), (mixer.d_inject, mixer.d_model)
        expect(
            tuple(weight.shape) == want, "input_weight() is {}, and (d_inject, d_model) {}", tuple(weight.shape), want
        )
        expect_close(mixer(torch.zeros_like(z), z @ weight.T), mixer(z), "v injected by its weight and v as the state")


def finite_differences_agree(make: Make) -> None:
    """Gradcheck of a chunk for z, u and what it reads from the cache, and through the chunk that made the cache."""
    mixer = make().double()
    first, then = inputs(mixer, batch=2, length=3), inputs(mixer, batch=2, length=4)
    _, cache = mixer.forward_chunk(*first, mixer.empty_cache(2))

    def through(z0: Tensor, u0: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return mixer.forward_chunk(z, u, mixer.forward_chunk(z0, u0, mixer.empty_cache(2))[1])[0]

    asked = [t.requires_grad_() for t in (*first, *then)]
    expect(torch.autograd.gradcheck(through, asked, fast_mode=True), "gradcheck through two chunks fails")
    if hasattr(cache, "_replace"):
        _from_the_cache(mixer, cache, then)


def _from_the_cache(mixer: nn.Module, cache: object, chunk: tuple[Tensor, Tensor]) -> None:
    """Differentiate by the tensors of a cache that is a named tuple."""
    fields = cache._asdict()  # type: ignore[attr-defined]
    held = {name: t.detach().requires_grad_() for name, t in fields.items() if isinstance(t, Tensor) and t.dtype == F64}

    def run(*tensors: Tensor) -> Tensor:
        z, u, *rest = tensors
        read = cache._replace(**dict(zip(held, rest, strict=True)))  # type: ignore[attr-defined]
        return mixer.forward_chunk(z, u, read)[0]  # type: ignore[operator]

    expect(torch.autograd.gradcheck(run, (*chunk, *held.values()), fast_mode=True), "gradcheck by the cache fails")
