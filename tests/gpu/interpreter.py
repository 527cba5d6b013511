"""Triton's interpreter made strict: bfloat16 as a GPU rounds it, bounds, races and hazards seen, any order of programs.

To be installed before the first launch, in a process with TRITON_INTERPRET=1, which triton reads when it is imported.
What is proven of a kernel that passes: its arithmetic and masks, that no access leaves the tensors of its launch, that
no program reads or overwrites what another one of the launch writes, and that within a program nothing is read back, or
overwritten after it was read, without a barrier, but element by element. Not proven: rounding of FMA and tf32, speed.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as base

MANY = -2
NOBODY = -1


class FaultError(Exception):
    """A kernel does what would be wrong, or depend on time, on a device."""


@dataclass
class Launch:
    """One launch: kernel, programs, constexpr and other arguments, options, and bytes moved by name of the argument."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]
    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)


@dataclass
class Settings:
    """How launches run: order of programs ("forward", "reverse" or a seed), and what is looked at."""

    order: str | int = "forward"
    watch: bool = True
    hazards: bool = True
    launches: list[Launch] | None = None


SETTINGS = Settings()


@contextmanager
def checked(order: str | int = "forward", watch: bool = True, hazards: bool = True) -> Iterator[list[Launch]]:
    """Run launches in some order of programs, watched; yield the list to which each of them is added."""
    global SETTINGS
    before, launches = SETTINGS, []
    SETTINGS = Settings(order, watch, hazards, launches)
    try:
        yield launches
    finally:
        SETTINGS = before


class Memory:
    """Who has touched which byte in one launch, and in which way."""

    def __init__(self, arguments: dict[str, Any], launch: Launch, settings: Settings) -> None:
        self.launch, self.settings = launch, settings
        self.program = self.epoch = 0
        tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        spans = {name: _span(tensor) for name, tensor in tensors.items() if tensor.numel()}
        self.spans = sorted(((start, end, name) for name, (start, end) in spans.items()))
        self.start = min((start for start, _, _ in self.spans), default=0)
        self.names = [name for _, _, name in self.spans]
        self.logs: dict[int, dict[str, np.ndarray]] = {}
        merged: list[list[int]] = []
        for start, end, _ in self.spans:
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        self.starts = np.array([start for start, _ in merged], dtype=np.int64)
        self.ends = np.array([end for _, end in merged], dtype=np.int64)
        self.shapes: dict[tuple[int, ...], int] = {}

    def enter(self, program: int) -> None:
        self.program, self.epoch = program, 0

    def look(self, pointers: np.ndarray, mask: np.ndarray, size: int, stores: bool) -> None:
        """Take one access of the program that runs."""
        active = np.broadcast_to(mask, pointers.shape)
        addresses = pointers[active].astype(np.int64)
        if not addresses.size:
            return
        piece = np.searchsorted(self.starts, addresses, side="right") - 1
        outside = (piece < 0) | (addresses + size > self.ends[piece.clip(0)]) if self.starts.size else np.array([True])
        if outside.any():
            raise FaultError(f"{self.launch.name} {'stores' if stores else 'loads'} outside of its tensors")
        self._count(addresses, size, stores)
        shape = pointers.shape if pointers.size > 1 else ()
        number = self.shapes.setdefault(shape, len(self.shapes) + 1) if shape else 0
        for which in np.unique(piece) if piece[0] != piece[-1] else piece[:1]:
            here = addresses[piece == which] - self.starts[which]
            self._meet(int(which), here, number, stores)

    def _count(self, addresses: np.ndarray, size: int, stores: bool) -> None:
        book = self.launch.stored if stores else self.launch.loaded
        for start, end, name in self.spans:
            if start <= addresses[0] < end:
                book[name] = book.get(name, 0) + size * (1 if addresses.size == 1 else np.unique(addresses).size)
                return

    def _meet(self, piece: int, at: np.ndarray, shape: int, stores: bool) -> None:
        log = self.logs.get(piece)
        if log is None:
            length = int(self.ends[piece] - self.starts[piece])
            log = {name: np.full(length, NOBODY, dtype=np.int64) for name in ("writer", "reader", "wrote", "read")}
            self.logs[piece] = log
        writer, reader = log["writer"][at], log["reader"][at]
        way = self.epoch * 1000 + shape
        others = (writer != NOBODY) & (writer != self.program)
        if stores:
            others |= (reader != NOBODY) & (reader != self.program)
        if others.any():
            what = "overwrites what another program reads or writes" if stores else "reads what another program writes"
            raise FaultError(f"{self.launch.name} {what}")
        if self.settings.hazards:
            if self._unordered(log["wrote"][at], writer, shape, stores):
                raise FaultError(f"{self.launch.name} {'overwrites' if stores else 'reads'} what it wrote, no barrier")
            if stores and self._unordered(log["read"][at], reader, shape, False):
                raise FaultError(f"{self.launch.name} overwrites what it read, no barrier")
        if stores:
            log["writer"][at], log["wrote"][at] = self.program, way
        else:
            log["reader"][at] = np.where((reader == NOBODY) | (reader == self.program), self.program, MANY)
            log["read"][at] = way

    def _unordered(self, way: np.ndarray, who: np.ndarray, shape: int, both_store: bool) -> bool:
        """Say whether an earlier access of this program, since the last barrier, may meet this one in another thread.

        Blocks of one shape lie in threads alike; single numbers are loaded by all threads and stored by one.
        """
        same = (way % 1000 == shape) & ((shape > 0) | both_store)
        return bool(((who == self.program) & (way // 1000 == self.epoch) & ~same).any())


MEMORY: Memory | None = None


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _wide(handle: base.TensorHandle) -> base.TensorHandle:
    """Return a bfloat16 handle as float32, any other as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return base.TensorHandle(bits.view(np.float32), tl.float32)


def _narrow(data: np.ndarray) -> base.TensorHandle:
    """Return float32 numbers rounded to bfloat16, to nearest even, as torch does."""
    given = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    bits = given.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return base.TensorHandle(bits.reshape(np.shape(data)), tl.bfloat16)


class Builder(base.InterpreterBuilder):
    """The interpreter's operations, with bfloat16 through float32, comparisons that are bool, and memory watched."""

    def get_bf16(self, value: float) -> base.TensorHandle:
        return _narrow(np.array([value], dtype=np.float32))

    def create_barrier(self) -> None:
        if MEMORY is not None:
            MEMORY.epoch += 1

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if MEMORY is not None:
            size = base._get_np_dtype(ptrs.get_element_ty()).itemsize
            MEMORY.look(ptrs.data, mask.data, size, stores=False)
        return super().create_masked_load(ptrs, mask, other, *rest)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if MEMORY is not None:
            MEMORY.look(ptrs.data, mask.data, value.data.itemsize, stores=True)
        return super().create_masked_store(ptrs, value, mask, *rest)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        if tl.bfloat16 not in (src.dtype.scalar, dst_type.scalar):
            return super().cast_impl(src, dst_type)
        src = _wide(src)
        if dst_type.scalar == tl.bfloat16:
            return _narrow(src.data)
        return super().cast_impl(src, dst_type) if dst_type.scalar != tl.float32 else src

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar):
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        is_bf16 = lhs.dtype.scalar == tl.bfloat16
        made = super().binary_op(_wide(lhs), _wide(rhs), op)
        if made.data.dtype == np.bool_:
            return base.TensorHandle(made.data, tl.int1)
        return _narrow(made.data) if is_bf16 else made

    def unary_op(self, arg: Any, op: Any) -> Any:
        made = super().unary_op(_wide(arg), op)
        return _narrow(made.data) if arg.dtype.scalar == tl.bfloat16 else made

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        made = super().create_fma(_wide(x), _wide(y), _wide(z))
        return _narrow(made.data) if z.dtype.scalar == tl.bfloat16 else made

    def create_dot(self, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        made = super().create_dot(_wide(a), _wide(b), _wide(d), *rest)
        return _narrow(made.data) if d.dtype.scalar == tl.bfloat16 else made


class Executor(base.GridExecutor):
    """Runs the programs of a launch in the order that is asked for, on CPU tensors, in place."""

    def run(self, launch: Launch, arguments: dict[str, Any]) -> None:
        global MEMORY
        settings, builder = SETTINGS, base.interpreter_builder
        before = MEMORY
        try:
            given = {
                name: value if name in self.constexprs else base._implicit_cvt(value)
                for name, value in arguments.items()
            }
            builder.set_grid_dim(*launch.grid)
            MEMORY = Memory(arguments, launch, settings) if settings.watch else None
            for number, place in _ordered(launch.grid, settings.order):
                if MEMORY is not None:
                    MEMORY.enter(number)
                builder.set_grid_idx(*place)
                with np.errstate(all="ignore"):
                    self.fn(**given)
        finally:
            MEMORY = before


def _ordered(grid: tuple[int, ...], order: str | int) -> list[tuple[int, tuple[int, int, int]]]:
    programs = list(enumerate((x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])))
    if order == "reverse":
        programs.reverse()
    elif order != "forward":
        random.Random(order).shuffle(programs)
    return programs


def _run(self: base.InterpretedFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
    """Stand for `InterpretedFunction.run`: note the launch and run it."""
    if warmup:
        return
    executor = Executor(self.rewrite(), self.arg_names, grid, self.pre_run_hooks)
    names = inspect.getfullargspec(executor.fn).args
    options = {name: value for name, value in kwargs.items() if name not in names}
    arguments = inspect.getcallargs(executor.fn, *args, **{k: v for k, v in kwargs.items() if k in names})
    for hook in self.pre_run_hooks:
        hook(**arguments)
    grid = grid(arguments) if callable(grid) else grid
    grid = (*(int(n) for n in grid), *(1,) * (3 - len(grid)))
    shown = {name: value.value if isinstance(value, tl.constexpr) else value for name, value in arguments.items()}
    launch = Launch(self.fn.__name__, self, grid, shown, options)
    if SETTINGS.launches is not None:
        SETTINGS.launches.append(launch)
    executor.run(launch, arguments)


def _call(self: base.InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """Stand for a call from another kernel; the language is ready since `install`."""
    return self.rewrite()(*args, **kwargs)


def _reduced(honest: Any) -> Any:
    def apply_impl(self: Any, given: Any) -> Any:
        if not any(tensor.dtype.scalar == tl.bfloat16 for tensor in given):
            return honest(self, given)
        wide = tuple(tl.core.tensor(_wide(t.handle), tl.block_type(tl.float32, t.shape)) for t in given)
        made = honest(self, wide)
        shape = np.shape(made.handle.data)
        kind = tl.block_type(tl.bfloat16, list(made.shape)) if made.type.is_block() else tl.bfloat16
        return tl.core.tensor(base.TensorHandle(_narrow(made.handle.data).data.reshape(shape), tl.bfloat16), kind)

    return apply_impl


def _dtypes(honest: Any) -> Any:
    """Return `_get_np_dtype` with its table made once."""
    names = {kind: honest(kind) for kind in NUMBERS}

    def dtype(kind: Any) -> Any:
        kind = kind.scalar
        return np.dtype(np.uint64) if isinstance(kind, tl.pointer_type) else names.get(kind) or honest(kind)

    return dtype


NUMBERS = (tl.int1, tl.float16, tl.float32, tl.float64, tl.int8, tl.uint8, tl.int32, tl.int64, tl.bfloat16)


class NoDriver:
    """Stands for the driver that autotuned kernels of others ask for."""

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Return a timer that calls nothing: of several configurations the first one is taken."""
        return lambda call, **_: [0.0, 0.0, 0.0]


def install() -> None:
    """Make the interpreter of this process strict."""
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1 before triton is imported"
    base.interpreter_builder.__class__ = Builder
    base.InterpretedFunction.run = _run
    base.InterpretedFunction.__call__ = _call
    base.ReduceOps.apply_impl = _reduced(base.ReduceOps.apply_impl)
    triton.runtime.driver.set_active(NoDriver())
    base._get_np_dtype = _dtypes(base._get_np_dtype)
    # once for all, not again at every call from one kernel to another, which takes most of the time
    base._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
