"""State trees to rows (B, N) and back."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deqlm.wrap.cuts import first_dims, healthy_source, some, spared
from deqlm.wrap.held import Held
from deqlm.wrap.replay import Replay
from deqlm.wrap.solved_by import SolvedBy
from deqlm.wrap.trees import describe, in_order, map_tensors, structure_hint, tree_flatten, tree_unflatten
from deqlm_solvers.core.checks import require
from deqlm_solvers.core.cost import Count
from deqlm_solvers.core.kinds import memory_format, refuse_tracing, require_state

__all__ = ["RowMap", "Rows"]

_KEPT = "f keeps the shape of its state, which is that of the start, or of x in a DEQ: change a width outside of it"


class Rows:
    """Packs a state (a tensor or a tree of tensors) into rows (B, N), and unpacks what a solver returns.

    The first ``batch_dims`` dimensions of every leaf index independent problems; the rest is flattened, leaf after
    leaf. One real leaf is a view, a tree is one ``cat``. Complex leaves become pairs of reals. Leaves of several dtypes
    are solved in their common one and returned each in its own.

    Args:
        state: tensor or tree of tensors (dict, list, tuple, dataclass registered with torch).
        batch_dims: leading dimensions that index rows; 0 makes one problem of everything; None takes 1, or 0 for a
            0-d state, and refuses a 1-d state, which can mean either.
        name: what the user calls the state.

    Raises:
        TypeError: a leaf that is no tensor.
        ValueError: no leaf, too few dimensions, leaves of several batch shapes or devices, or a leaf that is an integer
            or no dense tensor of numbers; see `deqlm_solvers.core.kinds`.
        RuntimeError: the call is recorded by torch.jit.trace, make_fx or torch.export.
    """

    def __init__(self, state: Any, batch_dims: int | None = None, name: str = "z0") -> None:
        refuse_tracing()
        if type(state) is Tensor and state.is_floating_point():
            require_state(state, name)
            self._of_tensor(state, batch_dims)
            return
        leaves, self.spec = ([state], _LEAF) if isinstance(state, Tensor) else tree_flatten(state)
        self._check_leaves(leaves, state, name)
        self.batch_dims = _batch_dims(leaves, batch_dims)
        self.batch_shape = leaves[0].shape[: self.batch_dims]
        for leaf in leaves[1:]:
            same = leaf.shape[: self.batch_dims] == self.batch_shape
            require(same, name, tuple(leaf.shape), f"a leaf whose first dimensions are {tuple(self.batch_shape)}")
        self.count = math.prod(self.batch_shape)
        self.shapes = [leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        reals = [_real(leaf) for leaf in leaves]
        self.row_shapes = tuple(tuple(real.shape[self.batch_dims :]) for real in reals)
        self.sizes = [math.prod(shape) for shape in self.row_shapes]
        self.dtype = reals[0].dtype
        for real in reals:
            self.dtype = torch.promote_types(self.dtype, real.dtype)
        self.device = leaves[0].device
        self.formats = [memory_format(leaf) for leaf in leaves]
        self.z0 = self._join(reals)
        self.plain = self.spec.is_leaf() and not leaves[0].is_complex()

    def _of_tensor(self, state: Tensor, batch_dims: int | None) -> None:
        """Pack one real tensor, as the rest of ``__init__`` does in general."""
        shape = state.shape
        self.spec, self.plain = _LEAF, True
        self.batch_dims = 1 if batch_dims is None and len(shape) > 1 else _batch_dims([state], batch_dims)
        self.batch_shape, row_shape = shape[: self.batch_dims], tuple(shape[self.batch_dims :])
        self.count, size = math.prod(self.batch_shape), math.prod(row_shape)
        self.shapes, self.row_shapes, self.sizes = [shape], (row_shape,), [size]
        self.dtype, self.device = state.dtype, state.device
        self.dtypes = [self.dtype]
        self.formats = [memory_format(state) if len(shape) > 3 else None]
        self.z0 = state if len(shape) == 2 and self.batch_dims == 1 else state.reshape(self.count, size)

    def _check_leaves(self, leaves: list[Any], state: Any, name: str) -> None:
        require(len(leaves) > 0, name, state, "a tensor or a tree with at least one tensor")
        also = "an inject that embeds ids" if self.spec.is_leaf() else "further arguments for what is no unknown"
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(f"the state must be a tensor or a tree of tensors, got a leaf {type(leaf).__name__}")
            require(leaf.device == leaves[0].device, name, leaf.device, f"on one device, {leaves[0].device}")
            require_state(leaf, name)
            ok = leaf.is_floating_point() or leaf.is_complex()
            require(ok, name, leaf.dtype, f"floating point or complex; use {name}.float() for integers, or {also}")

    def narrow(self, count: int) -> Rows:
        """Return how ``count`` rows of the same state are packed, along one batch dimension. It has no start."""
        made = copy.copy(self)
        made.count, made.batch_dims = count, 1
        made.batch_shape = torch.Size((count,))
        made.shapes = [torch.Size((count, *shape[self.batch_dims :])) for shape in self.shapes]
        made.__dict__.pop("z0", None)
        return made

    def pack(self, state: Any) -> Tensor:
        """Return the rows (B, N) of a state with the structure, shapes and dtypes of the first one.

        Under autocast a leaf may have a lower floating dtype; it is cast back.

        Raises:
            TypeError: another structure.
            ValueError: another shape, dtype or device.
        """
        leaves, spec = tree_flatten(state)
        if spec != self.spec:
            template = tree_unflatten(range(len(self.shapes)), self.spec)
            leaves, spec = tree_flatten(in_order(state, template))
        if spec != self.spec:
            got = f"{describe(spec)}{structure_hint(self.spec, spec)}"
            raise TypeError(f"f must return the structure of z, {describe(self.spec)}, got {got}")
        reals = []
        for leaf, shape, dtype in zip(leaves, self.shapes, self.dtypes, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"f must return tensors, got {type(leaf).__name__}")
            if leaf.device == self.device:
                require_state(leaf, "f(z)")
            if leaf.shape != shape:
                told = f"must be that of z, {tuple(shape)}, got {tuple(leaf.shape)}"
                raise ValueError(f"the shape of f(z) {told}; {_KEPT}")
            require(leaf.device == self.device, "the device of f(z)", leaf.device, f"that of z, {self.device}")
            if leaf.dtype != dtype:
                cast = torch.is_autocast_enabled(self.device.type) and leaf.is_floating_point()
                require(cast, "the dtype of f(z)", leaf.dtype, f"that of z, {dtype}")
                leaf = leaf.to(dtype)
            reals.append(_real(leaf))
        return self._join(reals)

    def unpack(self, rows: Tensor) -> Any:
        """Return the state of rows (B, N), each leaf in its shape and dtype."""
        if self.plain:
            shape, dtype = self.shapes[0], self.dtypes[0]
            rows = rows if rows.dtype == dtype else rows.to(dtype)
            return rows if rows.shape == shape else rows.reshape(shape)
        leaves = []
        parts = [rows] if len(self.sizes) == 1 else rows.split(self.sizes, dim=1)
        for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True):
            if dtype.is_complex:
                pairs = part.reshape(*shape, 2).to(dtype.to_real())
                # a slice of several leaves may begin at an odd place, which complex numbers cannot
                pairs = pairs if len(parts) == 1 else pairs.clone(memory_format=torch.contiguous_format)
                leaves.append(torch.view_as_complex(pairs))
            else:
                leaves.append(part.reshape(shape).to(dtype))
        return tree_unflatten(leaves, self.spec)

    def result(self, rows: Tensor) -> Any:
        """Return the same with each leaf in the memory format of the start, channels last where that was."""
        state = self.unpack(rows)
        if not any(self.formats):
            return state
        leaves, spec = tree_flatten(state)
        pairs = zip(leaves, self.formats, strict=True)
        return tree_unflatten([t.contiguous(memory_format=how) if how else t for t, how in pairs], spec)

    def round(self, z: Tensor) -> Tensor:
        """Return rows (B, N) rounded to what the dtypes of the leaves hold."""
        return self.pack(self.unpack(z))

    def per_row(self, values: Tensor) -> Tensor:
        """Return one value per row (B, ...) in the batch shape of the state."""
        return values.reshape((*self.batch_shape, *values.shape[1:]))

    def is_per_row(self, value: Any) -> bool:
        """Say whether ``value`` is a tensor whose first dimensions are the batch shape."""
        if not isinstance(value, Tensor) or self.batch_dims == 0:
            return False
        return first_dims(value, self.batch_dims) == self.batch_shape

    def _join(self, reals: list[Tensor]) -> Tensor:
        flat = [real.reshape(self.count, size).to(self.dtype) for real, size in zip(reals, self.sizes, strict=True)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


class RowMap:
    """A user's map as a map on rows: z (B, N) -> f(unpack(z), *prepared inputs), packed again.

    Args:
        rows: how states are packed.
        f: called as ``f(z, *inputs)``.
        inputs: what f gets besides the state, before `prepare`; a tuple of trees.
        prepare: makes f's inputs of ``inputs``, once; None takes them as they are.
        prepared: its result, where the caller has it already.
        fixed: says, once f has been evaluated, that no row may be left out because f draws noise for the whole batch.
        held: unknowns that stay where they are, or None.
        owner: the layer or function of the user that f evaluates, which may leave tensors somewhere, or None.

    Attributes:
        count: evaluations of f so far, those of maps made by `without` and `narrow` included.
        solved_by: how a solved point was found, for the gradient method that connects it; None elsewhere.
        bare: f as the user wrote it, without what holds its noise and buffers, for a compiler to look at; or None.
        replay: what holds them; or None.
    """

    def __init__(
        self,
        rows: Rows,
        f: Callable[..., Any],
        inputs: tuple[Any, ...],
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        prepared: tuple[Any, ...] | None = None,
        fixed: Callable[[], bool] | None = None,
        held: Held | None = None,
        owner: Any = None,
    ) -> None:
        self.rows = rows
        self.f = f
        self.inputs = inputs
        self.prepare = prepare
        if prepared is None:
            prepared = inputs if prepare is None else prepare(*inputs)
        self.prepared = prepared
        self.fixed = fixed
        self.held = held
        self.owner = owner
        self.bare: Callable[..., Any] | None = None
        self.replay: Replay | None = None
        self.solved_by: SolvedBy | None = None
        self.count = Count()

    @property
    def calls(self) -> int:
        """Evaluations of f so far."""
        return self.count.calls

    @property
    def row_calls(self) -> int:
        """Rows summed over those evaluations."""
        return self.count.rows

    def settle(self, z: Tensor) -> None:
        """Evaluate at ``z`` (B, N) once if evaluations might differ in what they save for backward before that."""
        if self.held is not None:
            self.held.look(partial(self, bare=True), z)

    def __call__(self, z: Tensor, bare: bool = False) -> Tensor:
        """Return f at ``z`` (B, N), likewise; ``bare`` is the map in which nothing is held."""
        if self.held is not None and not bare:
            return self.held.evaluate(partial(self, bare=True), z)
        rows = self.rows
        self.count.calls += 1
        self.count.rows += rows.count
        if not rows.plain:
            return rows.pack(self.f(rows.unpack(z), *self.prepared))
        shape = rows.shapes[0]
        fz = self.f(z if z.shape == shape else z.reshape(shape), *self.prepared)
        plain = type(fz) is Tensor and fz.layout is torch.strided and not fz.is_nested
        if plain and fz.shape == shape and fz.dtype == rows.dtype and fz.device == rows.device:
            return fz if fz.dim() == 2 and rows.batch_dims == 1 else fz.reshape(rows.count, rows.sizes[0])
        return rows.pack(fz)

    def narrow(self, rows: Tensor) -> RowMap | None:
        """Return the map on ``rows`` (K,) alone; see `deqlm_solvers.loop.subset.SubsetMap`.

        Inputs whose first dimension is that of the batch are taken to be per row; where one is not, the caller's probe
        finds it out.
        """
        if self.rows.batch_dims != 1 or (self.fixed is not None and self.fixed()):
            return None
        count = self.rows.count

        def select(leaf: Tensor) -> Tensor:
            return some(leaf, rows) if first_dims(leaf, 1) == (count,) else leaf

        made = RowMap(self.rows.narrow(rows.shape[0]), self.f, map_tensors(select, self.prepared), fixed=self.fixed)
        made.held = None if self.held is None else self.held.select(rows)
        made.count = self.count
        return made

    def without(self, bad: Tensor, z: Tensor, announce: Callable[[], object] | None = None) -> RowMap:
        """Return the map in which ``bad`` rows (B,) use the inputs of the first healthy row.

        Zero times NaN is NaN: a NaN row would spoil every shared gradient even with a zero cotangent, so its inputs are
        replaced before the graph is built. A tensor whose first dimensions only happen to be those of the batch (a
        table of positions, a mask between tokens) is found out, because replacing parts of it changes f of healthy
        rows, and left as it is.

        Args:
            bad: rows to replace; not all of them.
            z: point (B, N) at which maps are compared, healthy in every row.
            announce: called before inputs are prepared and the map is evaluated, each time: other processes do `again`
                what this one does here.
        """
        leaves, _ = tree_flatten(self.inputs)
        held = None if self.held is None else self.held.select(healthy_source(bad))

        def with_leaves(new: dict[int, Tensor]) -> RowMap:
            if announce is not None:
                announce()
            return self._with_leaves(new, held)

        if announce is None:
            with torch.no_grad():
                want = self(z)[~bad]
        else:
            announce()
            want = self.again(z)[~bad]

        def apart(i: int, new: Tensor | None) -> bool | None:
            """Say whether healthy rows are blind to a change of leaf ``i``; None where f does not take it."""
            try:
                with torch.no_grad():
                    moved = None if new is None else with_leaves({i: new})(z)[~bad]
            except Exception:  # f may raise anything at inputs that nobody gave it
                return None
            return None if moved is None else torch.allclose(moved, want, rtol=1e-3, atol=1e-6)

        per_row = {i: leaf for i, leaf in enumerate(leaves) if self.rows.is_per_row(leaf)}
        healthy = with_leaves(spared(per_row, bad, healthy_source(bad), self.rows.batch_dims, apart))
        with torch.no_grad():
            if not bool(healthy(z).isfinite().all()):
                text = "f is not finite in failed rows even with the inputs of a healthy row: gradients may be NaN; "
                warnings.warn(text + "give per-row tensors by args, batch dimensions first", UserWarning, stacklevel=2)
        return healthy

    def again(self, z: Tensor) -> Tensor:
        """Prepare the inputs and evaluate at ``z`` (B, N) without a graph, only to do what other processes do."""
        with torch.no_grad():
            if self.prepare is not None:
                self.prepare(*self.inputs)
            return self(z)

    def cleared(self, announce: Callable[[], object]) -> RowMap:
        """Return the map whose per-row inputs are zeros, where every row failed and other processes have healthy ones.

        Args:
            announce: as for `without`.
        """
        leaves, _ = tree_flatten(self.inputs)
        announce()
        made = self._with_leaves({i: torch.zeros_like(t) for i, t in enumerate(leaves) if self.rows.is_per_row(t)})
        with torch.no_grad():
            made(torch.zeros_like(self.rows.z0))
        return made

    def _with_leaves(self, new: dict[int, Tensor], held: Held | None = None) -> RowMap:
        leaves, spec = tree_flatten(self.inputs)
        tree = tree_unflatten([new.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
        made = RowMap(self.rows, self.f, tree, self.prepare, held=held, owner=self.owner)
        made.count = self.count
        return made


_LEAF = tree_flatten(0)[1]


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf


def _batch_dims(leaves: list[Tensor], given: int | None) -> int:
    least = min(leaf.dim() for leaf in leaves)
    if given is None:
        if all(leaf.dim() == 1 for leaf in leaves):
            raise ValueError(
                "batch_dims must be given for a 1-d z0: 0 for one problem of N unknowns, 1 for N scalar problems"
            )
        return min(1, least)
    whole = isinstance(given, int) and not isinstance(given, bool) and given >= 0
    require(whole, "batch_dims", given, "a whole number >= 0")
    require(given <= least, "batch_dims", given, f"at most the dimensions of z0, {least}")
    return given
