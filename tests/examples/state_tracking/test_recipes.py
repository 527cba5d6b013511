"""Recipes are plain data that come back unchanged, and say what the papers and the design say."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deqlm.sequence.modes import Chunked
from examples.loop import IGNORED
from examples.state_tracking import experiment, full, generated, paper, small
from examples.state_tracking.data import word_problem
from examples.state_tracking.forgetting import ForgettingMamba2Options
from examples.state_tracking.recipe import Recipe, Test, by_length
from examples.state_tracking.recipes import DEMO, RATES, demo_recipes, explicit, found_rate, general, implicit, twin
from examples.state_tracking.search import LEARNING_RATES
from examples.state_tracking.task import StateTracking, started

ALL = [
    *demo_recipes("S3"),
    *demo_recipes("Z2", seed=3),
    *(recipe for part in small.PARTS for recipe in small.part_recipes(part, quick=True)),
    generated.recipe_of("S5:32", seed=1),
    *(recipe for name in paper.EXPERIMENTS for recipe in paper.recipes_of(name)),
]


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: f"{recipe.problem}-{recipe.label}-{recipe.loop.seed}")
def test_a_recipe_comes_back_from_json(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_by_length_unrolls_short_stages_and_solves_the_last():
    stages = by_length((2, 4, 16), tokens=64, max_iter=24, phantom=3).stages
    assert [(s.length, s.rows, s.until) for s in stages] == [(2, 32, 0.9), (4, 16, 0.9), (16, 4, None)]
    assert [s.phase.stop.max_iter for s in stages] == [2, 4, 24]
    assert [s.phase.gradient.name for s in stages] == ["unrolled", "unrolled", "phantom"]
    assert not by_length((2, 4)).has_phases
    longer = by_length((8, 16, 32), max_iter=24).stages
    assert [s.phase.gradient.name for s in longer] == ["unrolled", "phantom", "phantom"]
    assert [s.phase.stop.max_iter for s in longer] == [8, 24, 24]


def test_spare_evaluations_are_those_of_unrolled_stages():
    stages = by_length((2, 4, 16), tokens=64, max_iter=24, spare=2).stages
    assert [s.phase.stop.max_iter for s in stages] == [4, 6, 24]


def test_a_training_solves_in_chunks_where_the_recipe_says_so():
    recipe = generated.recipe_of("S3:2").replace(chunk=4)
    model = experiment._initial(recipe)
    assert model.mode == Chunked(4)
    assert experiment._initial(recipe.replace(chunk=None)).mode != Chunked(4)
    with pytest.raises(ValueError, match="chunk must be a whole number >= 1, got 0"):
        recipe.replace(chunk=0)
    with pytest.raises(ValueError, match="chunk must be None for an explicit model"):
        recipe.replace(model=explicit("S3", 1))


def test_a_mixer_that_must_forget_forgets():
    torch.manual_seed(0)
    model = generated.recipe_of("S3:2").model.make().backbone.layers[0]
    mixer = model.mixer
    assert mixer.dt_limit == (0.3, math.inf)
    with torch.no_grad():
        # the slowest decay there is at first
        mixer.A_log.zero_()
        mixer.dt_bias.fill_(-20)
    far, near = torch.randn(2, 1, 40, 64)
    z = torch.cat([far, near], dim=1)
    one = mixer(z)[:, -1]
    other = mixer(torch.cat([torch.randn(1, 40, 64), near], dim=1))[:, -1]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="floor must be > 0 and finite"):
        ForgettingMamba2Options(floor=0.0)


def test_by_length_ends_each_stage_at_its_own_accuracy():
    stages = by_length((2, 4, 8), until=(0.9, 0.95), target=0.99, most=7).stages
    assert [(s.until, s.steps) for s in stages] == [(0.9, 7), (0.95, 7), (0.99, None)]
    assert by_length((4,), until=0.5).stages[0].until is None
    with pytest.raises(
        ValueError, match=r"until must be a number, or 2, one for each stage but the last, got \(0.9,\)"
    ):
        by_length((2, 4, 8), until=(0.9,))


def test_a5_gets_to_its_longest_length_when_it_is_sure_of_the_shorter_ones():
    recipe, _ = small.part_recipes("A5")
    *_, before, last = recipe.loop.curriculum.stages
    assert (before.length, last.length, last.until) == (16, 32, None)
    assert before.until > 0.95
    assert last.phase.stop.max_iter >= last.length


@pytest.mark.parametrize(("start", "evaluations"), [(False, [2, 8, 24]), (True, [3, 9, 24])])
def test_an_unrolled_stage_reaches_from_its_first_token_to_the_last(start, evaluations):
    course = by_length((2, 8, 16), max_iter=24, start=start)
    assert [stage.phase.stop.max_iter for stage in course.stages] == evaluations


def test_the_demo_gives_its_baselines_more_steps_and_their_own_rate():
    solved, *twins = demo_recipes("S3", seed=4)
    assert [recipe.model.n_layer for recipe in (solved, *twins)] == [1, 1, 2]
    assert [recipe.model.implicit for recipe in (solved, *twins)] == [True, False, False]
    assert {recipe.loop.seed for recipe in (solved, *twins)} == {4}
    for layers, recipe in enumerate(twins, start=1):
        assert recipe.loop.steps >= 5 * solved.loop.steps
        assert recipe.loop.lr == found_rate("S3", layers)["lr"]
        last = recipe.loop.curriculum.stages[-1]
        assert (last.length, last.steps) == (16, None)
    assert solved.model.mixer == twins[1].model.mixer


def test_half_of_the_steps_of_a_baseline_are_left_for_the_full_length():
    recipe = twin("Z2", 1, lr=1e-3, start="curriculum")
    assert sum(stage.steps for stage in recipe.loop.curriculum.stages[:-1]) <= recipe.loop.steps / 2
    assert [stage.length for stage in twin("Z2", 1, lr=1e-3, start="direct").loop.curriculum.stages] == [16]


def test_every_baseline_of_the_demo_has_a_stored_rate():
    assert RATES.exists()
    for group in DEMO:
        for layers in (1, 2):
            assert found_rate(group, layers)["lr"] in LEARNING_RATES


def test_a_start_token_stands_before_every_sequence_and_has_no_target():
    recipe, *_ = small.part_recipes("transformer-Z2")
    problem, stage = word_problem("Z2"), recipe.loop.curriculum.stages[1]
    ids, targets, *_ = StateTracking(problem, start=recipe.start).batch(0, 3, stage)
    words = problem.draw(stage.rows, stage.length, step=3)
    assert torch.equal(ids, torch.cat([torch.full((stage.rows, 1), 2), words.inputs], 1))
    assert torch.equal(targets, torch.cat([torch.full((stage.rows, 1), IGNORED), words.targets], 1))
    with pytest.raises(ValueError, match="vocab_size must be >= 3, the tokens of Z2 and a start token, got 2"):
        recipe.replace(model=implicit("Z2"))


def test_rotary_attention_cannot_count_equal_tokens_without_a_start_token():
    recipe, *_ = small.part_recipes("transformer-Z2")
    torch.manual_seed(0)
    model, ids = recipe.model.make().eval(), torch.ones(1, 6, dtype=torch.int64)
    stop = model.no_grad.stop.replace(max_iter=9, rtol=0)
    logits = model(ids, stop=stop).logits
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), rtol=0, atol=1e-5)
    begun = model(started(ids, word_problem("Z2")), stop=stop).logits[:, 1:]
    assert (begun - begun[:, :1]).abs().max() > 1e-2


def test_a_group_without_a_recipe_is_named():
    with pytest.raises(KeyError, match="did you mean 'S3'"):
        demo_recipes("S4")


def test_a_vocabulary_that_is_too_small_is_refused():
    recipe = demo_recipes("S3")[0]
    with pytest.raises(ValueError, match="vocab_size must be >= 60, the tokens of A5, got 6"):
        recipe.replace(problem="A5")


@pytest.mark.parametrize("change", [{"length": 0}, {"rows": 0}, {"p": 1.5}, {"rtol": 0}, {"max_iter": 0}])
def test_a_test_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Test(**{"length": 4, **change})


def test_a_general_recipe_grows_to_its_length_and_tests_multiples():
    recipe = general("Z3", model=explicit("Z3", 2), label="x", steps=12, length=12, times=(1, 4))
    assert [stage.length for stage in recipe.loop.curriculum.stages] == [2, 4, 8, 12]
    assert [test.length for test in recipe.tests] == [12, 48]
    assert recipe.length == 12
    assert recipe.tests[0].mode == Chunked(16)


def test_the_paper_is_reproduced_to_the_letter():
    recipes = paper.recipes_of("hard")
    assert [recipe.loop.curriculum.stages[0].p for recipe in recipes] == [0, 0.5, 0.75, 0.9, 0.95, 0.98]
    loop = recipes[3].loop
    assert (loop.lr, loop.clip, loop.betas, loop.decay, loop.weight_decay) == (1e-3, 0.25, (0.9, 0.95), "linear", 0.0)
    assert loop.steps * 512 == 8_388_608
    (stage,) = loop.curriculum.stages
    assert (stage.length, stage.rows) == (256, 512)
    warm, solved = loop.phases.phases
    assert (warm.steps, warm.stop.max_iter, solved.stop.max_iter, solved.gradient.steps) == (4005, 4, 32, 4)
    model = recipes[3].model
    assert (model.d_model, model.n_layer, model.vocab_size, model.dropout) == (256, 1, 240, 0.0)
    tested = {(test.length, test.p) for test in recipes[3].tests}
    assert tested == {(256, 0.5), (256, 0.9), (1024, 0.5), (1024, 0.9)}


def test_the_layers_of_s5_are_compared_at_every_length():
    recipes = paper.recipes_of("layers")
    assert len(recipes) == 24
    assert {recipe.model.n_layer for recipe in recipes if not recipe.model.implicit} == {1, 2, 4, 8, 16}
    longest = [recipe for recipe in recipes if recipe.model.implicit][-1]
    assert [test.length for test in longest.tests] == [32, 64, 128, 256]
    with pytest.raises(KeyError, match="hard, layers"):
        paper.recipes_of("soft")


def test_the_estimate_counts_evaluations():
    recipe = paper.layers_against_length(4, 2)
    weights = sum(p.numel() for p in recipe.model.make("meta").parameters())
    cost = paper.estimate(recipe, flops=1e12)
    assert math.isclose(cost["flop"], 2 * weights * 512 * 4 * 3 * recipe.loop.steps)
    assert math.isclose(cost["hours"], cost["flop"] / 1e12 / 3600)
    solved = paper.estimate(paper.hard_tokens(0.1), flops=1e12)
    free = 16_384 - 4005
    assert solved["evaluations"] == 4005 * (4 + 2 * 4) + free * (32 + 4 + 2 * 4)


def test_quick_sizes_are_small():
    for part in small.PARTS:
        for recipe in small.part_recipes(part, quick=True):
            assert recipe.loop.steps == 3
    assert set(full.GROUPS) >= {"S3", "Z2"}
    with pytest.raises(KeyError, match="did you mean 'S3'"):
        small.part_recipes("S33")


def test_the_implicit_model_is_one_layer_without_weight_normalisation():
    model = implicit("A5", width=64)
    assert (model.rows, model.n_layer, model.weight_norm, model.labels) == (60, 1, False, "aligned")
