"""What a call would cost on an accelerator, counted on the CPU: launches, bytes, and reads by the host."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deqlm_solvers.loop.loop import ENGINES

__all__ = ["HostReadError", "SimulatedDevice"]

READS = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::bincount"),
    *("aten::_unique2", "aten::unique_consecutive", "aten::unique_dim", "aten::unique_dim_consecutive"),
    *("aten::repeat_interleave", "aten::is_nonzero", "aten::item"),
}
"""Operations whose result, or its shape, the host must know before it goes on."""
ASKED = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.cpu: "cpu", Tensor.__array__: "numpy"}
"""Methods that bring numbers to the host, which a dispatcher on the CPU does not see."""
FREE = {"aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::empty", "aten::empty_like"}
FREE |= {"aten::empty_strided", "aten::new_empty", "aten::new_empty_strided", "aten::_reshape_alias"}
"""Operations without a kernel."""
LOOKUPS = {"aten::index_select", "aten::gather", "aten::embedding", "aten::index"}
"""Operations that read of their first tensor no more than they return."""
PACKAGES = ("deqlm", "deqlm_solvers")


class HostReadError(RuntimeError):
    """The host read a number where it may not."""


class SimulatedDevice(TorchDispatchMode):
    """Counts on CPU tensors what an accelerator would do inside a ``with`` block.

    What is compiled for the CPU is left out, the engines of solves included, so that what is counted is the way of
    torch operations, which an accelerator takes. States of generators lie on the host, and to compare them is no read.
    What operators do inside is not seen by a dispatch mode; the float64 copy that ``vector_norm(dtype=float64)`` makes
    of another dtype is known and counted, as a kernel of its own.

    Args:
        forbid: raise `HostReadError` at a read instead of counting it.
        numbers: tensors of fewer numbers are left out of ``bytes``; 0 leaves none out.

    Attributes:
        launches: kernels by name of the operation.
        bytes: that they read and write.
        reads: reads by the host, by file, function and operation.

    Examples:
        >>> with SimulatedDevice() as device:
        ...     t = torch.ones(4).mul(2).add_(1)
        ...     found = bool((t > 2).all())
        >>> device.kernels, device.bytes, device.reads.total()
        (5, 105, 1)
    """

    def __init__(self, *, forbid: bool = False, numbers: int = 0) -> None:
        super().__init__()
        self.forbid, self.numbers = forbid, numbers
        self.launches: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.bytes = 0
        self._methods = _Methods(self)

    @property
    def kernels(self) -> int:
        """How many kernels were launched."""
        return self.launches.total()

    def __enter__(self) -> SimulatedDevice:
        self._engines = dict(ENGINES)
        ENGINES.clear()
        self._methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)
        ENGINES.update(self._engines)

    def read(self, what: str) -> None:
        """Take down a read by the host, or refuse it."""
        where = f"{_place()} {what}"
        if self.forbid:
            raise HostReadError(f"the host reads the device in {where}")
        self.reads[where] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if (name in READS and not _of_generators(name, args)) or (name.startswith("aten::index") and _by_mask(args)):
            self.read(name.removeprefix("aten::"))
        out = func(*args, **kwargs)
        if name == "aten::_to_copy" and _leaves_device(args, out):
            self.read("to the CPU")
        elif name not in FREE and name != "aten::_local_scalar_dense" and not func.is_view:
            self._launched(name, args, kwargs, out)
        return out

    def _launched(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        given, made = list(_tensors((args, kwargs))), list(_tensors(out))
        self.launches[name] += 1
        read = [*made, *given[1:]] if name in LOOKUPS else given
        for t in (*{id(t): t for t in read}.values(), *made):
            self.bytes += self._bytes(t)
        wide = kwargs.get("dtype")
        if name == "aten::linalg_vector_norm" and wide is not None and wide != given[0].dtype:
            self.launches["aten::_to_copy (hidden)"] += 1
            if given[0].numel() >= self.numbers:
                self.bytes += 2 * given[0].numel() * wide.itemsize

    def _bytes(self, t: Tensor) -> int:
        """Return the bytes of a tensor that is read or written once; what is expanded lies there once."""
        numbers = math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or size == 0)
        return numbers * t.element_size() if numbers >= self.numbers else 0


class _Methods(TorchFunctionMode):
    """Sees the methods of tensors that make no operation on the CPU."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKED:
            self.device.read(ASKED[func])
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    """Say whether an index is a mask, so that the shape of the result depends on numbers."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _of_generators(name: str, args: Any) -> bool:
    return name == "aten::equal" and args[0].dtype == torch.uint8


def _leaves_device(args: Any, out: Any) -> bool:
    return isinstance(out, Tensor) and args[0].device.type != "cpu" and out.device.type == "cpu"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _place() -> str:
    """Return the innermost function of this library that is running, with its file; else "elsewhere"."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] in PACKAGES and not name.startswith("deqlm.testing."):
            return f"{name}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "elsewhere"
