"""Buffers of a solve and the launches of an evaluation: which kernel, over which programs, in which specialisation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deqlm_solvers.core.native_rule import NativeRule, Update
from deqlm_solvers.triton_kernels import columns as c
from deqlm_solvers.triton_kernels.decide import secant_decide
from deqlm_solvers.triton_kernels.finish import finish
from deqlm_solvers.triton_kernels.picard import picard_apply, picard_decide, picard_row
from deqlm_solvers.triton_kernels.reading import part_norms
from deqlm_solvers.triton_kernels.secant import secant_mix, secant_settle, secant_sums

__all__ = ["MOST_AT_ONCE", "Launches", "Tokens", "Visit"]

MOST_AT_ONCE = 8192
"""Unknowns of a float32 row that one program holds in registers; a quarter as many of float64."""
LONG = 2**18
"""Unknowns from which on a program takes more of a row, so that few parts are left to add up."""


class Tokens(NamedTuple):
    """How a row of (outer, length, inner) unknowns falls into tokens.

    Attributes:
        outer, length, inner: sizes before, along and behind the dimension of the tokens.
        mask: (B, length) bool, True where a token counts, or None.
        steps: (B, length) int64, evaluation from which on a token passes.
    """

    outer: int
    length: int
    inner: int
    mask: Tensor | None
    steps: Tensor


class Visit(NamedTuple):
    """What one evaluation asks for.

    Attributes:
        k: its number.
        half: whether it is in the second half of all.
        test: whether the point is tested.
        step: whether another point is wanted.
    """

    k: int
    half: bool
    test: bool
    step: bool


class Launches:
    """The buffers of one solve, on its device, and its launches.

    Attributes:
        rows: the state of all rows, (B, WIDTH) float64; see columns.py.
        report: (B, 2) float64, what the host reads: 1 for a row that goes on plus 2 for one that no longer passes, and
            the evaluations that it still needs.
        best_z: the best points, (B, N).
        index: rows of the state that are in the batch, (K,) int64, or None for all.
    """

    def __init__(
        self,
        native: NativeRule,
        z: Tensor,
        rows: Tensor,
        shared: Tensor,
        best_z: Tensor,
        tokens: Tokens | None,
        given: bool,
        patient: bool,
    ) -> None:
        self.native, self.rows, self.shared, self.best_z, self.tokens = native, rows, shared, best_z, tokens
        self.unknowns = z.shape[1]
        self.report = torch.zeros(z.shape[0], 2, dtype=torch.float64, device=z.device)
        self.index: Tensor | None = None
        self.wide = z.dtype == torch.float64
        self.rule = {"GIVEN": given, "PATIENT": patient, "TOKENS": tokens is not None}
        self.rule["MASKED"] = tokens is not None and tokens.mask is not None
        self.groups = 1 if tokens is None else tokens.length
        self.most = 4096 if self.unknowns <= LONG else 8192
        self.block = {"BLOCK": 1024, "STEPS": _turns(self.unknowns, 1024, self.most)}
        self.parts = -(-self.unknowns // (self.block["BLOCK"] * self.block["STEPS"]))
        self.at_once = self._fits_registers()
        if native.rule != Update.PICARD:
            self._hold_history(z)

    def _fits_registers(self) -> bool:
        width = self.unknowns // self.groups
        apart = self.tokens is None or self.tokens.outer == 1
        return apart and _power(self.groups) * _power(width) <= MOST_AT_ONCE // (4 if self.wide else 1)

    def _hold_history(self, z: Tensor) -> None:
        native, (rows, unknowns) = self.native, z.shape
        self.slots = native.pairs + 1
        good = native.rule == Update.BROYDEN_GOOD
        self.lanes = max(2, _power(native.pairs + 1))
        # as many lanes as accumulators fit into registers
        block = max(32, min(256, 4096 // self.lanes // (2 if good else 1) // (2 if self.wide else 1)))
        self.history_block = {"BLOCK": block, "STEPS": _turns(unknowns, block, self.most)}
        self.history_parts = -(-unknowns // (block * self.history_block["STEPS"]))
        self.stride = 8 + (4 if good else 2) * self.lanes
        double = {"dtype": torch.float64, "device": z.device}
        self.ring = torch.empty(rows, 2, self.slots, unknowns, dtype=z.dtype, device=z.device)
        self.restart = torch.empty(rows, 2, unknowns, dtype=z.dtype, device=z.device)
        self.gram = torch.zeros(rows, 2 if good else 1, self.slots, self.slots, **double)
        self.weights = torch.zeros(rows, self.lanes, **double)
        self.partial = torch.empty(rows, self.history_parts, self.stride, **double)
        self.lengths = torch.empty(rows, self.history_parts, **double)
        self.kind = {"KIND": (2 if native.rule == Update.BROYDEN_BAD else 1 if good else 0)}
        self.kind["PHASED"], self.kind["FITS"] = native.plain_rate > 0, not good

    def visit(self, z: Tensor, fz: Tensor, z_next: Tensor, visit: Visit) -> None:
        """Test the points ``z`` (K, N), ``fz`` being f of them, keep the best and write the next ones to ``z_next``."""
        if not z.shape[0]:
            return
        with _on(z.device):
            if self.native.rule != Update.PICARD:
                self._secant(z, fz, z_next, visit)
            elif self.at_once:
                self._picard_at_once(z, fz, z_next, visit)
            else:
                self._picard_in_parts(z, fz, z_next, visit)

    @property
    def _indexed(self) -> dict[str, Any]:
        return {"index": self.rows if self.index is None else self.index, "INDEXED": self.index is not None}

    @property
    def _damped(self) -> bool:
        return (self.native.damping, self.native.first_damping) != (1.0, 1.0)

    def _told(self) -> dict[str, Any]:
        """Return what kernels that test are given."""
        tokens, rows = self.tokens, self.rows
        given = {"rows": rows, "shared": self.shared, "out": self.report, "groups": self.groups}
        given["token_steps"] = rows if tokens is None else tokens.steps
        given["mask"] = rows if tokens is None or tokens.mask is None else tokens.mask.view(torch.uint8)
        return {**given, **self.rule, **self._indexed, "WIDTH": c.WIDTH, "G": _power(self.groups)}

    def _picard_at_once(self, z: Tensor, fz: Tensor, z_next: Tensor, visit: Visit) -> None:
        width = self.unknowns // self.groups
        numbers = _power(self.groups) * _power(width)
        _launch(
            picard_row,
            (z.shape[0],),
            z=z,
            fz=fz,
            z_next=z_next,
            best_z=self.best_z,
            k=visit.k,
            half=int(visit.half),
            unknowns=self.unknowns,
            width=width,
            W=_power(width),
            WIDE=self.wide,
            TEST=visit.test,
            STEP=visit.step,
            DAMPED=self._damped,
            num_warps=_warps(numbers, self.wide),
            **self._told(),
        )

    def _picard_in_parts(self, z: Tensor, fz: Tensor, z_next: Tensor, visit: Visit) -> None:
        if visit.test:
            sums, parts = self._part_norms(z, fz)
            given = {"sums": sums, "parts": parts, "k": visit.k, "half": int(visit.half), **self._told()}
            _launch(picard_decide, (z.shape[0],), num_warps=1, **given)
        _launch(
            picard_apply,
            (z.shape[0], self.parts),
            z=z,
            fz=fz,
            z_next=z_next,
            best_z=self.best_z,
            rows=self.rows,
            shared=self.shared,
            k=visit.k,
            unknowns=self.unknowns,
            WIDTH=c.WIDTH,
            TEST=visit.test,
            STEP=visit.step,
            DAMPED=self._damped,
            num_warps=4,
            **self.block,
            **self._indexed,
        )

    def _part_norms(self, z: Tensor, fz: Tensor) -> tuple[Tensor, int]:
        """Return the norms of all tokens or parts of rows, (K, parts, 3) float64, and how many there are."""
        tokens = self.tokens
        parts = self.parts if tokens is None else tokens.length
        sums = torch.empty(z.shape[0], parts, 3, dtype=torch.float64, device=z.device)
        _launch(
            part_norms,
            (z.shape[0], parts),
            z=z,
            fz=fz,
            sums=sums,
            unknowns=self.unknowns,
            parts=parts,
            outer=1 if tokens is None else tokens.outer,
            inner=1 if tokens is None else tokens.inner,
            length=1 if tokens is None else tokens.length,
            WIDE=self.wide,
            TOKENS=tokens is not None,
            num_warps=4,
            **self.block,
        )
        return sums, parts

    def _secant(self, z: Tensor, fz: Tensor, z_next: Tensor, visit: Visit) -> None:
        rows, parts, unknowns = z.shape[0], self.history_parts, self.unknowns
        sums = self.partial if self.tokens is None or not visit.test else self._part_norms(z, fz)[0]
        both = {"ring": self.ring, "rows": self.rows, "unknowns": unknowns, "parts": parts, "num_warps": 4}
        both |= {"WIDTH": c.WIDTH, "R": self.slots, **self.history_block, **self._indexed}
        point = {"z": z, "fz": fz, "MP": self.lanes, "WIDE": self.wide, "GOOD": self.native.rule == Update.BROYDEN_GOOD}
        _launch(secant_sums, (rows, parts), partial=self.partial, **point, **both)
        _launch(
            secant_decide,
            (rows,),
            z=z,
            partial=self.partial,
            sums=sums,
            gram=self.gram,
            weights=self.weights,
            k=visit.k,
            half=int(visit.half),
            parts=parts,
            R=self.slots,
            MP=self.lanes,
            WIDE=self.wide,
            TEST=visit.test,
            STEP=visit.step,
            num_warps=1 if self.lanes <= 16 else 8,
            **self.kind,
            **self._told(),
        )
        told = {"z_next": z_next, "restart": self.restart, "lengths": self.lengths, **both}
        asked = {"TEST": visit.test, "STEP": visit.step}
        given = {"best_z": self.best_z, "weights": self.weights, **point, **asked, **told}
        _launch(secant_mix, (rows, parts), **given)
        if visit.step:
            _launch(secant_settle, (rows, parts), **told)

    def finish(self, vanishing: bool) -> tuple[Tensor, ...]:
        """Return what `Solution` tells of every row.

        Returns:
            residual, relative residual, and residual and size of the first point, (4, B) float64; steps, statuses, rows
            that ran away, and what rows picked, (B,) each.
        """
        count, device = self.rows.shape[0], self.rows.device
        numbers = torch.empty(4, count, dtype=torch.float64, device=device)
        steps = torch.empty(count, dtype=torch.int64, device=device)
        status, picked = torch.empty(2, count, dtype=torch.int8, device=device)
        runaway = torch.empty(count, dtype=torch.bool, device=device)
        if count:
            given = {"numbers": numbers, "steps": steps, "status": status, "picked": picked, "count": count}
            given |= {"rows": self.rows, "shared": self.shared, "runaway": runaway.view(torch.int8)}
            with _on(device):
                grid = (-(-count // 128),)
                _launch(finish, grid, WIDTH=c.WIDTH, BLOCK=128, VANISHING=vanishing, num_warps=4, **given)
        return numbers, steps, status, runaway, picked


def _launch(kernel: Any, grid: tuple[int, ...], **given: Any) -> None:
    """Launch a kernel over ``grid`` programs; ``given`` are its arguments and options."""
    kernel[grid](**given)


def _power(n: int) -> int:
    """Return the least power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


def _turns(unknowns: int, block: int, most: int) -> int:
    """Return how many blocks a program takes of a row: a power of two, so that there are few specialisations."""
    return min(max(1, most // block), _power(-(-unknowns // block)))


def _warps(numbers: int, wide: bool) -> int:
    """Return the warps of a program that holds so many numbers twice."""
    return max(1, min(8, numbers * (2 if wide else 1) // 512))


def _on(device: torch.device) -> Any:
    """Return the context in which kernels are launched on ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
