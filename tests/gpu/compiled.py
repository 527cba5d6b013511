"""Kernels compiled ahead of time, without a GPU: what a launch would compile, for which target, and what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory that a program may have."""
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Specialisation:
    """What one launch compiles: types, constants and alignments of its arguments, and its warps."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    warps: int


class Binary(NamedTuple):
    """What came out: registers and bytes per thread that spill, shared bytes, instructions, and the kinds of loads."""

    registers: int
    spilled: int
    shared: int
    instructions: int
    widest_load: int


@contextmanager
def recorded() -> Iterator[list[Specialisation]]:
    """Note what is launched, each specialisation once, and launch nothing."""
    found: dict[tuple[Any, ...], Specialisation] = {}

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        one = _specialisation(self, dict(zip(self.arg_names, args, strict=False)) | kwargs)
        found[(self.__name__, one.signature, one.constants, one.aligned, one.warps)] = one

    honest, JITFunction.run = JITFunction.run, run
    specialisations: list[Specialisation] = []
    try:
        yield specialisations
    finally:
        JITFunction.run = honest
        specialisations += found.values()


def _specialisation(kernel: JITFunction, given: dict[str, Any]) -> Specialisation:
    signature, constants, aligned = [], [], []
    for number, parameter in enumerate(kernel.params):
        name, value = parameter.name, given[parameter.name]
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (special and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        signature.append((name, mangle_type(value)))
        at = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if at % 16 == 0 and (special or isinstance(value, torch.Tensor)):
            aligned.append(number)
    return Specialisation(kernel, tuple(signature), tuple(constants), tuple(aligned), given["num_warps"])


def build(one: Specialisation, target: str) -> Binary:
    """Compile a specialisation for one of `TARGETS`."""
    attributes = {(number,): [["tt.divisibility", 16]] for number in one.aligned}
    source = ASTSource(one.kernel, dict(one.signature), dict(one.constants), attributes)
    made = triton.compile(source, target=TARGETS[target], options={"num_warps": one.warps})
    shared = made.metadata.shared
    return _amd(made.asm["amdgcn"], shared) if "amdgcn" in made.asm else _nvidia(made.asm["cubin"], shared)


def _nvidia(binary: bytes, shared: int) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    spilled = stack + local + len(re.findall(r"\b(?:STL|LDL)\b", code))
    loads = [int(bits or 32) for bits in re.findall(r"\bLDG\.E(?:\.\w+)*?(?:\.(64|128))?(?:\.\w+)* ", code)]
    return Binary(
        registers, spilled, shared, len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M)), max(loads, default=0)
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _amd(code: str, shared: int) -> Binary:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found is not None, name
        return int(found.group(1))

    spilled = number("vgpr_spill_count") + number("private_segment_fixed_size")
    widths = {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}
    loads = [widths[kind] for kind in re.findall(r"(?:global|buffer)_load_(dword(?:x[234])?)\b", code)]
    instructions = len(re.findall(r"^\t[a-z]_?\w+ ", code, re.M))
    return Binary(number("vgpr_count"), spilled, shared, instructions, max(loads, default=0))
