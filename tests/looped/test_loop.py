"""A looped decoder computes what it did, until it is given more evaluations."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import deqlm
from deqlm.looped import LoopedBlocks
from deqlm.looped.names import Renamed
from deqlm_solvers import Stop

SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 4}
HEADS = {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
MAMBA = {"head_dim": 8, "num_heads": 4, "state_size": 8, "n_groups": 1, "chunk_size": 8}
IDS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers tells of kernels that are not installed


def make(family: str) -> nn.Module:
    import transformers as hf

    torch.manual_seed(0)
    kinds = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, HEADS),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, HEADS),
        "mamba2": (hf.Mamba2Config, hf.Mamba2ForCausalLM, MAMBA),
    }
    config, kind, sizes = kinds[family]
    return kind(config(**SIZES, **sizes))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return them by the names of the plain model."""
    rename = Renamed(1, 3)
    found = {}
    for name, p in model.named_parameters():
        head, list_, rest = name.partition("layers.")
        found[head + list_ + rename.outside(rest) if list_ else name] = p.grad
    return found


@pytest.fixture(params=["llama", "qwen2", "mamba2"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    plain = make(request.param)
    return plain, deqlm.loop(copy.deepcopy(plain), layers=(1, 3))


def test_one_evaluation_is_the_model_before(pair):
    plain, looped = pair
    want, got = plain(IDS, labels=IDS, use_cache=False), looped(IDS, labels=IDS)
    assert torch.equal(got.logits, want.logits)
    with torch.no_grad():
        assert torch.equal(looped(IDS).logits, want.logits)
    want.loss.backward()
    got.loss.backward()
    ours = gradients(looped)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-6, atol=1e-8, msg=name)


def test_more_evaluations_loop_and_train_the_gate(pair):
    plain, looped = pair
    block = next(part for part in looped.modules() if isinstance(part, LoopedBlocks))
    block.deq.solve = block.deq.solve.replace(stop=Stop(max_iter=3, rtol=0))
    out = looped(IDS, labels=IDS)
    assert not torch.equal(out.logits, plain(IDS, use_cache=False).logits)
    out.loss.backward()
    assert float(block.deq.inject.gate.grad.abs().max()) > 0
    # the loop written out
    h, stack, gate = torch.randn(2, 9, 16), block.deq.layer, block.deq.inject.gate.sigmoid()
    if "Mamba" in type(plain).__name__:
        z = h
        for _ in range(3):
            z = stack(h + gate * (z - h))
        torch.testing.assert_close(block(h), z, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_solve_to_a_tolerance_has_the_gradient_of_the_fixed_point(pair):
    _, looped = pair
    looped.double()
    with torch.no_grad():
        looped.get_input_embeddings().weight.mul_(100)  # beside a state of that size the blocks are tame
    block = next(part for part in looped.modules() if isinstance(part, LoopedBlocks))
    deq = block.deq
    deq.solve, deq.gradient = deqlm.Solve("anderson", Stop(max_iter=200, rtol=1e-10)), deqlm.Implicit()
    out = looped(IDS, labels=IDS)
    out.loss.backward()
    assert bool(deq.last.converged.all())
    deq.solve, deq.gradient = deqlm.Solve("fixed_point", Stop(max_iter=150, rtol=0)), deqlm.Unrolled()
    implicit = deq.inject.gate.grad.clone()
    looped.zero_grad()
    looped(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(implicit, deq.inject.gate.grad, rtol=1e-5, atol=1e-9)


def test_weights_keep_their_names(pair, tmp_path):
    plain, looped = pair
    state = looped.state_dict()
    (extra,) = state.keys() - plain.state_dict().keys()
    assert extra.endswith("layers.1.loop_gate")
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value)
    with torch.no_grad():
        next(m for m in looped.modules() if isinstance(m, LoopedBlocks)).deq.inject.gate.add_(0.3)
    again = deqlm.loop(copy.deepcopy(plain), layers=(1, 3))
    assert not any(again.load_state_dict(looped.state_dict()))
    assert torch.equal(again.state_dict()[extra], looped.state_dict()[extra])
    copied = pickle.loads(pickle.dumps(copy.deepcopy(looped)))
    assert torch.equal(copied(IDS).logits, looped(IDS).logits)


def test_it_is_saved_and_loaded(pair, tmp_path):
    from deqlm.hf import load_looped

    plain, looped = pair
    block = next(m for m in looped.modules() if isinstance(m, LoopedBlocks))
    block.deq.solve = block.deq.solve.replace(stop=Stop(max_iter=2, rtol=0))
    with torch.no_grad():
        block.deq.inject.gate.add_(0.3)
    looped.config.deqlm_loop["stop"] = block.deq.solve.stop.to_dict()
    looped.save_pretrained(tmp_path / "looped")
    again = load_looped(tmp_path / "looped")
    assert torch.equal(again(IDS).logits, looped(IDS).logits)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="not looped"):
        load_looped(tmp_path / "plain")


def test_generate_reads_it_all_and_a_cache_is_refused(pair):
    plain, looped = pair
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(looped.generate(IDS, **how), plain.generate(IDS, use_cache=False, **how))
    with pytest.raises(ValueError, match=r"must be None for looped layers.*use_cache=False"):
        looped(IDS, use_cache=True)


class Decoder(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(count))


@pytest.mark.parametrize("layers", [(1, 1), (2, 1), (0, 4), (-1, 2), (0,), 1, (0.0, 1), (True, 2)])
def test_layers_out_of_range_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers must be \(first, end\) with 0 <= first < end <= 3"):
        deqlm.loop(Decoder(), layers, width=4)


def test_what_cannot_be_looped_is_refused():
    with pytest.raises(TypeError, match=r"nn\.ModuleList named layers, h, blocks"):
        deqlm.loop(nn.Linear(2, 2), (0, 1))
    with pytest.raises(TypeError, match="must be a module"):
        deqlm.loop("gpt2", (0, 1))
    with pytest.raises(ValueError, match="width must be given"):
        deqlm.loop(Decoder(), (0, 1))
    with pytest.raises(ValueError, match=r"gate must be in \(0, 1\)"):
        deqlm.loop(Decoder(), (0, 1), width=4, gate=1.0)
    with pytest.raises(ValueError, match="not looped yet"):
        deqlm.loop(deqlm.loop(Decoder(), (0, 1), width=4), (1, 2), width=4)
    mixed = Decoder()
    for i, block in enumerate(mixed.blocks):
        block.attention_type = f"kind {i}"
    with pytest.raises(ValueError, match="of one attention_type"):
        deqlm.loop(mixed, (0, 2), width=4)
