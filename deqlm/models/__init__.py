"""Language models whose hidden state is a fixed point, as plain modules."""

from deqlm.models.backbone import Backbone
from deqlm.models.call import LMCache
from deqlm.models.cost import ModelCost, model_cost
from deqlm.models.lm import ImplicitLM, LMOutput
from deqlm.models.options import MIXERS, AttentionOptions, LMOptions, Mamba2Options, MixerOptions
from deqlm.models.planning import GPU, GPUS, PhasePlan, Plan, plan_training
from deqlm.models.presets import PRESETS, preset
from deqlm.models.recipes import RECIPES, Recipe, RecipePhase, recipe

__all__ = [
    "GPU",
    "GPUS",
    "MIXERS",
    "PRESETS",
    "RECIPES",
    "AttentionOptions",
    "Backbone",
    "ImplicitLM",
    "LMCache",
    "LMOptions",
    "LMOutput",
    "Mamba2Options",
    "MixerOptions",
    "ModelCost",
    "PhasePlan",
    "Plan",
    "Recipe",
    "RecipePhase",
    "model_cost",
    "plan_training",
    "preset",
    "recipe",
]
