"""The recipes say what the paper says, and refuse what contradicts itself."""

from __future__ import annotations

import json

import pytest

from examples.catbabi.paper import estimate
from examples.catbabi.recipe import Recipe
from examples.catbabi.recipes import RATES, RATES_TRIED, cpu_recipes, found_rate, own_recipe, paper_recipes
from examples.loop.results import read_json


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
    equal = {name: getattr(solved.loop, name) for name in ("steps", "curriculum")}
    assert fewer == twin.with_loop(**equal).replace(label=fewer.label)
    assert twin.model == solved.model.replace(implicit=False, eval_max_iter=None)
    assert twin.loop.steps > solved.loop.steps
    assert (twin.tasks, twin.length, twin.rows) == (solved.tasks, solved.length, solved.rows)


@pytest.mark.parametrize("recipe", cpu_recipes(80), ids=lambda recipe: recipe.label)
def test_the_cpu_size_begins_with_openings(recipe):
    openings, whole = recipe.loop.curriculum.stages
    assert recipe.openings
    assert openings.steps * 5 == recipe.loop.steps * 3
    assert openings.length < whole.length == recipe.length
    assert openings.length * openings.rows <= whole.length * whole.rows


@pytest.mark.parametrize("which", [1, 2])
def test_the_rate_of_a_twin_was_searched_for_its_own_steps(which):
    twin = cpu_recipes(80)[which]
    found = read_json(RATES)
    tried = {row["lr"]: row["valid"] for row in found["tried"] if row["steps"] == twin.loop.steps}
    assert tuple(tried) == RATES_TRIED
    assert found["seed"] != twin.loop.seed
    assert twin.loop.lr == found_rate(twin.loop.steps) == max(tried, key=tried.__getitem__)
    assert min(tried) < twin.loop.lr < max(tried)


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


def test_openings_need_independent_windows_and_allow_stages():
    recipe = cpu_recipes(30)[0]
    with pytest.raises(ValueError, match="openings must be False where carried=True"):
        recipe.replace(carried=True, loop=recipe.loop.replace(carry=True))
    with pytest.raises(ValueError, match="stages must be 1 where openings=False"):
        recipe.replace(openings=False)
    with pytest.raises(ValueError, match="openings must be True or False"):
        recipe.replace(openings=1)


def test_labels_must_be_aligned():
    recipe = own_recipe(30, (1,))
    with pytest.raises(ValueError, match="labels of the model must be 'aligned'"):
        recipe.replace(model=recipe.model.replace(labels="shifted"))
    with pytest.raises(ValueError, match="family"):
        own_recipe(30, (1,), family="recurrent")
