"""Algorithms that are fixed-point iterations: Bellman, Sinkhorn, proximal gradients, EM, Riccati, PageRank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deqlm.comparison.problems.literature.base import LiteratureProblem, map_of

__all__ = ["algorithm_problems"]

F64 = torch.float64


def algorithm_problems() -> Iterator[LiteratureProblem]:
    """Yield the iterations; what is random in them is drawn from one seed.

    Reference:
        R. Bellman (1957); R. Sinkhorn, P. Knopp (1967); A. Beck, M. Teboulle (2009), ISTA; V. Hasselblad (1969), the
        Poisson mixture of death notices in the London Times; L. Page, S. Brin (1998); R. McKelvey, T. Palfrey (1995).
    """
    draw = torch.Generator().manual_seed(0)
    yield from _bellman(draw)
    yield from _sinkhorn(draw)
    yield from _proximal(draw)
    yield from _page_rank(draw)
    yield map_of("poisson_mixture", "Hasselblad 1969", poisson_mixture, [0.3, 1.0, 2.5])
    yield map_of("riccati", "Kalman 1960", _riccati(draw), [0] * 16)
    yield map_of("logit_equilibrium", "McKelvey, Palfrey 1995", logit_equilibrium, [0.8, 0.1, 0.1], [1 / 3] * 3)


def _bellman(draw: torch.Generator) -> Iterator[LiteratureProblem]:
    """Value iteration of 50 states and 4 actions, each leading to 5 states."""
    chance = torch.rand(4, 50, 50, generator=draw, dtype=F64, device="cpu")
    chance = chance * (chance >= chance.topk(5, dim=2).values[..., -1:])
    chance = chance / chance.sum(2, keepdim=True)
    reward = torch.rand(4, 50, generator=draw, dtype=F64, device="cpu")
    for discount in (0.9, 0.99, 0.999):
        name = f"value_iteration_{discount:g}".replace("0.", "0")
        yield map_of(name, "Bellman 1957", lambda v, g=discount: bellman(v, chance, reward, g), [0] * 50)


def bellman(v: Tensor, chance: Tensor, reward: Tensor, discount: float) -> Tensor:
    """Return the best over actions of reward (A, S) plus discounted value, by chances (A, S, S)."""
    gain = reward.to(v)[:, None] + discount * (v @ chance.to(v).mT)
    return gain.amax(0)


def _sinkhorn(draw: torch.Generator) -> Iterator[LiteratureProblem]:
    """Optimal transport between two sets of 30 points of the unit square."""
    x, y = torch.rand(2, 30, 2, generator=draw, dtype=F64, device="cpu").unbind(0)
    cost = (x[:, None] - y).square().sum(2)
    for blur in (0.1, 0.01):
        name = f"sinkhorn_{blur:g}".replace("0.", "0")
        yield map_of(name, "Sinkhorn, Knopp 1967", lambda u, e=blur: sinkhorn(u, cost, e), [0] * 30)
        anchored = lambda u, e=blur: _anchored(sinkhorn(u, cost, e))  # noqa: E731
        yield map_of(f"{name}_anchored", "Sinkhorn, Knopp 1967", anchored, [0] * 30)


def sinkhorn(u: Tensor, cost: Tensor, blur: float) -> Tensor:
    """Return the potentials of the first set after a round of scalings in logarithms; free up to a constant."""
    cost = cost.to(u)
    weight = torch.tensor(1 / cost.shape[0], dtype=u.dtype, device=u.device).log()
    v = -blur * torch.logsumexp((u[:, :, None] - cost) / blur + weight, 1)
    return -blur * torch.logsumexp((v[:, None] - cost) / blur + weight, 2)


def _anchored(u: Tensor) -> Tensor:
    return u - u.mean(1, keepdim=True)


def _proximal(draw: torch.Generator) -> Iterator[LiteratureProblem]:
    """The lasso with more unknowns than data, and least squares with signs."""
    A = torch.randn(30, 60, generator=draw, dtype=F64, device="cpu") / 30**0.5
    signal = torch.zeros(60, dtype=F64, device="cpu")
    signal[:5] = torch.tensor([3.0, -2, 1.5, -1, 2], dtype=F64, device="cpu")
    b = A @ signal + 0.01 * torch.randn(30, generator=draw, dtype=F64, device="cpu")
    for share in (0.1, 0.01):
        weight = share * float((A.mT @ b).abs().max())
        name = f"lasso_{share:g}".replace("0.", "0")
        yield map_of(name, "Beck, Teboulle 2009", lambda x, w=weight: ista(x, A, b, w), [0] * 60)
    tall = torch.randn(60, 30, generator=draw, dtype=F64, device="cpu") / 60**0.5
    data = torch.randn(60, generator=draw, dtype=F64, device="cpu")
    yield map_of("nonnegative_squares", "Goldstein 1964", lambda x: projected(x, tall, data), [0] * 30)


def ista(x: Tensor, A: Tensor, b: Tensor, weight: float) -> Tensor:
    """Return a step of 1/L along the gradient of |A x - b|^2 / 2, and the soft threshold of ``weight`` / L."""
    y, step = _gradient_step(x, A, b)
    return y.sign() * torch.relu(y.abs() - weight * step)


def projected(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """Return the same step, projected onto x >= 0."""
    return torch.relu(_gradient_step(x, A, b)[0])


def _gradient_step(x: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, float]:
    step = 1 / float(torch.linalg.matrix_norm(A, 2)) ** 2
    A = A.to(x)
    return x - step * (x @ A.mT - b.to(x)) @ A, step


def _page_rank(draw: torch.Generator) -> Iterator[LiteratureProblem]:
    """Random links between 80 pages, some of which nobody leaves."""
    links = (torch.rand(80, 80, generator=draw, dtype=F64, device="cpu") < 0.05).to(F64)
    links = torch.where(links.sum(1, keepdim=True) == 0, 1.0, links)
    links = links / links.sum(1, keepdim=True)
    for damping in (0.85, 0.99):
        name = f"page_rank_{damping:g}".replace("0.", "0")
        yield map_of(name, "Page, Brin 1998", lambda p, d=damping: page_rank(p, links, d), [1 / 80] * 80)


def page_rank(p: Tensor, links: Tensor, damping: float) -> Tensor:
    """Return d p L + (1 - d) / n."""
    return damping * p @ links.to(p) + (1 - damping) / p.shape[1]


def poisson_mixture(z: Tensor) -> Tensor:
    """Return a round of EM for a mixture of two Poissons: share of the first, and both means."""
    days = torch.tensor([162, 267, 271, 185, 111, 61, 27, 8, 3, 1], dtype=z.dtype, device=z.device)
    deaths = torch.arange(10, dtype=z.dtype, device=z.device)
    share, low, high = (part[:, None] for part in z.unbind(1))
    first = share * torch.exp(-low) * low**deaths
    second = (1 - share) * torch.exp(-high) * high**deaths
    mine = days * first / (first + second)
    theirs = days - mine
    means = [(part * deaths).sum(1) / part.sum(1) for part in (mine, theirs)]
    return torch.stack((mine.sum(1) / days.sum(), *means), 1)


def _riccati(draw: torch.Generator):
    """Return the recursion of the cost of a linear regulator with 4 states and 2 controls, P as a row of 16."""
    A = torch.randn(4, 4, generator=draw, dtype=F64, device="cpu") * 0.7
    B = torch.randn(4, 2, generator=draw, dtype=F64, device="cpu")

    def f(z: Tensor) -> Tensor:
        P, a, b = z.reshape(-1, 4, 4), A.to(z), B.to(z)
        eye = torch.eye(4, dtype=z.dtype, device=z.device)
        inner = torch.linalg.solve_ex(eye + b @ b.mT @ P, a.expand(P.shape))[0]
        return (eye + a.mT @ P @ inner).reshape(z.shape)

    return f


def logit_equilibrium(p: Tensor) -> Tensor:
    """Return the softmax of 3.5 times the gains of rock, paper, scissors: plain iteration turns and leaves."""
    gains = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=p.dtype, device=p.device)
    return torch.softmax(3.5 * p @ gains.mT, 1)
