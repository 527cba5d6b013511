"""``deqlm plan``: what is computed, and what is told of a mistake."""

from __future__ import annotations

import json

import pytest

from deqlm.cli.main import main
from deqlm.models import GPUS, RECIPES, model_cost, plan_training, preset, recipe


def test_time_is_flops_over_rate():
    plan = plan_training(recipe("mamba2-130m"), gpu="h200", count=32, utilisation=0.5)
    made = recipe("mamba2-130m")
    cost = model_cost(made.model, context=made.length // 2)
    for phase, (evaluations, graph) in zip(plan.phases, ((5, 1), (28, 4)), strict=True):
        flops = 3 * cost.once + cost.evaluation * (evaluations + 2 * graph)
        assert phase.flops == flops
        assert phase.tokens_per_second == pytest.approx(32 * 989e12 * 0.5 / flops)
        assert phase.days == pytest.approx(phase.steps * made.batch_tokens / phase.tokens_per_second / 86400)
    assert sum(phase.share for phase in plan.phases) == pytest.approx(1)
    assert sum(phase.steps for phase in plan.phases) == made.steps


def test_what_is_known_takes_the_place_of_what_is_assumed():
    plain = plan_training(recipe("llama3-370m"), gpu="h100", count=8)
    fewer = plan_training(recipe("llama3-370m"), gpu="h100", count=8, evaluations=8)
    assert fewer.phases[0] == plain.phases[0]._replace(share=fewer.phases[0].share)
    assert fewer.phases[1].days < plain.phases[1].days
    rate = plain.phases[0].tokens_per_second / 8 / 2
    measured = plan_training(recipe("llama3-370m"), gpu="h100", count=8, rate=rate)
    assert measured.days == pytest.approx(2 * plain.days)
    assert measured.utilisation == pytest.approx(plain.utilisation / 2)


def test_memory_shrinks_by_what_is_advised():
    tight = plan_training(recipe("mamba2-1.3b"), gpu="a100-40gb", count=8, rows=8)
    assert not tight.fits
    assert any("recompute" in text for text in tight.advice)
    again = plan_training(recipe("mamba2-1.3b"), gpu="a100-40gb", count=8, rows=8, recompute=True)
    assert again.memory["activations"] < 0.5 * tight.memory["activations"]
    more = plan_training(recipe("mamba2-1.3b"), gpu="a100-40gb", count=32, rows=8)
    assert more.memory["weights, gradients, moments"] * 4 == tight.memory["weights, gradients, moments"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_planned(name, capsys):
    assert main(["plan", name, "--gpu", "H200", "--count", "32"]) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out
    assert "fits" in out


def test_files_and_presets_are_read(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"recipe": recipe("mamba2-130m").replace(tokens=2 * 10**9).to_dict(), "rows": 4}))
    assert main(["plan", str(file), "--gpu", "h200", "--count", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
    file.write_text(json.dumps({"recipe": "mamba2-130m"}))
    assert main(["plan", str(file), "--gpu", "h200", "--count", "8"]) == 0
    assert main(["plan", "mamba2-130m-explicit", "--gpu", "h200", "--count", "8"]) == 0
    assert "explicit" in capsys.readouterr().out
    assert main(["plan", "llama3-1.3b", "--gpu", "rtx4090", "--count", "1"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mamba2-1.3", "--gpu", "h200", "--count", "8"], "did you mean 'mamba2-1.3b'"),
        (["mamba2-1.3b", "--gpu", "h20", "--count", "8"], "unknown GPU 'h20': did you mean 'h200'"),
        (["mamba2-1.3b", "--gpu", "h200", "--count", "0"], "count must be"),
        (["mamba2-1.3b", "--gpu", "h200", "--count", "3"], "count must be a divisor of the 512 sequences"),
        (["mamba2-1.3b", "--gpu", "h200", "--count", "8", "--rows", "3"], "rows must be a divisor of the 64"),
        (["mamba2-1.3b", "--gpu", "h200", "--count", "8", "--utilisation", "2"], "utilisation must be in (0, 1]"),
        (["mamba2-1.3b", "--gpu", "h200", "--count", "8", "--evaluations", "99"], "evaluations must be in (0, 24]"),
        (["mamba2-1.3b", "--gpu", "h200", "--count", "8", "--rate", "1e9"], "rate must be below"),
        (["mamba2-state-tracking-implicit", "--gpu", "h200", "--count", "8"], "is not pretrained on text"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_file_that_is_none_is_told(tmp_path, capsys):
    for text, said in [("{", "cannot be read as JSON"), ("[]", "must hold an object"), ('{"tokens": 3}', "Recipe")]:
        (tmp_path / "x.json").write_text(text)
        assert main(["plan", str(tmp_path / "x.json"), "--gpu", "h200", "--count", "8"]) == 2
        assert said in capsys.readouterr().err


def test_recipes_break_no_rule():
    assert preset("mamba2-130m-implicit") == recipe("mamba2-130m").model
    assert all(gpu.teraflops > 100 for gpu in GPUS.values())
    good = recipe("mamba2-130m")
    for change, said in [
        ({"batch_tokens": 100}, "batch_tokens must be a multiple"),
        ({"tokens": 5}, "tokens must be >= batch_tokens"),
        ({"phases": ()}, "shares that add up to 1"),
        ({"model": preset("mamba2-130m-explicit")}, "phases must be none for an explicit model"),
        ({"end_lr": 1.0}, "end_lr must be in"),
    ]:
        with pytest.raises(ValueError, match=said):
            good.replace(**change)
    with pytest.raises(KeyError, match="did you mean 'mamba2-130m'"):
        recipe("mamba2-130")
    rates = [good.schedule.at(step) for step in (0, 1999, 2000, good.schedule.begin, good.steps - 1, good.steps)]
    assert rates[1] == rates[2] == rates[3] == good.lr
    assert rates[0] < rates[1]
    assert rates[4] > rates[5] == pytest.approx(good.end_lr)
