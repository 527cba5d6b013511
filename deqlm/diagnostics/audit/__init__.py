"""Gradients held against dense truth."""
