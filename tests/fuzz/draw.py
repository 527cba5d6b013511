"""Random solves: a map whose rows can be told to the bit, a start, a solver and a stopping rule, all from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deqlm_solvers import Anderson, Broyden, Dogleg, Fallback, FixedPoint, Newton, NewtonKrylov, Solver, Stop

SOLVERS = {
    "fixed_point": lambda r: FixedPoint(damping=r.choice([1.0, 1.0, 0.7]), first_damping=r.choice([None, 0.5])),
    "anderson": lambda r: Anderson(memory=r.choice([1, 2, 5, 12]), plain_rate=r.choice([0.45, 0.0])),
    "broyden": lambda r: Broyden(
        memory=r.choice([1, 4, 20]), update=r.choice(["good", "bad"]), line_search=r.choice([None, None, "armijo"])
    ),
    "newton": lambda r: Newton(),
    "newton_krylov": lambda r: NewtonKrylov(),
    "dogleg": lambda r: Dogleg(),
    "fallback": lambda r: Fallback(),
}
FUSED = ("fixed_point", "anderson", "broyden")
MAPS = ("cosine", "linear", "expanding", "runaway", "turning", "zero", "constant", "wild")


@dataclass(eq=False)
class Rowwise:
    """Maps made of elementwise operations only, so that no bit of a row depends on the batch; counts its calls.

    Attributes:
        kind: one of `MAPS`.
        gain: (B, 1).
        shift: (B, N).
        points: of every call, with the rows it was of.
    """

    kind: str
    points: list[Tensor] = field(default_factory=list)

    def __call__(self, z: Any, gain: Any, shift: Any) -> Any:
        if isinstance(z, dict):
            flat = torch.cat([z["a"].flatten(1), z["b"][:, None]], 1)
            value = self.of(flat, gain, shift)
            return {"a": value[:, :-1].reshape(z["a"].shape), "b": value[:, -1].clone()}
        return self.of(z.flatten(1), gain, shift).reshape(z.shape)

    def of(self, z: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Return f of rows (B, N)."""
        self.points.append(z.detach().clone())
        if self.kind == "cosine":
            return gain * torch.cos(z) + shift
        if self.kind in ("linear", "expanding"):
            return (2.5 * gain - 1.5 if self.kind == "expanding" else 0.95 * gain) * z + shift
        if self.kind == "runaway":
            return z + gain * torch.tanh(shift + 0.1 * z) + shift
        if self.kind == "turning":
            return -1.5 * gain * torch.tanh(z) + shift.sin()
        if self.kind == "zero":
            return gain * z
        if self.kind == "constant":
            return shift + 0 * z
        return z - (torch.exp(z) - 1 - 40 * gain)


@dataclass(eq=False)
class Case:
    """One solve, as `deqlm.solve` takes it."""

    seed: int
    solver: Solver
    stop: Stop
    kind: str
    z0: Any
    args: tuple[Tensor, Tensor]
    keywords: dict[str, Any]

    @property
    def rows(self) -> int:
        return self.args[0].shape[0]

    def map(self) -> Rowwise:
        return Rowwise(self.kind)

    def take(self, index: Tensor) -> Case:
        """Return the same case of rows ``index`` alone."""
        pick = lambda t: t.index_select(0, index)  # noqa: E731
        z0 = {k: pick(v) for k, v in self.z0.items()} if isinstance(self.z0, dict) else pick(self.z0)
        words = {k: pick(v) if isinstance(v, Tensor) else v for k, v in self.keywords.items()}
        gain, shift = self.args
        return replace(self, z0=z0, args=(pick(gain), pick(shift)), keywords=words)

    def spoilt(self, row: int) -> Case:
        """Return the same case with NaN in the inputs of one row."""
        shift = self.args[1].clone()
        shift[row] = torch.nan
        return replace(self, args=(self.args[0], shift))


def draw(seed: int, solver: str) -> Case:
    """Return the case of a seed for one kind of solver."""
    r = random.Random(f"{solver}-{seed}")
    dtype = r.choice([torch.float64, torch.float64, torch.float32, torch.float32, torch.bfloat16])
    if solver not in FUSED and dtype == torch.bfloat16:
        dtype = torch.float32
    made = SOLVERS[solver](r)
    if solver in FUSED:
        made = made.replace(impl=r.choice(["torch", "cpp"]))
    shape = r.choice(["flat", "tokens", "leaves"])
    rows = r.choice([0, 1, 2, 3, 5, 9])
    unknowns = {"flat": r.choice([1, 2, 3, 7, 16]), "tokens": 4 * r.choice([1, 3]), "leaves": 7}[shape]
    generator = torch.Generator().manual_seed(r.randrange(2**31))
    size = r.choice([1.0, 1.0, 1.0, 1e-3, 1e3]) if dtype != torch.bfloat16 else 1.0
    normal = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    kind = r.choice(MAPS)
    args = (
        torch.rand(rows, 1, generator=generator, dtype=torch.float64).to(dtype),
        (size * normal(rows, unknowns)).to(dtype),
    )
    start = (r.choice([0.0, 1.0]) * normal(rows, unknowns)).to(dtype)
    z0: Any = start
    if shape == "tokens":
        z0 = start.reshape(rows, 4, unknowns // 4)
    elif shape == "leaves":
        z0 = {"a": start[:, :-1].reshape(rows, 2, 3), "b": start[:, -1].clone()}
    stop, keywords = _stop(r, made, shape, dtype, rows, unknowns)
    return Case(seed, made, stop, kind, z0, args, keywords)


def _stop(
    r: random.Random, solver: Solver, shape: str, dtype: torch.dtype, rows: int, unknowns: int
) -> tuple[Stop, dict[str, Any]]:
    loose = 3e-2 if dtype == torch.bfloat16 else r.choice([1e-2, 1e-4, 1e-5] + [1e-9] * (dtype == torch.float64))
    fields: dict[str, Any] = {"max_iter": r.choice([2, 3, 9, 30, 80]), "rtol": loose}
    if solver.name == "fallback":
        fields["max_iter"] = max(3, fields["max_iter"])
    if solver.name in ("newton", "dogleg"):
        fields["max_iter"] = r.choice([1, 3, 12]) * (1 + unknowns) + 2
    keywords: dict[str, Any] = {}
    if r.random() < 0.1 and solver.name in FUSED:
        return Stop(max_iter=fields["max_iter"], rtol=0.0, trace=r.random() < 0.5), keywords
    if r.random() < 0.4:
        fields["atol"] = r.choice([1e-6, 1e-3])
    per = {"flat": "row", "tokens": r.choice(["row", "token"]), "leaves": r.choice(["row", "leaf"])}[shape]
    options = {
        "per": per,
        "norm": r.choice(["l2", "rms"]),
        "trace": True,
        "test_every": r.choice([2, 5, "auto"]),
        "patience": r.choice([3, 10]),
        "divergence": r.choice([10.0, 1e4, float("inf")]),
        "compact": r.choice([False, "at_once"]),
    }
    honours = solver.honours
    for name, value in options.items():
        if name in honours and (name == "per" or r.random() < 0.3):
            fields[name] = value
    if fields.get("compact") == "at_once" and solver.steps_evaluate:
        del fields["compact"]
    if "check_every" in honours and fields.get("test_every") != "auto" and fields.get("compact") != "at_once":
        fields["check_every"] = r.choice([1, 1, 4, 0])
    if r.random() < 0.2:
        keywords["scale"] = torch.rand(rows, dtype=torch.float64) if r.random() < 0.5 else 0.5
    if per == "token" and r.random() < 0.5:
        mask = torch.ones(rows, 4, dtype=torch.bool)
        for row in range(rows):
            mask[row, r.randrange(1, 5) :] = False
        keywords["token_mask"] = mask
    return Stop(**fields), keywords
