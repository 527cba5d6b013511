"""Layers of sequence models whose input can be injected and whose noise stays fixed within a solve."""

from deqlm.layers.attention import Attention
from deqlm.layers.block import Block, Mixer
from deqlm.layers.cache import KVCache, Mamba2Cache
from deqlm.layers.context import Context
from deqlm.layers.contractive import Contractive
from deqlm.layers.init import depth_scale_
from deqlm.layers.lipschitz import lipschitz_bound
from deqlm.layers.mamba2 import Mamba2
from deqlm.layers.mlp import GatedMLP, LlamaMLP
from deqlm.layers.monotone import MonotoneLinear
from deqlm.layers.noise import VariationalDropout
from deqlm.layers.norm import GatedRMSNorm
from deqlm.layers.rope import Rope, row_positions
from deqlm.layers.shared_dropout import SharedDropout
from deqlm.layers.weight_norm import NormedConv1d, NormedLinear, fold_weight_norm_, weight_norm_

__all__ = [
    "Attention",
    "Block",
    "Context",
    "Contractive",
    "GatedMLP",
    "GatedRMSNorm",
    "KVCache",
    "LlamaMLP",
    "Mamba2",
    "Mamba2Cache",
    "Mixer",
    "MonotoneLinear",
    "NormedConv1d",
    "NormedLinear",
    "Rope",
    "SharedDropout",
    "VariationalDropout",
    "depth_scale_",
    "fold_weight_norm_",
    "lipschitz_bound",
    "row_positions",
    "weight_norm_",
]
