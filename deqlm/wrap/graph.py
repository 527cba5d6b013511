"""The graph of one evaluation: where it begins, whether it leads to anything, and NaN that must not run through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["begin", "depends", "keep_buffers", "reaches_leaf", "without_nan"]

Node = torch.autograd.graph.Node


def begin(z: Tensor) -> Tensor:
    """Return ``z`` as the point at which a graph starts; what arrives there in backward ends there.

    Examples:
        >>> import torch
        >>> begin(torch.zeros(2)).requires_grad
        True
    """
    return _Begin.apply(z.detach().requires_grad_())  # type: ignore[no-any-return]


class _Begin(torch.autograd.Function):
    """Identity that ends the graph: what starts here leaves no gradient on a leaf."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None]:
        return (None,)


def reaches_leaf(fz: Tensor, beyond: Tensor) -> bool:
    """Say whether the graph of ``fz`` leads to a leaf that wants a gradient, other than through ``beyond``.

    A function written in Python (activation checkpointing, a compiled layer) may know leaves that it does not tell, so
    where one is met the answer is yes.
    """
    return any(type(node).__name__ == "AccumulateGrad" or _hides_leaves(node) for node in _nodes(fz, beyond))


def keep_buffers(fz: Tensor) -> bool:
    """Tell compiled programs in the graph of ``fz`` that gave no buffers away that there are none; False where one did.

    One that was compiled under `asked_again` gives none, but knows that only once its first backward keeps the graph.
    """
    unknown = []
    for node in _nodes(fz, fz.new_empty(0)):
        program: Any = getattr(getattr(type(node), "_forward_cls", None), "metadata", None)
        if not hasattr(program, "bw_donated_idxs"):
            continue
        if program.bw_donated_idxs:
            return False
        unknown.append(program)
    for program in unknown:
        program.bw_donated_idxs = []
    return bool(unknown)


def _hides_leaves(node: Node) -> bool:
    return isinstance(node, BackwardCFunction) and not isinstance(node, _Begin._backward_cls)  # type: ignore[attr-defined]


def _nodes(fz: Tensor, beyond: Tensor) -> Iterator[Node]:
    seen, todo = {beyond.grad_fn, None}, [fz.grad_fn]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        assert node is not None
        yield node
        todo.extend(following for following, _ in node.next_functions)


def without_nan(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return f(z) with a graph in which a cotangent of zero stays zero, whatever NaN f made on the way.

    Zero times NaN is NaN: an unknown that nothing reads would spoil the gradients of all. So NaN among what autograd
    keeps is kept as zero, and where a cotangent is zero, what an operation makes of it element by element is zero too.
    Attention is evaluated by its plain kernel, which knows rows that see nothing.

    Args:
        f: a map.
        z: its argument, with a graph.
    """
    first = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    with torch.autograd.graph.saved_tensors_hooks(_nan_as_zero, lambda t: t), sdpa_kernel(SDPBackend.MATH):
        fz = f(z)
    for node in _nodes(fz, z):
        # not on leaves, nor on what stood before: hooks would stay there
        if type(node).__name__ != "AccumulateGrad" and node._sequence_nr() >= first:
            node.register_hook(_zero_stays_zero)
    return fz


def _nan_as_zero(t: Tensor) -> Tensor:
    if not (t.is_floating_point() or t.is_complex()):
        return t
    nan = t.isnan()
    return torch.where(nan, 0.0, t) if bool(nan.any()) else t


def _zero_stays_zero(inward: tuple[Tensor | None, ...], outward: tuple[Tensor | None, ...]) -> Any:
    """Return the cotangents that a node hands on, with zero where all that it got was a zero of the same place."""
    if len(outward) != 1 or outward[0] is None:
        return None
    zero = outward[0] == 0

    def mended(t: Tensor | None) -> Tensor | None:
        return t if t is None or t.shape != zero.shape else torch.where(zero & ~t.isfinite(), 0.0, t)

    return tuple(map(mended, inward))


def depends(t: Tensor, source: Tensor) -> bool:
    """Say whether the graph of ``t`` leads to ``source``."""
    seen: set[Node | None] = {None}
    todo = [t.grad_fn]
    while todo:
        node = todo.pop()
        if node is source.grad_fn:
            return True
        if node not in seen:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)  # type: ignore[union-attr]
    return False
