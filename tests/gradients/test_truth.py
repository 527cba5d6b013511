"""Drawn problems against dense float64 truth: methods, solvers, trees, masks, shapes and dtypes in one net.

The truth is the implicit function theorem by a dense solve: d loss / d p = (dF/dp)^T (I - dF/dz^T)^-1 d loss / d z, at
the fixed point of the masked map F, which plain iteration finds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deqlm
from deqlm import Implicit, Phantom, Solve, Stop

F64 = torch.float64
CASES = 40
MANY = 1500


@dataclass
class Problem:
    """A map of a tree of (*batch, L, d) leaves, of parameters and of an input per row, with a mask of tokens."""

    start: Any
    x: Tensor
    parameters: list[Tensor]
    mask: Tensor | None
    batch_dims: int
    f: Callable[[Any, Tensor], Any]

    def held(self, z: Any, x: Tensor) -> Any:
        """Return the masked map."""
        out = self.f(z, x)
        if self.mask is None:
            return out
        keep = self.mask[..., None]
        if isinstance(out, Tensor):
            return torch.where(keep, out, self.start)
        return {name: torch.where(keep, out[name], self.start[name]) for name in out}


def draw_problem(draw: random.Random) -> Problem:
    """Draw a contraction: tokens see each other, rows do not, leaves of a tree do."""
    batch_dims = draw.choice([0, 1, 1, 2])
    batch = [draw.randint(1, 3) for _ in range(batch_dims)]
    length, width = draw.randint(1, 4), draw.randint(1, 4)
    tree, complex_leaf = draw.random() < 0.3, draw.random() < 0.2
    dtype = torch.complex128 if complex_leaf else F64
    shape = (*batch, length, width)
    x = torch.randn(*shape, dtype=F64)
    W = torch.randn(width, width, dtype=F64)
    W = draw.uniform(0.1, 0.5) * W / torch.linalg.matrix_norm(W, 2)
    b = torch.randn(width, dtype=F64)
    mixing = draw.uniform(0.0, 0.2)
    mask = None
    if draw.random() < 0.5:
        mask = torch.rand(*batch, length) < 0.7

    def smooth(t: Tensor) -> Tensor:
        return torch.complex(t.real.tanh(), t.imag.sin()) if t.is_complex() else t.tanh()

    def one(z: Tensor, x: Tensor) -> Tensor:
        return smooth(z @ W.to(z.dtype) + mixing * z.mean(-2, keepdim=True) + b + x)

    def f(z: Any, x: Tensor) -> Any:
        if isinstance(z, Tensor):
            return one(z, x)
        return {"one": one(z["one"], x) + 0.1 * z["two"], "two": 0.4 * smooth(z["two"]) + 0.2 * z["one"] + b}

    start = torch.randn(*shape, dtype=dtype)
    if tree:
        start = {"one": start, "two": torch.randn(*shape, dtype=dtype)}
    return Problem(start, x.requires_grad_(), [W.requires_grad_(), b.requires_grad_()], mask, batch_dims, f)


def leaves(z: Any) -> list[Tensor]:
    return [z] if isinstance(z, Tensor) else [z["one"], z["two"]]


def flat(z: Any) -> Tensor:
    return torch.cat([(torch.view_as_real(t) if t.is_complex() else t).flatten() for t in leaves(z)])


def loss_of(z: Any, weights: Tensor) -> Tensor:
    z = flat(z)
    return (weights * z).sum() + 0.5 * (z * z).sum()


def truth(problem: Problem, weights: Tensor) -> list[Tensor]:
    """Return the gradients for x and the parameters by a dense solve over all unknowns of all rows."""
    z = problem.start
    with torch.no_grad():
        for _ in range(400):
            z = problem.held(z, problem.x)
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in leaves(z)]

    def at(*reals: Tensor) -> Any:
        tree = [torch.view_as_complex(r) if t.is_complex() else r for r, t in zip(reals, leaves(z), strict=True)]
        return tree[0] if isinstance(z, Tensor) else {"one": tree[0], "two": tree[1]}

    points = [p.clone().requires_grad_() for p in parts]
    image = flat(problem.held(at(*points), problem.x))
    rows = []
    for i in range(image.numel()):
        got = torch.autograd.grad(image[i], points, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [torch.zeros_like(p).flatten() if t is None else t.flatten() for t, p in zip(got, points, strict=True)]
            )
        )
    J = torch.stack(rows)
    g = weights + flat(z)
    w = torch.linalg.solve(torch.eye(len(J), dtype=F64) - J.T, g)
    return list(torch.autograd.grad(image, [problem.x, *problem.parameters], w))


def draw_method(draw: random.Random, tokens: int, unknowns: int) -> tuple[dict[str, Any], str]:
    """Draw a forward solver, a tolerance and a gradient method that is exact for it."""
    per = draw.choice(["row", "token"]) if tokens >= 0 else "row"
    along = {"per": "token", "token_dim": tokens} if per == "token" else {}
    many = 40 * (unknowns + 2)
    back = draw.choice(["anderson", "broyden", "newton", "newton_krylov", "fixed_point"])
    adjoint = Implicit(solve=Solve(back, Stop(max_iter=many, rtol=1e-12, **along)), second_order=draw.random() < 0.2)
    solver = draw.choice(["anderson", "broyden", "fixed_point", "newton", "newton_krylov"])
    kind = draw.choice(["implicit", "implicit", "implicit", "phantom", "unrolled"])
    if kind != "implicit":
        solver = "fixed_point" if kind == "unrolled" else solver
        adjoint = Phantom(300, 1.0) if kind == "phantom" else deqlm.Unrolled()
    return {"solver": solver, "gradient": adjoint}, f"{kind} {solver} {back} {per}"


def check(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    problem = draw_problem(draw)
    weights = torch.randn(flat(problem.start).numel(), dtype=F64)
    sizes = flat(problem.start).numel()
    options, told = draw_method(draw, problem.batch_dims, sizes)
    stop = Stop(max_iter=60 * (sizes + 2), rtol=1e-13, atol=1e-14)
    if problem.mask is not None:
        stop = stop.replace(per="token", token_dim=problem.batch_dims)
    if problem.batch_dims:
        spare = problem.mask is None or bool(problem.mask.flatten(0, problem.batch_dims - 1).any())
        told += "" if spare else " all masked"
    sol = deqlm.solve(
        *(problem.f, problem.start),
        args=(problem.x,),
        batch_dims=problem.batch_dims,
        stop=stop,
        token_mask=problem.mask,
        on_failure="ignore",
        **options,
    )
    got = torch.autograd.grad(loss_of(sol.z, weights), [problem.x, *problem.parameters], allow_unused=True)
    for ours, want in zip(got, truth(problem, weights), strict=True):
        ours = torch.zeros_like(want) if ours is None else ours
        error = (ours - want).norm() / want.norm().clamp_min(1e-12)
        assert error <= 1e-8, f"seed {seed}: {told}, relative error {error:.2g}"


@pytest.mark.parametrize("seed", range(CASES))
def test_gradients_equal_dense_truth(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_many_gradients_equal_dense_truth() -> None:
    for seed in range(CASES, MANY):
        check(seed)
