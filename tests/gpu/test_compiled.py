"""Every kernel compiles for the GPUs of users, without one: no spills, registers, shared memory and wide loads.

The shapes are those of a language model, on a device that has no numbers; nothing is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from deqlm_solvers import Anderson, Broyden, FixedPoint, Stop
from deqlm_solvers.core.native_rule import NativeRule
from deqlm_solvers.triton_kernels.availability import interpreted, why_not

pytest.importorskip("triton", reason="no triton")
if interpreted():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from gpu.compiled import SHARED, TARGETS, Binary, Specialisation, build, recorded

if TYPE_CHECKING:
    from deqlm_solvers.triton_kernels.launch import Launches

NARROW, LONG = 0, 128 * 768
"""Unknowns of a row; narrow is as many as one program holds."""
LIMITS = {"picard_row": 255, "part_norms": 224, "secant_sums": 224, "secant_mix": 168, "secant_decide": 255}
"""Registers of a thread; all other kernels have at most 80."""
SPILLS = {("picard_row", "sm_100"): 16}
"""Bytes that may spill: ptxas gives two words for twice as many programs of 256 threads at a time."""
STREAMS = {"picard_row", "picard_apply", "part_norms", "secant_sums", "secant_mix"}
"""Kernels whose loads must be as wide as a thread can have them: 16 bytes."""
CASES: dict[str, tuple[Any, int, str]] = {
    "picard": (FixedPoint(), NARROW, "row"),
    "damped": (FixedPoint(damping=0.8), NARROW, "token"),
    "picard_long": (FixedPoint(), LONG, "row"),
    "picard_tokens": (FixedPoint(damping=0.8), LONG, "token"),
    "anderson": (Anderson(), LONG, "row"),
    "anderson_tokens": (Anderson(), LONG, "token"),
    "broyden": (Broyden(), LONG, "row"),
    "bad": (Broyden(update="bad", memory=12), LONG, "row"),
}


def launches_of(native: NativeRule, unknowns: int, per: str, dtype: torch.dtype) -> Launches:
    from deqlm_solvers.triton_kernels import columns
    from deqlm_solvers.triton_kernels.launch import Launches, Tokens

    z = torch.empty(2, unknowns, dtype=dtype, device="meta")
    rows = torch.empty(2, columns.WIDTH, dtype=torch.float64, device="meta")
    tokens = None
    if per == "token":
        length = 128 if unknowns == LONG else 64
        mask = torch.empty(2, length, dtype=torch.bool, device="meta")
        steps = torch.empty(2, length, dtype=torch.int64, device="meta")
        tokens = Tokens(1, length, unknowns // length, mask, steps)
    return Launches(native, z, rows, rows[0], z, tokens, given=False, patient=per == "token")


def specialisations(name: str, dtype: torch.dtype) -> list[Specialisation]:
    from deqlm_solvers.triton_kernels.launch import Visit

    solver, unknowns, per = CASES[name]
    unknowns = unknowns or (2048 if dtype == torch.float64 else 8192)
    native = solver.fitted(unknowns, Stop().max_iter).native_rule()
    launches = launches_of(native, unknowns, per, dtype)
    z = torch.empty(2, unknowns, dtype=dtype, device="meta")
    with recorded() as found:
        launches.visit(z, z, z, Visit(3, False, True, True))
        launches.finish(vanishing=True)
    return found


def assert_fits(name: str, target: str, made: Binary) -> None:
    assert made.spilled <= SPILLS.get((name, target), 0), f"{name} spills on {target}"
    assert made.registers <= LIMITS.get(name, 80), f"{name} takes {made.registers} registers on {target}"
    assert made.shared <= SHARED[target], f"{name} takes {made.shared} bytes of shared memory on {target}"
    if name in STREAMS and target != "gfx942":  # there neighbouring numbers of a row's state are loaded together
        assert made.widest_load == 128, f"{name} loads {made.widest_load} bits at most on {target}"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_fit(name: str, dtype: torch.dtype, target: str):
    for one in specialisations(name, dtype):
        assert_fits(one.kernel.__name__, target, build(one, target))


def test_every_kernel_is_compiled():
    import importlib
    import pkgutil

    import triton.runtime.jit as jit

    import deqlm_solvers.triton_kernels as package

    launched = {one.kernel.__name__ for name in CASES for one in specialisations(name, torch.float32)}
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    launch = importlib.import_module(f"{package.__name__}.launch")
    kernels = {name for name, value in vars(launch).items() if isinstance(value, jit.JITFunction)}
    assert launched == kernels
    assert len(modules) > len(kernels) // 2


def planted(change: Callable[[Specialisation], Specialisation]) -> Specialisation:
    (one,) = (s for s in specialisations("picard", torch.float64) if s.kernel.__name__ == "picard_row")
    return change(one)


@pytest.mark.slow
def test_a_kernel_that_spills_is_noticed():
    crowded = planted(lambda s: Specialisation(s.kernel, s.signature, s.constants, s.aligned, warps=1))
    with pytest.raises(AssertionError, match="picard_row spills on sm_90"):
        assert_fits("picard_row", "sm_90", build(crowded, "sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_loads_that_are_not_wide_are_noticed(target: str):
    crooked = planted(lambda s: Specialisation(s.kernel, s.signature, s.constants, (), s.warps))
    with pytest.raises(AssertionError, match="bits at most"):
        assert_fits("picard_row", target, build(crooked, target))


def test_too_many_registers_and_too_much_shared_memory_are_noticed():
    with pytest.raises(AssertionError, match="finish takes 81 registers"):
        assert_fits("finish", "sm_80", Binary(81, 0, 0, 100, 64))
    with pytest.raises(AssertionError, match="bytes of shared memory on gfx942"):
        assert_fits("finish", "gfx942", Binary(40, 0, 65537, 100, 64))


def test_on_a_cpu_the_kernels_say_why_not():
    assert "TRITON_INTERPRET=1" in why_not(torch.device("cpu"))
    assert "no backend for this device" in why_not(torch.device("cuda"))
