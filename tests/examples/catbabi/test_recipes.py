"""The recipes say what the paper says, and refuse what contradicts itself."""

from __future__ import annotations

import json

import pytest

from examples.catbabi.paper import estimate
from examples.catbabi.recipe import Recipe
from examples.catbabi.recipes import RATES_TRIED, cpu_recipes, found_rate, own_recipe, paper_recipes


def test_the_paper_is_that_of_the_paper():
    solved, twin = paper_recipes(163)
    first, second = solved.loop.phases.phases
    assert (solved.loop.steps, first.steps, second.steps) == (15_000, 5_000, None)
    assert (first.stop.max_iter, first.stop.is_budget, first.gradient.checkpoint) == (32, True, True)
    assert (second.stop.max_iter, second.stop.rtol) == (50, 0.03)
    assert (second.gradient.steps, second.gradient.damping) == (6, 0.5)
    model = solved.model.make("meta")
    assert (model.no_grad.stop.max_iter, model.no_grad.stop.rtol) == (200, 0.03)
    assert (solved.length, solved.rows, solved.carried, solved.mode) == (200, 128, True, "qm")
    assert twin.loop == solved.loop.replace(phases=None)
    assert twin.model.mixer == solved.model.mixer
    assert not twin.model.implicit


def test_the_twin_of_the_cpu_size_is_the_same_block_with_more_steps():
    solved, twin, fewer = cpu_recipes(80)
    assert fewer == twin.with_loop(steps=solved.loop.steps).replace(label=fewer.label)
    assert twin.model == solved.model.replace(implicit=False, eval_max_iter=None)
    assert twin.loop.steps > solved.loop.steps
    assert (twin.tasks, twin.length, twin.rows) == (solved.tasks, solved.length, solved.rows)
    assert twin.loop.lr == found_rate() in RATES_TRIED


@pytest.mark.parametrize("recipe", [*paper_recipes(30), *cpu_recipes(30), own_recipe(30, (2, 1), carried=True)])
def test_recipes_are_plain_data(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_estimate_counts_evaluations():
    solved, twin = (recipe.with_loop(steps=6000) for recipe in paper_recipes(30))
    assert estimate(twin, 1e12)["evaluations"] == 6000 * 3
    # unrolled: once, again in backward, and once more for the state; then 50 and 6 phantom steps
    assert estimate(solved, 1e12)["evaluations"] == 5000 * 32 * (3 + 2) + 1000 * (56 + 12)
    weights = sum(p.numel() for p in twin.model.make("meta").parameters())
    assert estimate(twin, 1e12)["flop"] == 2.0 * weights * 128 * 200 * 18_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "tasks must be at least one task"),
        ({"mode": "both"}, "mode must be 'qm' or 'lm'"),
        ({"carried": True}, "carry of the loop must be carried=True"),
        ({"test_rows": 0}, "test_rows"),
        ({"test_length": 0}, "test_length"),
    ],
)
def test_contradictions_are_refused(changes, message):
    recipe = own_recipe(30, (1,))
    with pytest.raises(ValueError, match=message):
        recipe.replace(**changes)


def test_labels_must_be_aligned():
    recipe = own_recipe(30, (1,))
    with pytest.raises(ValueError, match="labels of the model must be 'aligned'"):
        recipe.replace(model=recipe.model.replace(labels="shifted"))
    with pytest.raises(ValueError, match="family"):
        own_recipe(30, (1,), family="recurrent")
