"""The cache that ``generate`` carries: a value behind in-place names, never written itself."""

from __future__ import annotations

import copy

import pytest
import torch

from deqlm.hf import DecodeCache
from models.families import contract, make

FAMILIES = ["mamba2", "llama"]


def leaves(cache):
    return [leaf for layer in cache.value.layers for leaf in layer if isinstance(leaf, torch.Tensor)] + [cache.state]


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return contract(make(request.param)).eval()


@torch.no_grad()
def filled(model, rows=3):
    ids = torch.arange(rows * 4).view(rows, 4) % 13
    return DecodeCache().after(model(ids, use_cache=True))


@torch.no_grad()
def next_logits(model, cache, ids):
    return model(ids, cache=cache.value).logits


def test_an_empty_one_says_so():
    cache = DecodeCache()
    assert (cache.batch_size, cache.get_seq_length(), cache.value, cache.state) == (-1, 0, None, None)
    assert cache.get_max_length() == cache.get_max_cache_shape() == -1
    cache.reorder_cache(torch.tensor([0]))
    cache.batch_repeat_interleave(3)
    assert cache.value is None
    assert repr(cache) == "DecodeCache(batch_size=-1, tokens=0)"


def test_it_holds_what_the_call_left(model):
    with torch.no_grad():
        out = model(torch.tensor([[1, 2, 3]]), use_cache=True)
    cache = DecodeCache().after(out)
    assert cache.value is out.cache
    assert torch.equal(cache.state, out.state[:, -1:])
    assert cache.state.untyped_storage().nbytes() == cache.state.nbytes  # no view of the whole prompt
    assert (cache.batch_size, cache.get_seq_length(), cache.get_seq_length(1)) == (1, 3, 3)
    with pytest.raises(ValueError, match="use_cache=True"):
        cache.after(model(torch.tensor([[1]])))
    with pytest.raises(ValueError, match="the batch of the state must be that of the cache, 1, got 2"):
        DecodeCache(cache.value, cache.state.repeat(2, 1, 1))


def test_rows_move_together_and_no_tensor_is_written(model):
    cache = filled(model)
    value, before = cache.value, [leaf.clone() for leaf in leaves(cache)]
    ids = torch.tensor([[4], [5], [6]])
    want = next_logits(model, cache, ids)
    other = copy.copy(cache)
    other.reorder_cache(torch.tensor([2, 0, 0]))
    got = next_logits(model, other, ids[[2, 0, 0]])
    torch.testing.assert_close(got, want[[2, 0, 0]], rtol=1e-6, atol=1e-6)
    assert torch.equal(other.state, cache.state[[2, 0, 0]])
    assert cache.value is value
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(cache), strict=True))


def test_repeat_and_select_are_index_selections(model):
    cache = filled(model)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    assert torch.equal(cache.state[0], cache.state[1])
    cache.batch_select_indices(torch.tensor([1, 5]))
    rows = filled(model)
    rows.reorder_cache(torch.tensor([0, 2]))
    assert all(torch.equal(a, b) for a, b in zip(leaves(cache), leaves(rows), strict=True))
    with pytest.raises(ValueError, match="repeats must be a whole number >= 1, got 0"):
        cache.batch_repeat_interleave(0)
    cache.reset()
    assert cache.batch_size == -1


def test_padding_moves_with_its_row(model):
    ids, mask = torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]]), torch.tensor([[False, False, True, True], [True] * 4])
    with torch.no_grad():
        cache = DecodeCache().after(model(ids, mask=mask, use_cache=True))
    cache.reorder_cache(torch.tensor([1, 0]))
    assert cache.value.committed.tolist() == [4, 2]
    assert cache.get_seq_length() == 4


def test_tokens_cannot_be_taken_back(model):
    with pytest.raises(NotImplementedError, match="cannot take tokens back"):
        filled(model).crop(-1)


def test_a_copy_is_independent(model):
    cache = filled(model)
    deep = copy.deepcopy(cache)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(leaves(cache), leaves(deep), strict=True))
