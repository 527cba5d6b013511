"""``deqlm info``: what it says of presets and directories, and the costs against a FLOP counter."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deqlm.cli.main import main
from deqlm.models import PRESETS, AttentionOptions, LMOptions, Mamba2Options, model_cost

NAMES = ["mamba2-130m-explicit", "llama3-130m-implicit"]
OPTIONS = {
    "mamba2": LMOptions(vocab_size=11, d_model=16, n_layer=3, mixer=Mamba2Options(d_state=4, headdim=8), tie=False),
    "llama": LMOptions(
        vocab_size=11, d_model=16, n_layer=3, mixer=AttentionOptions(n_head=4, n_kv_head=2), d_hidden=24
    ),
    "window": LMOptions(vocab_size=11, d_model=16, n_layer=1, mixer=AttentionOptions(n_head=2, sliding_window=3)),
    "twin": LMOptions(vocab_size=11, d_model=16, n_layer=2, mixer=Mamba2Options(headdim=8), d_hidden=8, implicit=False),
    "bias": LMOptions(vocab_size=11, d_model=16, n_layer=1, mixer=AttentionOptions(n_head=2), head_bias=True),
}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_presets_are_those_of_the_models(name):
    model, cost = PRESETS[name].make("meta"), model_cost(PRESETS[name])
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.embedding == model.embedding.weight.numel()
    assert cost.backbone == sum(p.numel() for p in model.backbone.parameters())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("context", [0, 5])
def test_flops_are_those_of_a_counter(name, context):
    """The counter sees matrix products; the convolution and the scan of one token are sums it does not see."""
    options, tokens = OPTIONS[name], torch.zeros(1, 1, 16, device="meta")
    # on "meta" attention is two matrix products, not a kernel of the CPU that the counter does not know
    model, cost = options.make("meta"), model_cost(options, context=context)
    backbone, cache = model.backbone, model.backbone.empty_cache(1)

    def counted(call):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            out = call()
        seen = counter.get_flop_counts()["Global"]
        # on "meta" the convolution is that of its layer, which pads on both sides
        return sum(count for op, count in seen.items() if "convolution" not in str(op)), out

    u = None
    with torch.no_grad():
        if context:
            past = torch.zeros(1, context, 16, device="meta")
            _, cache = backbone.forward_chunk(past, backbone.project(past) if options.implicit else None, cache)
    once, unseen = 0, 0
    if options.implicit:
        once, u = counted(lambda: backbone.project(tokens))
    evaluation, _ = counted(lambda: backbone.forward_chunk(tokens, u, cache))
    head, _ = counted(lambda: model.head(tokens))
    mixer = backbone.layers[0].mixer
    if hasattr(mixer, "d_state"):
        unseen = 2 * mixer.conv_dim * mixer.d_conv + 5 * mixer.d_ssm * mixer.d_state + 2 * mixer.d_ssm
    assert cost.evaluation == evaluation + options.n_layer * unseen
    assert cost.once == once + head
    assert cost.per_token(7) == 7 * cost.evaluation + cost.once
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.backbone == sum(p.numel() for p in backbone.parameters())


def test_the_scan_counts_as_its_products_would():
    """Decay, outer product, sum and product with C, written as matrix products that a counter sees."""
    heads, width, size = 4, 8, 4
    with FlopCounterMode(display=False) as counter:
        x, B, state = torch.ones(heads, width, 1), torch.ones(heads, 1, size), torch.ones(heads, width, size)
        _ = (x @ B, state @ B.mT)  # 2 HPN each: the outer product with the sum behind it, and C
    decay = heads * width * size
    assert counter.get_total_flops() + decay == 5 * heads * width * size


def test_all_presets_are_listed(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:26]] == list(PRESETS)
    assert "131,713,328" in lines[3]
    assert "24 + 4" in lines[3]
    assert max(map(len, lines)) <= 140


def test_a_preset_is_described(capsys):
    assert main(["info", "mamba2-130m-implicit"]) == 0
    out = capsys.readouterr().out
    for text in (
        "131,713,328",
        "24 of width 768",
        "phantom (steps 4, damping 0.8)",
        "at most 97 evaluations",
        "d_state 128",
    ):
        assert text in out
    assert main(["info", "llama3-130m-explicit"]) == 0
    out = capsys.readouterr().out
    assert "nothing is solved" in out
    assert "MLP width 2048" in out


def test_json_holds_the_numbers(capsys):
    assert main(["info", "llama3-130m-implicit", "--context", "100", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    cost = model_cost(PRESETS["llama3-130m-implicit"], context=100)
    assert known["flops_per_token"]["evaluation"] == cost.evaluation
    assert known["flops_per_token"]["most"] == cost.per_token(129)
    assert known["parameters"]["total"] == cost.parameters
    assert known["solving"]["grad"]["stop"]["max_iter"] == 32


def test_a_directory_is_described_without_its_weights(tmp_path, capsys):
    hf = pytest.importorskip("deqlm.hf")
    from deqlm.training import Phases, bounded, free

    phases = Phases((bounded().replace(steps=10), free()))
    deq = {"mode": {"name": "chunked", "size": 16}, "phases": phases.to_dict()}
    hf.ImplicitMamba2Config(vocab_size=11, hidden_size=16, num_hidden_layers=2, deq=deq).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for text in ("2 of width 16", "mode chunked (size 16", "phase 1", "10 steps: fixed_point", "phase 2", "to the end"):
        assert text in out
    hf.ImplicitLlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, implicit=False).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["solving"] is None


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "holds no config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "must hold an object, got list"),
        ('{"model_type": "llama"}', "is of a 'llama' model; known families: implicit_mamba2, implicit_llama"),
        ("{}", "is of a None model"),
        ('{"model_type": "implicit_mamba2", "backbone_config": {}}', "import_implicit_llm"),
        ('{"model_type": "implicit_llama", "hiden_size": 8}', "did you mean 'hidden_size'"),
        ('{"model_type": "implicit_llama", "hidden_size": 8, "deq": {"mode": {"name": "chunked", "size": 0}}}', ">= 1"),
    ],
)
def test_directories_that_hold_no_model_of_ours(config, text, tmp_path, capsys):
    folder = str(tmp_path) if config is None else write(tmp_path / "model", config)
    assert main(["info", folder]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert text in out.err
    assert len(out.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["mamba2-130m-implict"], "did you mean 'mamba2-130m-implicit'"),
        (["no/such/directory"], "there is no directory 'no/such/directory'"),
        (["llama3-130m-implicit", "--context", "-1"], "context must be a whole number >= 0, got -1"),
    ],
)
def test_mistakes_are_one_line_and_status_2(argv, text, capsys):
    assert main(["info", *argv]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert text in out.err
    assert len(out.err.strip().splitlines()) == 1


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "deqlm.hf", None)
    assert main(["info", write(tmp_path / "model", '{"model_type": "implicit_llama"}')]) == 2
    assert 'pip install "deqlm[hf]"' in capsys.readouterr().err
    assert main(["info", "llama3-130m-implicit"]) == 0
