"""What a solve takes: dense tensors of numbers that can be added, and no recording or transform around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "compiling",
    "in_transform",
    "is_dense",
    "memory_format",
    "refuse_tracing",
    "refuse_transforms",
    "require_state",
]

_FOREIGN = {
    "MaskedTensor": ("a dense tensor", "a masked one", "use {name}.to_tensor(0.0), and token_mask for what is masked"),
    "NestedTensor": ("a dense tensor", "a nested one", "use {name}.to_padded_tensor(0.0), and token_mask for the rest"),
    "DTensor": ("a tensor of this process", "a DTensor", "use {name}.to_local(), or {name}.full_tensor()"),
    "FakeTensor": ("a tensor that holds numbers", "a FakeTensor", "call it outside of FakeTensorMode"),
    "UninitializedTensorMixin": ("a tensor that holds numbers", "an uninitialized parameter", "materialize it first"),
}
"""Classes of tensors, by name, which imports none of them: the rule that they break, in words, and the way out."""
_PROXY = torch._C._TorchDispatchModeKey.PROXY  # type: ignore[attr-defined]


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


def in_transform(z: Tensor) -> bool:
    """Say whether torch is in a transform of torch.func, in forward mode, or in a vectorized backward.

    Args:
        z: a tensor of the computation, of any shape.

    Examples:
        >>> in_transform(torch.zeros(2, 3))
        False
    """
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    if torch._C._are_functorch_transforms_active() or functorch.is_legacy_batchedtensor(z):
        return True
    # an open level of forward mode; whether f carries a tangent shows only when it is evaluated
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()  # type: ignore[attr-defined]


def refuse_tracing() -> None:
    """Raise where operations are recorded to be run again: the recording would hold the steps of this one input.

    Steps of a solve depend on values, and compiled steps are not seen by a recording, which would return memory that
    nobody wrote.

    Raises:
        RuntimeError: inside torch.jit.trace, torch.onnx.export, torch.export or make_fx; with what to do instead.

    Examples:
        >>> refuse_tracing()
    """
    if not torch.compiler.is_dynamo_compiling() and _records():
        raise RuntimeError(
            "a solve cannot be recorded by torch.jit.trace, torch.onnx.export, torch.export or make_fx, because its "
            "steps depend on values: the recording would repeat those of its example. Instead, record or compile the "
            "layer (DEQ(torch.compile(layer)), or an exported one) and solve around it, or save the weights with "
            "state_dict() and build the DEQ again where it runs; deqlm.export writes a solve to a file"
        )


def compiling() -> bool:
    """Say whether torch.compile looks at what this thread does.

    ``torch.compiler.is_compiling()`` is true on every thread while one of them compiles; a thread that is traced is in
    dynamo, or has a mode that records operations.

    Examples:
        >>> compiling()
        False
    """
    if not torch.compiler.is_compiling():
        return False
    return torch.compiler.is_dynamo_compiling() or bool(torch._C._len_torch_dispatch_stack())


def _records() -> bool:
    """Say whether torch.jit.trace, or a mode of torch.fx at either of its two levels, records operations."""
    if torch._C._is_tracing() or torch._C._get_dispatch_mode(_PROXY) is not None:  # type: ignore[attr-defined]
        return True
    return torch._ops._get_dispatch_mode_pre_dispatch(_PROXY) is not None  # type: ignore[attr-defined]


def refuse_transforms(z: Tensor) -> None:
    """Raise where a solve cannot run: recorded, in a transform of torch.func, in forward mode or a vectorized backward.

    Args:
        z: start of the solve, of any shape.

    Raises:
        RuntimeError: with what to do instead.

    Examples:
        >>> refuse_transforms(torch.zeros(2, 3))
    """
    refuse_tracing()
    if in_transform(z):
        raise RuntimeError(
            "a solver by itself cannot be transformed by torch.func (vmap, grad, jvp, jacrev, hessian) or forward-mode "
            "differentiation, because its steps depend on values, and no solve by a vectorized backward "
            "(is_grads_batched, vectorize=True). Use deqlm.solve, deqlm.Equilibrium or deqlm.DEQ inside transforms of "
            "torch.func, and torch.func.jacrev for a vectorized backward"
        )
