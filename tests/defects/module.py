"""The module as PyTorch uses it: copies, whole saves, dropout."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch import nn

import deqlm
from defects.maps import F64, small_layer
from deqlm import Stop
from deqlm.testing.gradients.layers import solver_for


def ours_survives_pickle_and_torch_save() -> None:
    x = torch.randn(3, 4, dtype=F64)
    for name in deqlm.GRADIENTS:
        solver = solver_for(name)
        deq = deqlm.DEQ(small_layer(), solver=solver, gradient=name)
        stream = io.BytesIO()
        torch.save(deq, stream)
        stream.seek(0)
        for twin in (pickle.loads(pickle.dumps(deq)), torch.load(stream, weights_only=False)):
            assert torch.equal(twin(x), deq(x))


def theirs_cannot_be_pickled() -> None:
    from defects import peer

    for options in ({}, {"ift": True}, {"hook_ift": True}):
        with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
            pickle.dumps(peer.torchdeq.get_deq(**options))


def ours_draws_one_mask_per_call_for_any_batch_and_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float32, F64):
        layer = nn.Sequential(small_layer(dtype), nn.Dropout(0.5)).train()
        rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
        deq = deqlm.DEQ(layer, stop=Stop(rtol=rtol), solver="fixed_point")
        for rows in (3, 5):
            x = torch.randn(rows, 4, dtype=dtype)
            y, sol = deq(x, with_stats=True)
            assert y.dtype == dtype
            assert sol.converged.all(), "one mask per call, else there is no fixed point"
            assert 0 < int((y == 0).sum()) < y.numel()
        assert not torch.equal(deq(x) == 0, deq(x) == 0), "a new mask in the next call"


def theirs_keeps_dtype_and_shape_of_its_first_mask() -> None:
    from defects import peer

    dropout = peer.torchdeq.dropout.VariationalDropout(0.5)
    assert dropout(torch.ones(4, 3, dtype=torch.bfloat16)).dtype == torch.float32
    with pytest.raises(RuntimeError, match="expanded size"):
        dropout(torch.ones(5, 3))
