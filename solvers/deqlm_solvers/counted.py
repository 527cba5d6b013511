"""The map as the driver calls it: checked, counted, and cast to the inner dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from deqlm_solvers.checks import require
from deqlm_solvers.derivative import (
    NoDerivativeError,
    Recorded,
    jacobian_by_columns,
    jacobian_by_rows,
    neither_way,
    push_forward,
    push_forward_many,
)
from deqlm_solvers.kinds import require_state
from deqlm_solvers.narrow import narrowed
from deqlm_solvers.solution import Cost
from deqlm_solvers.solver import Evaluation, Map
from deqlm_solvers.transforms import refuse_transforms

__all__ = ["HALF", "CountedMap", "InnerMap", "check_start", "evaluated_dtype", "inner_dtype"]

HALF = (torch.bfloat16, torch.float16)


def inner_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of iterates and algebra for a state of ``dtype``: at least float32."""
    return torch.float32 if dtype in HALF else dtype


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
    require(z0.dim() == 2, "z0", tuple(z0.shape), "of shape (B, N), rows by unknowns")
    require(z0.is_floating_point(), "z0", z0.dtype, "floating point (z0.float()); complex as pairs of reals")


def evaluated_dtype(z: Tensor) -> torch.dtype:
    """Return the dtype that a map of ``z`` computes in: that of autocast where it is on, else that of ``z``."""
    return _autocast(z.device.type) or z.dtype


class CountedMap:
    """Evaluates f: checks what it returns, counts calls, and does half precision in float32.

    A bfloat16 or float16 state lives on its own grid: f sees the rounded point, and the residual is that of the rounded
    point, so what is returned has the residual that is reported. Autocast is left to f: the driver turns it off for
    its own algebra, and it is on again inside f.

    Args:
        f: the map.
        z0: start, (B, N).
        snap: see `Frame`.
        record: the first evaluation keeps the graph of f, for products with the Jacobian there.
    """

    def __init__(self, f: Map, z0: Tensor, snap: Map | None = None, record: bool = False) -> None:
        self.f = self._whole = f
        self._kept: Tensor | None = None
        self.snap = snap
        self.autocast = _autocast(z0.device.type)
        self.dtype = z0.dtype
        self.inner = inner_dtype(z0.dtype)
        self.eps = torch.finfo(self.autocast or z0.dtype).eps
        self.shape = z0.shape
        self.device = z0.device
        self.steps = self.rows = self.jvps = self.vjps = 0
        self._beside = 0
        self._carries: tuple[Tensor | None] | None = (None,) if record else None
        self._recorded: Recorded | None = None
        self._obstacle: NoDerivativeError | None = None
        self._push_modes = [False, True]
        self._column_modes, self._dual_modes = [True, False], [True, False]
        self._one_by_one_fails = False

    @property
    def calls(self) -> int:
        """Calls of f so far: `steps`, which ``max_iter`` bounds, and those beside them."""
        return self.steps + self._beside

    @property
    def narrowed(self) -> bool:
        """Whether rows have been left out."""
        return self.f is not self._whole

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return Cost(self.calls, self.rows, jvps=self.jvps, vjps=self.vjps)

    @property
    def call(self) -> InnerMap:
        """The map as a step sees it."""
        return InnerMap(self)

    def __call__(self, z: Tensor) -> Evaluation:
        """Evaluate at ``z`` (B, N), inner dtype.

        Raises:
            TypeError: f returned no tensor.
            ValueError: f changed shape, dtype or device, or wrote into its argument.
            NoDerivativeError: a step asked for a product with the Jacobian, and autograd cannot give one.
        """
        if self.snap is not None:
            z = self.snap(z)
        half = self.dtype != self.inner
        point = z.to(self.dtype) if half else z
        if self._carries is not None:
            return self._carry(point)
        fz = self.checked(point)
        if fz.requires_grad and not torch.is_grad_enabled():
            fz = fz.detach()
        if half:
            z, fz = point.to(self.inner), fz.to(self.inner)
        return Evaluation(z, fz)

    def checked(self, point: Tensor) -> Tensor:
        """Return f(point), state dtype, after a look at what f returned; errors as for an evaluation."""
        version = _version(point)
        fz = self.evaluate(point)
        if _version(point) != version:
            raise ValueError("f wrote into its argument in place; return a new tensor (z.clone() first, or z + 1)")
        if not isinstance(fz, Tensor):
            raise TypeError(f"f must return a tensor, got {type(fz).__name__}")
        if fz.shape != self.shape or fz.dtype != self.dtype or fz.device != self.device:
            self._explain(fz)
        return fz.resolve_neg() if fz.is_neg() else fz

    def narrow(self, rows: Tensor, at: Evaluation) -> bool:
        """Leave out of f all but ``rows`` (K,) from now on, if f can be evaluated on these alone; say whether it is so.

        Args:
            rows: indices (K,) of those present, ascending.
            at: the last evaluation.
        """
        if self.snap is not None:
            return False
        if self._kept is None:
            made = narrowed(self.f, rows, at.z.to(self.dtype), at.fz.to(self.dtype), self._evaluate_beside)
            self._kept = rows
        else:
            # the probe of the first time has shown that rows of the whole do not mix, so it is the whole that is cut
            self._kept = self._kept.index_select(0, rows)
            made = self._whole.narrow(self._kept)  # type: ignore[attr-defined]
        if made is None:
            return False
        self.f, self.shape = made, torch.Size((rows.shape[0], self.shape[1]))
        return True

    def widen(self, z: Tensor) -> Evaluation:
        """Evaluate all rows at ``z`` (B, N) beside the steps; what `narrow` has left out is there again."""
        self.f, self.shape, self._kept, self._carries = self._whole, z.shape, None, None
        at = self(z)
        self.steps -= 1
        self._beside += 1
        return at

    def evaluate(self, z: Tensor) -> Tensor:
        """Return f(z), state dtype, counted and otherwise as it is."""
        self.steps += 1
        return self._evaluate(self.f, z)

    def _evaluate_beside(self, f: Map, z: Tensor) -> Tensor:
        self._beside += 1
        return self._evaluate(f, z)

    def _evaluate(self, f: Map, z: Tensor) -> Tensor:
        self.rows += z.shape[0]
        if self.autocast is None:
            return f(z)
        with torch.autocast(self.device.type, dtype=self.autocast):
            return f(z)

    def carry(self, v: Tensor | None) -> None:
        """See `InnerMap.carry`."""
        self._carries = (v,)

    def jacobian(self, z: Tensor, known: Map | None) -> Tensor:
        """See `InnerMap.jacobian`."""
        point = z.to(self.dtype)
        if known is not None:
            return self.known(z, known, "jacobian", "(B, N, N)", (*self.shape, self.shape[1]))
        before = self.steps
        try:
            return self._jacobian(point).to(self.inner)
        finally:
            # they are paid for by their products
            self._beside += self.steps - before
            self.steps = before

    def products(self, z: Tensor, v: Tensor) -> Tensor:
        """See `InnerMap.products`."""
        before = self.steps
        try:
            products = self._products(z.to(self.dtype), v.to(self.dtype))
        finally:
            self._beside += self.steps - before
            self.steps = before
        self.jvps += v.shape[0]
        return products.to(self.inner)

    def _products(self, point: Tensor, v: Tensor) -> Tensor:
        while self._push_modes:
            try:
                return push_forward_many(self.evaluate, point, v, grad=self._push_modes[0])
            except NoDerivativeError as error:
                self._obstacle = error
                del self._push_modes[0]
        tangents = [one.expand(point.shape) for one in v]
        if not self._one_by_one_fails:
            try:
                return torch.stack([push_forward(self.evaluate, point, one)[1] for one in tangents])
            except NoDerivativeError as error:
                self._obstacle, self._one_by_one_fails = error, True
        try:
            recorded = Recorded(self.evaluate, point)
            return torch.stack([recorded.product(one) for one in tangents])
        except NoDerivativeError as error:
            assert self._obstacle is not None
            raise neither_way(forward=self._obstacle, reverse=error) from error

    def aside(self, z: Tensor) -> Tensor:
        """See `InnerMap.aside`."""
        return self._evaluate_beside(self.f, z.to(self.dtype))

    def _jacobian(self, point: Tensor) -> Tensor:
        while self._column_modes:
            try:
                jacobian = jacobian_by_columns(self.evaluate, point, grad=self._column_modes[0])
                self.jvps += self.shape[1]
                return jacobian
            except NoDerivativeError as error:
                self._obstacle = self._obstacle or error
                del self._column_modes[0]
        try:
            jacobian = jacobian_by_rows(self.evaluate, point)
        except NoDerivativeError as error:
            assert self._obstacle is not None
            raise neither_way(forward=self._obstacle, reverse=error) from error
        self.vjps += self.shape[1]
        return jacobian

    def known(self, z: Tensor, known: Map, name: str, axes: str, shape: tuple[int, ...]) -> Tensor:
        """See `InnerMap.known`."""
        self.jvps += 1
        values = known(z.to(self.dtype))
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(values).__name__}")
        require(values.shape == shape, f"the shape of {name}(z)", tuple(values.shape), f"{axes} = {shape}")
        return values.detach().to(self.inner)

    def _carry(self, point: Tensor) -> Evaluation:
        """Evaluate at ``point`` with the tangent asked for; f is not called again where no row has moved."""
        assert self._carries is not None
        (v,), self._carries = self._carries, None
        fz, product = self._reverse(point, v) if self._obstacle is None else self._forward(point, v)
        if v is not None:
            self.jvps += 1
        if product is not None:
            product = product.to(self.inner)
        return Evaluation(point.to(self.inner), fz.to(self.inner), product)

    def _reverse(self, point: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        try:
            if self._recorded is None or not _same(self._recorded.z, point):
                self._recorded = None  # the old graph goes before the new one comes
                self._recorded = Recorded(self.checked, point)
            kept = self._recorded
            return kept.fz, None if v is None else kept.product(v.to(self.dtype))
        except NoDerivativeError as error:
            self._obstacle, self._recorded = error, None
            return self._forward(point, v)

    def _forward(self, point: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if v is None:
            return self.checked(point).detach(), None
        first: NoDerivativeError | None = None
        while self._dual_modes:
            try:
                return push_forward(self.evaluate, point, v.to(self.dtype), grad=self._dual_modes[0])
            except NoDerivativeError as error:
                first = first or error
                del self._dual_modes[0]
        assert first is not None
        raise neither_way(forward=first, reverse=self._obstacle) from first

    def _explain(self, fz: Tensor) -> None:
        for what, got, want in (
            ("shape", tuple(fz.shape), tuple(self.shape)),
            ("dtype", fz.dtype, self.dtype),
            ("device", fz.device, self.device),
        ):
            require(got == want, f"the {what} of f(z)", got, f"that of z, {want}")


class InnerMap:
    """The map as a step sees it: a plain call, or products with its Jacobian; everything is counted.

    Args:
        counted: the map that the driver evaluates.
    """

    __slots__ = ("_counted", "eps")

    def __init__(self, counted: CountedMap) -> None:
        self._counted = counted
        self.eps = counted.eps

    def __call__(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N), state dtype."""
        return self._counted.evaluate(z)

    def carry(self, v: Tensor | None) -> None:
        """Ask that the next evaluation of the driver brings `Evaluation.jv`, the product J v at its point.

        f is called once for a point and all products there, or, where an operation of f has no second derivative, once
        for every product, in forward mode.

        Args:
            v: tangents (B, N), inner dtype; None records the graph only, for products at the same point later.
        """
        self._counted.carry(v)

    @property
    def dtype(self) -> torch.dtype:
        """That of the state."""
        return self._counted.dtype

    def aside(self, z: Tensor) -> Tensor:
        """Return f(z), (B, N), state dtype, as a call that is no point of the solve: paid for by whoever planned it."""
        return self._counted.aside(z)

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
        return self._counted.products(z, v)

    def jacobian(self, z: Tensor, known: Map | None = None) -> Tensor:
        """Return the Jacobians of all rows at ``z`` (B, N), (B, N, N) inner dtype.

        Args:
            z: the point.
            known: computes them, which counts as one product; None takes N products by autograd.

        Raises:
            NoDerivativeError: autograd cannot differentiate f.
            TypeError, ValueError: ``known`` returned something else.
        """
        return self._counted.jacobian(z, known)

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
        return self._counted.known(z, known, name, axes, shape)


def _same(a: Tensor, b: Tensor) -> bool:
    """Say whether two points are the same, NaN in the same places included."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
