"""The 25 configurations of the authors: sizes to the unit, solver settings, options as data."""

from __future__ import annotations

import pytest
import torch

from deqlm import FixedPoint, Phantom, Stop
from deqlm.models import PRESETS, AttentionOptions, LMOptions, Mamba2Options, preset

# explicit, and implicit (which "-pretrain" equals)
COUNTS = {
    "mamba2-130m": (128_981_184, 131_713_328),
    "mamba2-370m": (368_346_624, 373_215_808),
    "mamba2-760m": (780_161_280, 790_622_816),
    "mamba2-1.3b": (1_343_757_312, 1_361_924_736),
    "llama3-130m": (123_566_592, 125_436_672),
    "llama3-370m": (353_474_560, 356_881_376),
    "llama3-760m": (756_777_984, 764_247_552),
    "llama3-1.3b": (1_310_978_048, 1_324_083_184),
}
PARTS = {
    # embeddings, injection with its norm, all weight_g
    "mamba2-130m": (38_621_184, 2_581_808, 145_240),
    "mamba2-370m": (51_494_912, 4_499_008, 374_560),
    "mamba2-760m": (77_242_368, 9_918_560, 549_424),
    "mamba2-1.3b": (102_989_824, 17_451_648, 724_288),
    "llama3-130m": (38_612_736, 1_774_848, 97_536),
    "llama3-370m": (51_483_648, 3_152_896, 256_992),
    "llama3-760m": (77_225_472, 7_088_640, 385_536),
    "llama3-1.3b": (102_967_296, 12_597_248, 514_032),
}


def count(model, part=""):
    return sum(p.numel() for name, p in model.named_parameters() if part in name)


def test_there_are_25():
    assert len(PRESETS) == 25
    assert {f"{size}-{v}" for size in COUNTS for v in ("explicit", "pretrain", "implicit")} < set(PRESETS)


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_are_those_of_the_paper(size):
    explicit, implicit = COUNTS[size]
    assert count(preset(f"{size}-explicit").make("meta")) == explicit
    assert count(preset(f"{size}-pretrain").make("meta")) == implicit
    model = preset(f"{size}-implicit").make("meta")
    assert count(model) == implicit
    assert (count(model, "embedding"), count(model, "injection"), count(model, "weight_g")) == PARTS[size]


def test_state_tracking_has_the_size_of_the_paper():
    model = preset("mamba2-state-tracking-implicit").make()
    assert count(model) == 1_528_160
    assert model.labels == "aligned"
    ids = torch.randint(240, (2, 3))
    assert model(ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize(
    ("name", "training", "evaluation", "steps"),
    [
        ("mamba2-370m-pretrain", 4, 16, 1),
        ("mamba2-370m-implicit", 24, 96, 4),
        ("llama3-130m-implicit", 32, 128, 4),
        ("llama3-370m-implicit", 24, 96, 4),
        ("mamba2-state-tracking-implicit", 32, 2048, 4),
    ],
)
def test_solvers_are_those_of_the_authors(name, training, evaluation, steps):
    model = preset(name).make("meta")
    assert model.solve.solver == FixedPoint()
    assert model.solve.stop == Stop(max_iter=training, rtol=0.05, keep="best_f")
    assert model.gradient == Phantom(steps, 0.8)
    assert model.no_grad.solver == FixedPoint(damping=0.8)
    assert model.no_grad.stop == Stop(max_iter=evaluation, rtol=0.05, per="token")


def test_pretrain_and_implicit_have_the_same_weights():
    for size in COUNTS:
        one, other = (preset(f"{size}-{v}").make("meta").state_dict() for v in ("pretrain", "implicit"))
        assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}


def test_hidden_widths():
    widths = {size: preset(f"llama3-{size}-explicit").d_hidden for size in ("130m", "370m", "760m", "1.3b")}
    assert widths == {"130m": 2048, "370m": 2730, "760m": 4096, "1.3b": 5461}


@pytest.mark.parametrize("name", PRESETS)
def test_options_are_plain_data(name):
    data = preset(name).to_dict()
    assert LMOptions.from_dict(data) == preset(name)
    assert all(isinstance(value, str | int | float | bool | dict | None) for value in data.values())


def test_a_wrong_name_names_the_right_one():
    with pytest.raises(KeyError, match=r"did you mean 'mamba2-1\.3b-implicit'"):
        preset("mamba2-1.3b-implict")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model must be a whole number >= 1"),
        ({"implicit": False}, "max_iter must be its default 24 where implicit=False"),
        ({"mixer": {"name": "mamba3"}}, "unknown mixer 'mamba3'"),
        ({"mixer": {"name": "mamba2", "d_stat": 3}}, "did you mean 'd_state'"),
        ({"labels": "none"}, "labels must be 'shifted' or 'aligned'"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"damping": 0}, "damping must be in"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        preset("mamba2-130m-pretrain").replace(**change)


def test_mixers_are_built_with_their_options():
    made = LMOptions(vocab_size=9, d_model=24, n_layer=1, mixer=Mamba2Options(headdim=12, ngroups=2)).make()
    assert made.backbone.layers[0].mixer.ngroups == 2
    made = LMOptions(vocab_size=9, d_model=24, n_layer=1, mixer=AttentionOptions(n_head=4, n_kv_head=2)).make()
    assert made.backbone.layers[0].mixer.n_kv_head == 2


def test_half_precision_models_solve_in_float32():
    made = LMOptions(vocab_size=9, d_model=16, n_layer=2, mixer=Mamba2Options(d_state=4, headdim=8))
    model = made.make(dtype=torch.bfloat16)
    ids = torch.randint(9, (2, 5))
    with torch.no_grad():
        out = model(ids, use_cache=True)
    assert (out.logits.dtype, out.solution.z.dtype) == (torch.bfloat16, torch.float32)
    assert model(ids, labels=ids).loss.isfinite()
