"""The map as the loop and the steps see it: checked, cast to the inner dtype, and counted if it does not count."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.core.checks import require
from deqlm_solvers.core.cost import Cost, Count
from deqlm_solvers.core.dtypes import autocast_dtype, inner_dtype
from deqlm_solvers.core.kinds import refuse_transforms, require_state
from deqlm_solvers.core.solver import Evaluation, Map
from deqlm_solvers.loop.derivative import Derivatives
from deqlm_solvers.loop.subset import subset

__all__ = ["Evaluator", "check_start"]


def check_start(z0: Tensor) -> None:
    """Raise unless ``z0`` is a (B, N) floating-point tensor, outside the transforms of torch.func.

    Raises:
        TypeError: no tensor.
        ValueError: wrong number of dimensions, an integer or complex dtype, or no dense tensor of numbers.
        RuntimeError: see `refuse_transforms`.
    """
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 must be a tensor, got {type(z0).__name__}")
    refuse_transforms(z0)
    require_state(z0, "z0")
    if z0.dim() != 2 or not z0.is_floating_point():
        require(z0.dim() == 2, "z0", tuple(z0.shape), "of shape (B, N), rows by unknowns")
        require(False, "z0", z0.dtype, "floating point (z0.float()); complex as pairs of reals")


class Evaluator:
    """Evaluates f: checks what it returns, counts calls, and does half precision in float32.

    The loop asks for an `Evaluation` by `at`; a step that needs more of f calls the evaluator itself, or asks it for
    products with the Jacobian. A bfloat16 or float16 state lives on its own grid: f sees the rounded point, and the
    residual is that of the rounded point, so what is returned has the residual that is reported. Autocast is left to f:
    the loop turns it off for its own algebra, and it is on again inside f.

    Args:
        f: the map; one with a `Count` counts itself.
        z0: start, (B, N).
        round: see `Layout`.
        record: the first evaluation keeps the graph of f, for products with the Jacobian there.
        looks: see `Derivatives`.

    Attributes:
        dtype: of the state.
        inner: of iterates and algebra.
        eps: of the dtype that f computes in.
        autocast: the dtype of autocast in f, or None.
        steps: calls of f that ``max_iter`` bounds.
        wanted: what `StepSolver.asks` asked for at the last evaluation, or None with ``check_every=0``.

    Examples:
        >>> f = Evaluator(lambda z: 0.5 * z + 1, torch.zeros(2, 3))
        >>> f.at(torch.ones(2, 3)).r[0, 0].item(), f(torch.ones(2, 3))[0, 0].item(), f.calls
        (0.5, 1.5, 2)
    """

    def __init__(self, f: Map, z0: Tensor, round: Map | None = None, record: bool = False, looks: bool = True) -> None:
        self.dtype, self.shape, self.device = z0.dtype, z0.shape, z0.device
        self.inner = inner_dtype(z0.dtype)
        self.autocast = autocast_dtype(z0.device.type)
        self.eps = torch.finfo(self.autocast or z0.dtype).eps
        self.round = round
        self.wanted: bool | None = None
        self.steps = self._vjps = self._jvps = 0
        own = getattr(f, "count", None)
        self._count = own if isinstance(own, Count) else Count()
        self._before = (self._count.calls, self._count.rows)
        self._whole = self._mapped = f
        self._present: Tensor | None = None
        self._f = self._called(f)
        self._derivatives: Derivatives | None = Derivatives(looks) if record else None
        self._asked: tuple[Tensor | None] | None = (None,) if record else None

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N), state dtype, counted and otherwise as it is."""
        self.steps += 1
        return self._f(z)

    def at(self, z: Tensor) -> Evaluation:
        """Evaluate at ``z`` (B, N), inner dtype.

        Raises:
            TypeError: f returned no tensor.
            ValueError: f changed shape, dtype or device, or wrote into its argument.
            NoDerivativeError: a step asked for a product with the Jacobian, and autograd cannot give one.
        """
        if self.round is not None:
            z = self.round(z)
        half = self.dtype != self.inner
        point = z.to(self.dtype) if half else z
        if self._asked is not None:
            return self._with_tangent(point)
        fz = self.checked(point)
        if fz.requires_grad and not torch.is_grad_enabled():
            fz = fz.detach()
        if half:
            z, fz = point.to(self.inner), fz.to(self.inner)
        return Evaluation(z, fz)

    def checked(self, point: Tensor) -> Tensor:
        """Return f(point), state dtype, counted, after a look at what f returned; errors as for `at`."""
        version = -1 if point.is_inference() else point._version
        self.steps += 1
        fz = self._f(point)
        if version >= 0 and point._version != version:
            raise ValueError("f wrote into its argument in place; return a new tensor (z.clone() first, or z + 1)")
        if not isinstance(fz, Tensor):
            raise TypeError(f"f must return a tensor, got {type(fz).__name__}")
        if fz.shape != self.shape or fz.dtype != self.dtype or fz.device != self.device:
            self._refuse(fz)
        return fz.resolve_neg() if fz.is_neg() else fz

    def aside(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N), state dtype, as a call that is no point of the solve: paid for by whoever planned it."""
        return self._f(z.to(self.dtype))

    @property
    def calls(self) -> int:
        """Calls of f so far: `steps` and those beside them."""
        return self._count.calls - self._before[0]

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return Cost(self.calls, self._count.rows - self._before[1], jvps=self._jvps, vjps=self._vjps)

    @property
    def narrowed(self) -> bool:
        """Whether rows have been left out."""
        return self._mapped is not self._whole

    def narrow(self, rows: Tensor, at: Evaluation) -> bool:
        """Leave out of f all but ``rows`` (K,) from now on, if f can be evaluated on these alone; say whether it is so.

        Args:
            rows: indices (K,) of those present, ascending.
            at: the last evaluation.
        """
        if self.round is not None:
            return False
        if self._present is None:
            point, value = at.z.to(self.dtype), at.fz.to(self.dtype)
            made = subset(self._whole, rows, point, value, lambda f, z: self._called(f)(z))
            self._present = rows
        else:
            # the probe of the first time has shown that rows of the whole do not mix, so it is the whole that is cut
            self._present = self._present.index_select(0, rows)
            made = self._whole.narrow(self._present)  # type: ignore[attr-defined]
        if made is None:
            return False
        self._mapped, self._f = made, self._called(made)
        self.shape = torch.Size((rows.shape[0], self.shape[1]))
        return True

    def widen(self, z: Tensor) -> Evaluation:
        """Evaluate all rows at ``z`` (B, N) beside the steps; what `narrow` has left out is there again."""
        self._mapped, self._f = self._whole, self._called(self._whole)
        self.shape, self._present, self._asked = z.shape, None, None
        before = self.steps
        at = self.at(z)
        self.steps = before
        return at

    def carry(self, v: Tensor | None) -> None:
        """Ask that the next evaluation of the loop brings `Evaluation.jv`, the product J v at its point.

        f is called once for a point and all products there, or, where an operation of f has no second derivative, once
        for every product, in forward mode.

        Args:
            v: tangents (B, N), inner dtype; None records the graph only, for products at the same point later.
        """
        self._asked = (v,)

    def products(self, z: Tensor, v: Tensor) -> Tensor:
        """Return J v of all rows at ``z`` for K tangents, (K, B, N) inner dtype; they count as K products.

        By one call of f in forward mode, by one for each tangent where an operation of f cannot be vectorised over
        them, or by two reverse passes for each where one has no forward mode.

        Args:
            z: the point, (B, N).
            v: tangents, (K, N), each the same for all rows.

        Raises:
            NoDerivativeError: autograd cannot differentiate f.
        """
        before = self.steps
        try:
            products = self.derivatives.products(self, z.to(self.dtype), v.to(self.dtype))
        finally:
            self.steps = before
        self._jvps += v.shape[0]
        return products.to(self.inner)

    def jacobian(self, z: Tensor, known: Map | None = None) -> Tensor:
        """Return the Jacobians of all rows at ``z`` (B, N), (B, N, N) inner dtype.

        Args:
            z: the point.
            known: computes them, which counts as one product; None takes N products by autograd.

        Raises:
            NoDerivativeError: autograd cannot differentiate f.
            TypeError, ValueError: ``known`` returned something else.
        """
        if known is not None:
            return self.known(z, known, "jacobian", "(B, N, N)", (*self.shape, self.shape[1]))
        before = self.steps
        try:
            jacobian, by_columns = self.derivatives.jacobian(self, z.to(self.dtype))
        finally:
            self.steps = before  # they are paid for by their products
        if by_columns:
            self._jvps += self.shape[1]
        else:
            self._vjps += self.shape[1]
        return jacobian.to(self.inner)

    def known(self, z: Tensor, known: Map, name: str, axes: str, shape: tuple[int, ...]) -> Tensor:
        """Return what the user's function ``known`` makes of ``z``, inner dtype; it counts as one product.

        Args:
            z: the point, (B, N).
            known: the function.
            name: its name in messages.
            axes: the shape that it must return, in words.
            shape: the same in numbers.

        Raises:
            TypeError, ValueError: it returned something else.
        """
        self._jvps += 1
        values = known(z.to(self.dtype))
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(values).__name__}")
        require(values.shape == shape, f"the shape of {name}(z)", tuple(values.shape), f"{axes} = {shape}")
        return values.detach().to(self.inner)

    @property
    def derivatives(self) -> Derivatives:
        """What is known of the ways in which autograd can differentiate f."""
        if self._derivatives is None:
            self._derivatives = Derivatives()
        return self._derivatives

    def _with_tangent(self, point: Tensor) -> Evaluation:
        """Evaluate at ``point`` with the tangent asked for."""
        assert self._asked is not None
        (v,), self._asked = self._asked, None
        fz, product = self.derivatives.evaluate(self, point, None if v is None else v.to(self.dtype))
        if v is not None:
            self._jvps += 1
        return Evaluation(point.to(self.inner), fz.to(self.inner), None if product is None else product.to(self.inner))

    def _called(self, f: Map) -> Map:
        """Return ``f``, or a part of it, as it is called here: counted, in the autocast of the caller."""
        counted = f if getattr(f, "count", None) is self._count else _counted(f, self._count)
        return counted if self.autocast is None else _in_autocast(counted, self.device.type, self.autocast)

    def _refuse(self, fz: Tensor) -> None:
        for what, got, want in (
            ("shape", tuple(fz.shape), tuple(self.shape)),
            ("dtype", fz.dtype, self.dtype),
            ("device", fz.device, self.device),
        ):
            require(got == want, f"the {what} of f(z)", got, f"that of z, {want}")


def _counted(f: Map, count: Count) -> Map:
    def call(z: Tensor) -> Tensor:
        count.add(z.shape[0])
        return f(z)

    return call


def _in_autocast(f: Map, device: str, dtype: torch.dtype) -> Map:
    def evaluate(z: Tensor) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return f(z)

    return evaluate
