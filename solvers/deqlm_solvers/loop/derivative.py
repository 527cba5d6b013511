"""Products with the Jacobian of a map by autograd: the one file that knows how they are had."""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "Derivatives",
    "NoDerivativeError",
    "Recorded",
    "jacobian_by_columns",
    "jacobian_by_rows",
    "neither_way",
    "push_forward",
    "push_forward_many",
]

Map = Callable[[Tensor], Tensor]


class NoDerivativeError(RuntimeError):
    """Autograd cannot differentiate the map the way that was asked for."""


def neither_way(forward: NoDerivativeError, reverse: NoDerivativeError | None) -> NoDerivativeError:
    """Return the error that names the obstacles of both modes."""
    return NoDerivativeError(
        "this solver needs the Jacobian of f, which autograd cannot give; use 'anderson' or 'broyden', or give f "
        f"operations that can be differentiated (forward mode: {forward}; reverse mode: {reverse})"
    )


class Counted(Protocol):
    """What evaluates f and counts: as it is, or after a look at what f returned."""

    def __call__(self, z: Tensor) -> Tensor: ...

    def checked(self, point: Tensor) -> Tensor: ...


class Derivatives:
    """Products with the Jacobian of one map, in the mode that its operations allow; remembers what did not work.

    Args:
        looks: whether the host may read whether a point has moved, which saves calls of f.
    """

    def __init__(self, looks: bool = True) -> None:
        self.looks = looks
        self._recorded: Recorded | None = None
        self._obstacle: NoDerivativeError | None = None
        self._push_modes = [False, True]
        self._column_modes, self._dual_modes = [True, False], [True, False]
        self._one_by_one_fails = False

    def evaluate(self, f: Counted, point: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return f(point) and J v there; f is not called again where the host sees that no row has moved.

        Args:
            f: the map.
            point: (B, N), state dtype.
            v: tangents (B, N), or None, which records the graph for later products.

        Raises:
            NoDerivativeError: autograd cannot differentiate f.
        """
        return self._reverse(f, point, v) if self._obstacle is None else self._forward(f, point, v)

    def products(self, f: Counted, point: Tensor, v: Tensor) -> Tensor:
        """Return J v for K tangents (K, N), (K, B, N); see `Evaluator.products`."""
        while self._push_modes:
            try:
                if v.shape[0] == 1:  # a call without vmap costs less
                    return push_forward(f, point, v[0].expand(point.shape), grad=self._push_modes[0])[1][None]
                return push_forward_many(f, point, v, grad=self._push_modes[0])
            except NoDerivativeError as error:
                self._obstacle = error
                del self._push_modes[0]
        tangents = [one.expand(point.shape) for one in v]
        if not self._one_by_one_fails:
            try:
                return torch.stack([push_forward(f, point, one)[1] for one in tangents])
            except NoDerivativeError as error:
                self._obstacle, self._one_by_one_fails = error, True
        try:
            recorded = Recorded(f, point)
            return torch.stack([recorded.product(one) for one in tangents])
        except NoDerivativeError as error:
            assert self._obstacle is not None
            raise neither_way(forward=self._obstacle, reverse=error) from error

    def jacobian(self, f: Counted, point: Tensor) -> tuple[Tensor, bool]:
        """Return the Jacobians (B, N, N) at ``point``, and whether they were had column by column."""
        while self._column_modes:
            try:
                return jacobian_by_columns(f, point, grad=self._column_modes[0]), True
            except NoDerivativeError as error:
                self._obstacle = self._obstacle or error
                del self._column_modes[0]
        try:
            return jacobian_by_rows(f, point), False
        except NoDerivativeError as error:
            assert self._obstacle is not None
            raise neither_way(forward=self._obstacle, reverse=error) from error

    def _reverse(self, f: Counted, point: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        try:
            if self._recorded is None or not self.looks or not _same(self._recorded.z, point):
                self._recorded = None  # the old graph goes before the new one comes
                self._recorded = Recorded(f.checked, point)
            at = self._recorded
            return at.fz, None if v is None else at.product(v)
        except NoDerivativeError as error:
            self._obstacle, self._recorded = error, None
            return self._forward(f, point, v)

    def _forward(self, f: Counted, point: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if v is None:
            return f.checked(point).detach(), None
        first: NoDerivativeError | None = None
        while self._dual_modes:
            try:
                return push_forward(f, point, v, grad=self._dual_modes[0])
            except NoDerivativeError as error:
                first = first or error
                del self._dual_modes[0]
        assert first is not None
        raise neither_way(forward=first, reverse=self._obstacle) from first


class Recorded:
    """f at one point with its graph: any number of products with the Jacobian, without a further call of f.

    The product u -> J^T u is linear in u, so its own transpose is J: two reverse passes give J v to rounding. Attention
    is evaluated by its plain kernel, because the fused ones have no second derivative. A derivative that f takes inside
    must be taken with ``create_graph=True``: what has no graph is a constant to autograd.

    Attributes:
        z, fz: the point and f there, (B, N), state dtype, without a graph.

    Raises:
        NoDerivativeError: f cannot be evaluated with a graph.

    Examples:
        >>> import torch
        >>> at = Recorded(torch.sin, torch.zeros(2, 3))
        >>> at.product(torch.ones(2, 3))[0].tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, f: Map, z: Tensor) -> None:
        with _recording():
            self._z = z.detach().clone().requires_grad_()
            try:
                self._fz = f(self._z.clone())
            except Exception as error:
                # work in place, or an error of f that its next call shows as it is
                raise NoDerivativeError(str(error)) from error
        self.z, self.fz = self._z.detach(), self._fz.detach()
        self._pulled: tuple[Tensor, Tensor] | None = None

    def product(self, v: Tensor) -> Tensor:
        """Return J v, (B, N), state dtype. v: (B, N).

        Raises:
            NoDerivativeError: f has no graph, or an operation of it has no second derivative.
        """
        if self._pulled is None:
            self._pulled = self._pull()
        u, pulled = self._pulled
        try:
            (product,) = torch.autograd.grad(pulled, u, v, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise NoDerivativeError(str(error)) from error
        if product is None:
            raise NoDerivativeError("the backward of an operation of f cannot be differentiated")
        return product

    def _pull(self) -> tuple[Tensor, Tensor]:
        """Return u and J^T u as a function of it."""
        if not self._fz.requires_grad:
            raise NoDerivativeError("f(z) has no graph")
        with _recording():
            u = torch.zeros_like(self._fz, requires_grad=True)
            try:
                (pulled,) = torch.autograd.grad(self._fz, self._z, u, create_graph=True)
            except RuntimeError as error:
                raise NoDerivativeError(str(error)) from error
        if not pulled.requires_grad:
            raise NoDerivativeError("the backward of f has no graph")
        return u, pulled


def push_forward(f: Map, z: Tensor, v: Tensor, *, grad: bool = True) -> tuple[Tensor, Tensor]:
    """Return f(z) and J v by one call of f on dual numbers, in forward mode; (B, N) each, without a graph.

    Where f(z) carries no tangent, f does not depend on z as far as autograd can tell, and J v is zero.

    Args:
        f: the map.
        z: the point, (B, N).
        v: tangents, (B, N).
        grad: grad mode inside f, see `push_forward_many`.

    Raises:
        NoDerivativeError: an operation of f has no forward mode.
    """
    _load_forward_mode()
    try:  # a level that the caller has open allows no other one
        with _differentiating(grad), forward_ad.dual_level():
            fz, product = forward_ad.unpack_dual(f(forward_ad.make_dual(z.detach().clone(), v.clone())))
    except Exception as error:
        raise NoDerivativeError(str(error)) from error
    fz = fz.detach()
    return fz, torch.zeros_like(fz) if product is None else product.detach()


def push_forward_many(f: Map, z: Tensor, v: Tensor, *, grad: bool) -> Tensor:
    """Return J v for K tangents, (K, B, N) state dtype, by one call of f in forward mode.

    Args:
        f: the map.
        z: the point, (B, N).
        v: tangents, (K, N), each the same for all rows.
        grad: grad mode inside f. Off saves the graphs of K tangents; layers with fused kernels for inference, and
            those without a graph they were opened for, each work with one of the two only.

    Raises:
        NoDerivativeError: an operation of f has no forward mode, or f cannot be vectorised over tangents.
    """
    _load_forward_mode()
    with _differentiating(grad):
        point = z.detach().clone()
        push = torch.vmap(lambda v: torch.func.jvp(f, (point,), (v.expand(z.shape),))[1], randomness="same")
        try:
            return push(v).detach()
        except Exception as error:
            raise NoDerivativeError(str(error)) from error


def jacobian_by_columns(f: Map, z: Tensor, *, grad: bool = True) -> Tensor:
    """Return the Jacobians of all rows, (B, N, N) state dtype, by one call of f with N tangents.

    Rows are independent, so N tangents, one per unknown and the same for all rows, give every column of every row.

    Raises:
        NoDerivativeError: see `push_forward_many`, whose ``grad`` this is.
    """
    unit = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return push_forward_many(f, z, unit, grad=grad).permute(1, 2, 0)


def jacobian_by_rows(f: Map, z: Tensor) -> Tensor:
    """Return what `jacobian_by_columns` does, by N reverse passes over one graph of f.

    Raises:
        NoDerivativeError: f has no graph, or an operation of it no derivative.
    """
    with _recording():
        point = z.detach().clone().requires_grad_()
        try:
            fz = f(point.clone())
            if not fz.requires_grad:
                raise NoDerivativeError("f(z) has no graph")
            rows = [torch.autograd.grad(fz, point, e, retain_graph=True)[0] for e in _basis(z)]
        except Exception as error:
            raise NoDerivativeError(str(error)) from error
    return torch.stack(rows, 1)


def _basis(z: Tensor) -> Tensor:
    """Return the unit vectors of a row, the same for all rows, (N, B, N)."""
    rows, unknowns = z.shape
    return torch.eye(unknowns, dtype=z.dtype, device=z.device)[:, None].expand(unknowns, rows, unknowns)


@contextmanager
def _differentiating(grad: bool = True) -> Iterator[None]:
    """Evaluate f with derivatives: in a grad mode, outside of inference mode, and attention by its plain kernel.

    A tensor made in inference mode has no derivative, so points are cloned inside.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(grad), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _recording() -> Iterator[None]:
    """The same for a graph of the solver's own, which hooks of the caller must not see.

    Activation checkpointing around the solve would keep its tensors, and do the solve anew for each product. Hooks
    switch off autograd's look at tensors that were written meanwhile, so there are none where the caller has none.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_differentiating())
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:  # type: ignore[attr-defined]
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t))
        yield


@functools.cache
def _load_forward_mode() -> None:
    """Load what forward mode loads on first use, without torch's warning about its own use of torch.jit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _same(a: Tensor, b: Tensor) -> bool:
    """Say whether two points are the same, NaN in the same places included."""
    return bool(((a == b) | ((a != a) & (b != b))).all())
