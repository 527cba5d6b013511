"""Numerical kernels of the layers: tensors in, tensors out, no parameters."""

from deqlm.ops import ssd
from deqlm.ops.conv import causal_conv

__all__ = ["causal_conv", "ssd"]
