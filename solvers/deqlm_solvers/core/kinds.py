"""Which tensors a state can be made of: dense ones, on a device that holds numbers, of a dtype that can be added."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.core.transforms import refuse_tracing

__all__ = ["is_dense", "memory_format", "require_state"]

_FOREIGN = {
    "MaskedTensor": ("a dense tensor", "a masked one", "use {name}.to_tensor(0.0), and token_mask for what is masked"),
    "NestedTensor": ("a dense tensor", "a nested one", "use {name}.to_padded_tensor(0.0), and token_mask for the rest"),
    "DTensor": ("a tensor of this process", "a DTensor", "use {name}.to_local(), or {name}.full_tensor()"),
    "FakeTensor": ("a tensor that holds numbers", "a FakeTensor", "call it outside of FakeTensorMode"),
    "UninitializedTensorMixin": ("a tensor that holds numbers", "an uninitialized parameter", "materialize it first"),
}
"""Classes of tensors, by name, which imports none of them: the rule that they break, in words, and the way out."""


def is_dense(t: Tensor) -> bool:
    """Say whether a tensor has strides and a shape: it is not sparse and not nested.

    Examples:
        >>> is_dense(torch.zeros(2, 3)), is_dense(torch.eye(3).to_sparse())
        (True, False)
    """
    return t.layout is torch.strided and not t.is_nested


def memory_format(t: Tensor) -> torch.memory_format | None:
    """Return channels last, of two or three dimensions, where a tensor is that and not contiguous; else None.

    Examples:
        >>> memory_format(torch.zeros(1, 2, 3, 3).to(memory_format=torch.channels_last))
        torch.channels_last
    """
    how = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim())
    last = how is not None and not t.is_contiguous() and t.is_contiguous(memory_format=how)
    return how if last else None


def require_state(t: Tensor, name: str, also: str = "") -> None:
    """Raise unless ``t`` can be a state, or a part of one; that its dtype is no integer is another rule.

    Args:
        t: any tensor.
        name: what the user calls it.
        also: another way out, behind the first.

    Raises:
        ValueError: it is sparse, nested, masked, distributed, without numbers (meta), or of an 8-bit floating dtype.
        RuntimeError: see `refuse_tracing`.

    Examples:
        >>> require_state(torch.eye(3).to_sparse(), "z0")
        Traceback (most recent call last):
        ValueError: z0 must be a dense tensor, got one of layout torch.sparse_coo; use z0.to_dense()
    """
    broken = _broken(t)
    if broken is not None:
        refuse_tracing()  # which makes tensors of other kinds
        rule, kind, way_out = broken
        raise ValueError(f"{name} must be {rule}, got {kind}; {way_out.format(name=name)}{also}")


def _broken(t: Tensor) -> tuple[str, str, str] | None:
    """Return the rule that ``t`` breaks as a state, what it is, and the way out; None where it breaks none."""
    if type(t) is not Tensor:
        for base in type(t).__mro__:
            if base.__name__ in _FOREIGN:
                return _FOREIGN[base.__name__]
    if t.is_nested:
        return _FOREIGN["NestedTensor"]
    if t.layout is not torch.strided:
        return "a dense tensor", f"one of layout {t.layout}", "use {name}.to_dense()"
    if t.is_meta:
        return "a tensor that holds numbers", "one on the device meta", "use torch.zeros_like({name}, device='cpu')"
    if t.is_floating_point() and t.dtype.itemsize < 2:
        return "of a dtype that torch can add and multiply", f"{t.dtype}", "use {name}.to(torch.bfloat16)"
    return None
