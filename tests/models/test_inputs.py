"""What a call is given: dtypes, shapes and values that are taken, and errors that name what is not."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from deqlm.sequence.modes import Auto, Chunked, Frontier, Sequential, Simultaneous
from deqlm_solvers import FixedPoint, Solve, Stop
from models.families import BLOCKS, VOCAB, WIDTH, contract, make

WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]
MODES = [Simultaneous(), Chunked(3), Chunked("auto"), Sequential(), Frontier(2), Auto()]
IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


@pytest.fixture(params=["mamba2", "llama"])
def model(request):
    return contract(make(request.param, torch.float32))


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_whole_numbers_of_any_width_are_tokens_and_labels(model, dtype):
    labels = IDS.clone()
    if dtype.is_signed:
        labels[0, 1] = -100
    want = model(IDS, labels=labels)
    got = model(IDS.to(dtype), labels=labels.to(dtype))
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.loss, want.loss)


@pytest.mark.parametrize("keep", [torch.tensor([0, -1]), torch.tensor([0, 3], dtype=torch.int32)], ids=str)
def test_logits_of_an_index(model, keep):
    with torch.no_grad():
        want = model(IDS).logits[:, [0, 3]]
        torch.testing.assert_close(model(IDS, logits_to_keep=keep).logits, want)
        mask = torch.tensor([True, False, False, True])
        torch.testing.assert_close(model(IDS, logits_to_keep=mask).logits, want)


ZEROS = torch.zeros(2, 4, WIDTH)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"ids": [[1, 2]]}, TypeError, "ids must be a tensor, got list"),
        ({"ids": np.ones((1, 2), dtype=int)}, TypeError, "ids must be a tensor, got ndarray"),
        (
            {"ids": IDS.float()},
            ValueError,
            "ids must be whole numbers of shape.*got 'torch.float32",
        ),
        ({"ids": IDS.bool()}, ValueError, r"ids must be whole numbers of shape \(B, L\), got 'torch.bool"),
        ({"ids": (IDS - 100).to(torch.int8)}, ValueError, "ids must be from 0 to 12, got '-99 to -91'"),
        ({"ids": (IDS + 200).to(torch.uint8)}, ValueError, "ids must be from 0 to 12, got '201 to 209'"),
        ({"embeddings": ZEROS.long()}, ValueError, r"embeddings must be floating point, got torch\.int64"),
        ({"embeddings": [1.0]}, TypeError, "embeddings must be a tensor, got list"),
        ({"ids": IDS, "mask": [True]}, TypeError, "mask must be a tensor, got list"),
        ({"ids": IDS, "mask": torch.ones(2, 4)}, ValueError, r"mask must be bool of shape \(2, 4\)"),
        ({"ids": IDS, "labels": IDS.tolist()}, TypeError, "labels must be a tensor, got list"),
        ({"ids": IDS, "labels": IDS.float()}, ValueError, "labels must be whole numbers, got torch.float32"),
        ({"ids": IDS, "labels": IDS.bool()}, ValueError, "labels must be whole numbers, got torch.bool"),
        ({"ids": IDS, "labels": IDS[:1]}, ValueError, r"labels must be of shape \(2, 4\), got \(1, 4\)"),
        ({"ids": IDS, "labels": IDS - 4}, ValueError, "labels must be -100 or from 0 to 12, got '-3 to 5'"),
        ({"ids": IDS, "labels": IDS, "label_count": 0}, ValueError, "label_count must be a number > 0, got 0"),
        ({"ids": IDS, "labels": IDS, "label_count": torch.ones(2)}, ValueError, "label_count must be one number"),
        ({"ids": IDS, "stop": 3}, TypeError, "stop must be a Stop, got int"),
        ({"ids": IDS, "start": [0.0]}, (TypeError, ValueError), "start must"),
        ({"ids": IDS, "start": ZEROS.long()}, ValueError, "start must be"),
        ({"ids": IDS, "start": ZEROS[0]}, ValueError, "start must be"),
        ({"ids": IDS, "logits_to_keep": torch.ones(1)}, ValueError, "logits_to_keep must be whole numbers of shape"),
        (
            {"ids": IDS, "logits_to_keep": torch.tensor([4])},
            ValueError,
            "logits_to_keep must be from -4 to 3",
        ),
        ({"ids": IDS, "logits_to_keep": True}, ValueError, "logits_to_keep must be a whole number"),
    ],
)
def test_errors_name_argument_value_and_rule(model, given, kind, message):
    with pytest.raises(kind, match=message):
        model(**given)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("family", BLOCKS)
def test_a_batch_without_rows_has_logits_without_rows(family, mode, implicit):
    model = make(family, torch.float32, implicit=implicit)
    for length in (1, 7):
        ids = torch.zeros(0, length, dtype=torch.int64)
        for mask in (None, torch.ones(0, length, dtype=torch.bool)):
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    out = model(ids, mask=mask, mode=mode, use_cache=True)
                    again = model(ids[:, :1], cache=out.cache)
                assert out.logits.shape == (0, length, VOCAB)
                assert again.logits.shape == (0, 1, VOCAB)
                assert out.solution is None or out.solution.status.shape == (0,)
        out.logits.sum().backward()


@pytest.mark.parametrize("how", [Solve("anderson"), Solve("broyden"), Solve(FixedPoint(), Stop(max_iter=3, rtol=0))])
def test_no_rows_and_other_solvers(how):
    model = make("llama", no_grad=how)
    with torch.no_grad():
        assert model(torch.zeros(0, 5, dtype=torch.int64), use_cache=True).cache.batch == 0


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_explicit_twin_takes_every_mode(mode):
    model = make("llama", implicit=False)
    ids = torch.randint(VOCAB, (2, 40))
    torch.testing.assert_close(model(ids, mode=mode).logits, model(ids).logits)


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("elsewhere", [True, False], ids=["device", "dtype"])
def test_defaults_of_torch_leave_a_call_alone(family, elsewhere):
    """ "meta" stands for any device that the model is not on."""
    model = contract(make(family, torch.float32, solve=_by_torch(), no_grad=_by_torch()))
    for block in model.backbone.layers:
        block.mixer.dropout.p = 0.2
    ids, mask = torch.randint(VOCAB, (3, 10)), torch.arange(10)[None] >= torch.tensor([0, 3, 5])[:, None]

    def calls():
        found = []
        with torch.no_grad():
            for mode in (Simultaneous(), Chunked(4), Frontier(4)):
                model.eval()
                found.append(model(ids, mask=mask, mode=mode, labels=ids).loss)
        torch.manual_seed(5)
        model.train().zero_grad()
        loss = model(ids, mask=mask, labels=ids).loss
        loss.backward()
        return [*found, loss.detach(), *(p.grad.clone() for p in model.parameters())]

    want = calls()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(before if elsewhere else torch.float64)
        with torch.device("meta") if elsewhere else nullcontext():
            got = calls()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def _by_torch():
    return Solve(FixedPoint(impl="torch"), Stop(max_iter=60, rtol=1e-4, per="token"))
