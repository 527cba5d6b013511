"""Numerical kernels of the layers: tensors in, tensors out, no parameters."""
