"""Trees of tensors; the only file that knows pytrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.kinds import require_state

__all__ = [
    "apart_from_tensors",
    "describe",
    "first_tensor",
    "in_order",
    "map_tensors",
    "start_like",
    "structure_hint",
    "tensors",
    "tree_add",
    "tree_flatten",
    "tree_less",
    "tree_unflatten",
    "zeros_like_tree",
]


def tree_add(a: Any, b: Any) -> Any:
    """Add the injected input ``b`` to the state ``a``, leaf by leaf.

    Raises:
        TypeError: different structures.
        ValueError: different shapes; nothing is broadcast.
    """
    leaves_a, spec_a = tree_flatten(a)
    leaves_b, spec_b = tree_flatten(b)
    if spec_a != spec_b:
        raise TypeError(
            f"inject='add' needs x with the structure of z, {describe(spec_a)}, got {describe(spec_b)}; "
            "use inject='argument' or a module"
        )
    for z, u in zip(leaves_a, leaves_b, strict=True):
        rule = f"that of the state, {tuple(z.shape)}, for inject='add'"
        require(z.shape == u.shape, "the shape of u", tuple(u.shape), rule)
    return tree_unflatten([z + u for z, u in zip(leaves_a, leaves_b, strict=True)], spec_a)


def tree_less(state: Any, value: Any) -> Any:
    """Return ``state`` less ``value``, what F returned there, leaf by leaf.

    Raises:
        TypeError: F returned another structure, or no tensors.
        ValueError: other shapes, for nothing is broadcast, another device, or a dtype beyond that of the state.
    """
    leaves, spec = tree_flatten(state)
    values, found = tree_flatten(in_order(value, state))
    if spec != found:
        raise TypeError(f"F must return the structure of z, {describe(spec)}, got {describe(found)}")
    for z, each in zip(leaves, values, strict=True):
        if not isinstance(each, Tensor):
            raise TypeError(f"F must return tensors, got {type(each).__name__}")
        require(each.shape == z.shape, "the shape of F(z)", tuple(each.shape), f"that of z, {tuple(z.shape)}")
        require(each.device == z.device, "the device of F(z)", each.device, f"that of z, {z.device}")
        require(
            torch.promote_types(each.dtype, z.dtype) == z.dtype,
            "the dtype of F(z)",
            each.dtype,
            f"that of z, {z.dtype}",
        )
    return tree_unflatten([z - each for z, each in zip(leaves, values, strict=True)], spec)


def zeros_like_tree(state: Any) -> Any:
    """Return a state of zeros with the structure, shapes and dtypes of ``state``; other leaves stay."""
    return map_tensors(torch.zeros_like, state)


def start_like(start: Any, like: Any) -> Any:
    """Return a given start as a state with the structure, shapes, dtypes and device of ``like``.

    A dimension of 1 is repeated, so that one point may start every token or every row; no dimension is added or left
    out.

    Args:
        start: a tensor, or a tree of tensors.
        like: the state of the call.

    Raises:
        TypeError: another structure, or a leaf that is no tensor.
        ValueError: another shape, or no dense tensor of numbers.

    Examples:
        >>> import torch
        >>> start_like(torch.ones(2, 1, 4), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """
    given, spec = tree_flatten(in_order(start, like))
    wanted, structure = tree_flatten(like)
    if spec != structure:
        raise TypeError(f"start must have the structure of the state, {structure}, got {spec}")
    made = []
    for leaf, want in zip(given, wanted, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"start must be a tensor or a tree of tensors, got a leaf {type(leaf).__name__}")
        require_state(leaf, "start")
        fits = leaf.dim() == want.dim() and all(a in (1, b) for a, b in zip(leaf.shape, want.shape, strict=True))
        shape = tuple(want.shape)
        require(fits, "start", tuple(leaf.shape), f"of the state's shape {shape}, or with dimensions of 1 in it")
        kind = leaf.is_floating_point() or (leaf.is_complex() and want.is_complex())
        require(kind, "start", leaf.dtype, f"floating point, like the state ({want.dtype})")
        made.append(leaf.to(want).expand(want.shape))
    return tree_unflatten(made, structure)


def map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return a tree with ``change`` of every tensor in it; other leaves stay."""
    if isinstance(tree, Tensor):
        return change(tree)
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def apart_from_tensors(tree: Any) -> Any:
    """Return what a tree is beside its tensors: its structure, and its other leaves; to be compared by equality."""
    leaves, structure = tree_flatten(tree)
    return str(structure), tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def first_tensor(tree: Any) -> Tensor | None:
    """Return the first tensor of a tree, or None."""
    return next(iter(tensors(tree)), None)


def in_order(state: Any, template: Any) -> Any:
    """Return ``state`` with the keys of its dicts in the order of ``template``."""
    if isinstance(template, dict) and isinstance(state, dict) and state.keys() == template.keys():
        return {key: in_order(state[key], value) for key, value in template.items()}
    if type(template) in (list, tuple) and type(state) is type(template) and len(state) == len(template):
        return type(template)(in_order(s, t) for s, t in zip(state, template, strict=True))
    return state


def structure_hint(want: Any, got: Any) -> str:
    """Return what to do about a layer that returns another structure than its state's."""
    if want.is_leaf() and not got.is_leaf():
        part = repr(_first_name(got))
        text = f"say which part is the new state, DEQ(layer, output={part}), or wrap the layer in an nn.Module whose "
        return f"; {text}forward returns it, such as layer(z)[{part}]; a lambda would hide its parameters"
    if got.is_leaf():
        return "; the state has the structure of x: give what is no unknown as further arguments, deq(x, mask)"
    return ""


def _first_name(spec: Any) -> Any:
    """Return the key of the first entry of a dict, else the first position."""
    tree = tree_unflatten([None] * spec.num_leaves, spec)
    return next(iter(tree), 0) if isinstance(tree, Mapping) else 0


def describe(spec: Any) -> str:
    """Return the structure of a tree in words."""
    if spec.is_leaf():
        return "a tensor"
    tree = tree_unflatten(["tensor"] * spec.num_leaves, spec)
    return f"a {type(tree).__name__} {tree}".replace("'tensor'", "tensor")
