"""A recipe is run once, stored, and read back; nothing is trained twice or under another name."""

from __future__ import annotations

import json

import pytest
import torch

from examples.loop.results import read_json
from examples.state_tracking import experiment, jobs
from examples.state_tracking.data import word_problem
from examples.state_tracking.evaluate import predict
from examples.state_tracking.experiment import load, run, trained
from examples.state_tracking.recipe import Test
from examples.state_tracking.recipes import explicit, general, implicit


def tiny(seed=0, **more):
    made = general("Z2", model=implicit("Z2", width=8, mixer=MIXER), label="tiny", steps=3, length=4, seed=seed, **more)
    return made.replace(tests=tuple(test.replace(rows=4, batch=4, max_iter=5) for test in made.tests[:2]))


MIXER = {"name": "mamba2", "d_state": 4, "headdim": 8}


def forbidden(*args, **kwargs):
    raise AssertionError("trained again")


def test_a_result_is_stored_and_read_back(tmp_path, monkeypatch):
    first = run(tiny(), tmp_path, progress=False)
    assert read_json(tmp_path / "result.json") == json.loads(json.dumps(first))
    assert first["training"]["steps"] == 3
    assert [test["length"] for test in first["tests"]] == [4, 8]
    monkeypatch.setattr(experiment, "trained", forbidden)
    assert run(tiny(), tmp_path, progress=False) == json.loads(json.dumps(first))


def test_other_settings_do_not_take_a_result_for_theirs(tmp_path):
    run(tiny(), tmp_path, progress=False)
    with pytest.raises(ValueError, match="other settings"):
        run(tiny(seed=1), tmp_path, progress=False)


def test_equal_seeds_give_equal_weights_and_others_do_not():
    weights = [trained(tiny(seed), None, progress=False)[0].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["embedding.weight"], weights[2]["embedding.weight"])


def test_a_stored_model_is_the_trained_one(tmp_path):
    model, _ = trained(tiny(), tmp_path, progress=False)
    run(tiny(), tmp_path, progress=False)
    recipe, loaded = load(tmp_path)
    assert recipe == tiny()
    test = Test(length=8, rows=4, max_iter=5)
    problem = word_problem("Z2")
    one, other = predict(model, problem, test), predict(loaded, problem, test)
    assert torch.equal(one.predicted, other.predicted)
    assert torch.equal(one.token_steps, other.token_steps)


def test_an_interrupted_run_goes_on(tmp_path):
    whole = run(tiny(checkpoint_every=1), tmp_path / "whole", progress=False)
    short = tiny(checkpoint_every=1).with_loop(time_limit=1e-9)
    trained(short, tmp_path / "cut", progress=False)
    rest = run(tiny(checkpoint_every=1), tmp_path / "cut", progress=False)
    assert [t["accuracy"] for t in rest["tests"]] == [t["accuracy"] for t in whole["tests"]]
    assert rest["training"]["cost"] == whole["training"]["cost"]


def test_a_folder_without_a_result_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="train first"):
        load(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)


def test_jobs_return_results_in_their_order(tmp_path):
    recipes = [tiny(seed) for seed in (1, 0)]
    results = jobs.run_jobs([(r, tmp_path / str(r.loop.seed)) for r in recipes], workers=1, progress=False)
    assert [result["seed"] for result in results] == [1, 0]


@pytest.mark.slow
def test_processes_give_the_numbers_of_one_process(tmp_path):
    recipes = [tiny(0), tiny(1)]
    one, two = (
        jobs.run_jobs([(r, tmp_path / f"{n}-{r.loop.seed}") for r in recipes], workers=n, progress=False)
        for n in (1, 2)
    )
    assert [r["tests"][0]["accuracy"] for r in one] == [r["tests"][0]["accuracy"] for r in two]


@pytest.mark.slow
def test_a_job_that_fails_is_named_and_the_others_are_finished(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/result.json").write_text("{")
    with pytest.raises(RuntimeError, match="1 of 2 jobs failed, first 'tiny'"):
        jobs.run_jobs([(tiny(0), tmp_path / "bad"), (tiny(1), tmp_path / "good")], workers=2, progress=False)
    assert (tmp_path / "good/result.json").exists()


def test_the_step_of_a_log_that_is_being_written(tmp_path):
    log = tmp_path / "log.csv"
    assert jobs._steps(log) == 0
    log.write_text("step,loss\n")
    assert jobs._steps(log) == 0
    log.write_text("step,loss\n10,0.5\n20,0.25\n")
    assert jobs._steps(log) == 20


def test_an_explicit_model_is_run_too(tmp_path):
    recipe = general("Z2", model=explicit("Z2", 2, width=8).replace(mixer=MIXER), label="twin", steps=2, length=4)
    result = run(recipe.replace(tests=recipe.tests[:1]), tmp_path, progress=False)
    assert "mode" not in result["tests"][0]
    assert result["training"]["cost"]["evaluations"] == 0
