"""Codebases with loops of their own, each in a few lines, beside our calls: equal to the bit, or an error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deqlm
from deqlm import (
    DEQ,
    Anderson,
    Broyden,
    Equilibrium,
    FixedPoint,
    Implicit,
    NewtonKrylov,
    OneStep,
    Phantom,
    Solve,
    States,
    Stop,
)
from deqlm.layers import Attention, Block, MonotoneLinear
from deqlm.models import Backbone, ImplicitLM
from deqlm.testing.gradients.layers import SHARP

F64 = torch.float64
EXACT = Implicit(solve=Solve("anderson", SHARP))


@pytest.fixture(autouse=True)
def wide() -> None:
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(loss: Tensor, module: nn.Module, *more: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*module.parameters(), *more]))


def assert_near(ours: list[Tensor], theirs: list[Tensor], within: float = 1e-9) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= within * b.abs().max().clamp(min=1.0)


def assert_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def shrunk(layer: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(factor)
    return layer


def test_mdeq() -> None:
    """Two scales, quasi-Newton, phantom steps behind it."""
    fine, coarse = (shrunk(nn.Conv2d(2, 2, 3, padding=1), 0.3) for _ in range(2))
    both, x = nn.ModuleList([fine, coarse]), torch.randn(2, 2, 4, 4)

    def f(z: list[Tensor], x: Tensor) -> list[Tensor]:
        up, down = F.interpolate(z[1], scale_factor=2.0), F.avg_pool2d(z[0], 2)
        return [torch.tanh(fine(z[0]) + 0.3 * up + x), torch.tanh(coarse(z[1]) + 0.3 * down)]

    z0 = [torch.zeros(2, 2, n, n) for n in (4, 2)]
    z = z0
    with torch.no_grad():
        for _ in range(80):
            z = f(z, x)
    for _ in range(5):
        z = [a + 0.5 * (b - a) for a, b in zip(z, f(z, x), strict=True)]
    eq = Equilibrium(solver=Broyden(), stop=SHARP, gradient=Phantom(5, 0.5))
    ours = eq(f, z0, x)
    assert_near(ours, z, 1e-11)
    assert_near(gradients(sum(t.square().sum() for t in ours), both), gradients(sum(t.square().sum() for t in z), both))


def test_mondeq() -> None:
    """A monotone equilibrium: Peaceman-Rachford splitting, gradient against the dense one of z = relu(W z + b)."""
    layer, b = MonotoneLinear(5, margin=0.5), torch.randn(3, 5, requires_grad=True)
    deq = DEQ(layer, inject="argument", solver="fixed_point", stop=SHARP, gradient=EXACT)
    z = layer.read(deq(b))
    W, active = layer.weight.detach(), (z > 0).double().detach()
    assert (torch.relu(z @ W.T + b) - z).abs().max() < 1e-11
    (got,) = torch.autograd.grad(z.sum(), b)
    J = active[:, :, None] * W
    w = torch.linalg.solve((torch.eye(5) - J).mT, torch.ones(3, 5))
    assert_near([got], [active * w])


def test_ignn() -> None:
    """A graph whose nodes are one problem: X = relu(W X A + B), with ||W|| of the maximum below that of A."""
    A = torch.rand(6, 6) < 0.4
    A = (A | A.T).double() + torch.eye(6)
    A = A / A.sum(0)
    W, B = torch.randn(3, 3), torch.randn(3, 6)
    W = (0.8 * W / W.abs().sum(1).max() / torch.linalg.matrix_norm(A, 2)).requires_grad_()
    f = lambda X: torch.relu(W @ X @ A + B)  # noqa: E731
    X = torch.zeros(3, 6)
    for _ in range(200):
        X = f(X)
    ours = deqlm.solve(f, torch.zeros(3, 6), batch_dims=0, stop=SHARP, gradient=EXACT).z
    assert_near([ours], [X], 1e-11)
    assert_near([torch.autograd.grad(ours.sum(), W)[0]], [torch.autograd.grad(X.sum(), W)[0]])


def test_an_inverse_problem() -> None:
    """Plug and play: a gradient step on the data, then a denoiser, Anderson, the Jacobian-free gradient."""
    A, denoiser = torch.randn(4, 6) / 4, shrunk(nn.Linear(6, 6), 0.3)
    y = torch.randn(3, 4)
    f = lambda z, y: (z - 0.5 * (z @ A.T - y) @ A) * 0.5 + 0.5 * torch.tanh(denoiser(z))  # noqa: E731
    z = torch.zeros(3, 6)
    with torch.no_grad():
        for _ in range(300):
            z = f(z, y)
    z = f(z, y)
    ours = deqlm.solve(f, torch.zeros(3, 6), args=(y,), solver=Anderson(memory=5), stop=SHARP, gradient=OneStep()).z
    assert_near([ours], [z], 1e-11)
    assert_near(gradients(ours.square().sum(), denoiser), gradients(z.square().sum(), denoiser))


def test_deq_flow() -> None:
    """Optical flow: a recurrent cell, one gradient step at some states on the way, a loss on all of them."""
    cell, x, target = nn.GRUCell(4, 6), torch.randn(3, 4), torch.randn(3, 6)
    h, states = torch.zeros(3, 6), []
    with torch.no_grad():
        for k in range(8):
            h = cell(x, h)
            if k + 1 in (4, 8):
                states.append(h)
    tied = [cell(x, h) for h in states]
    loss = 0.8 * F.mse_loss(tied[0], target) + F.mse_loss(tied[1], target)
    eq = Equilibrium(solver="fixed_point", stop=Stop(max_iter=8, rtol=0), gradient=OneStep())
    z, sol = eq(lambda h: cell(x, h), torch.zeros(3, 6), states=States((4,)), with_stats=True)
    ours = deqlm.fixed_point_correction(F.mse_loss, [*sol.states, z], target, gamma=0.8)
    assert_bits([ours], [loss])
    assert_bits(gradients(ours, cell), gradients(loss, cell))


def test_deq_ddim() -> None:
    """A whole sampling trajectory as one equilibrium: exact after as many evaluations as it has steps, or fewer."""
    eps, steps = shrunk(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), 0.7), 6
    a, c = torch.linspace(1.05, 0.9, steps), torch.linspace(0.3, 0.1, steps)
    noise = torch.randn(2, 3, requires_grad=True)
    x, sequence = noise, []
    for t in range(steps):
        x = a[t] * x + c[t] * eps(x)
        sequence.append(x)

    def f(z: Tensor, noise: Tensor) -> Tensor:
        before = torch.cat([noise[:, None], z[:, :-1]], 1)
        return a[:, None] * before + c[:, None] * eps(before)

    z0 = torch.zeros(2, steps, 3)
    sol = deqlm.solve(f, z0, args=(noise,), solver="fixed_point", gradient=EXACT, stop=Stop(rtol=1e-13, per="token"))
    assert sol.steps.max() <= steps + 1
    assert_near([sol.z], [torch.stack(sequence, 1)], 1e-13)
    ours, theirs = (gradients(t[:, -1].square().sum(), eps, noise) for t in (sol.z, torch.stack(sequence, 1)))
    assert_near(ours, theirs)


@pytest.mark.parametrize(("total", "tail"), [(7, 3), (2, 2)])
def test_huginn(total: int, tail: int) -> None:
    """Recurrent depth: a random start, a depth drawn per call, gradients through the last steps alone."""
    core = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
    e, start = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    s = start
    with torch.no_grad():
        for _ in range(total - tail):
            s = core(s + e)
    for _ in range(tail):
        s = core(s + e)
    deq = DEQ(core, solver="fixed_point", gradient=Phantom(tail, 1.0))
    ours = deq(e, start=start, stop=Stop(max_iter=total - tail, rtol=0))
    assert_bits([ours], [s])
    assert_bits(gradients(ours.square().sum(), core), gradients(s.square().sum(), core))


def block(z: Tensor, net: nn.Module) -> Tensor:
    return F.layer_norm(z + net(z), z.shape[-1:])


def test_trm() -> None:
    """A tiny recursive model: latent steps and an answer per cycle, the last alone with grad, carried on detached."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)), torch.randn(3, 4)

    def cycle(s: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        z, y = s["z"], s["y"]
        for _ in range(2):
            z = block(x + y + z, net)
        return {"y": block(y + z, net), "z": z}

    budget = Stop(max_iter=2, rtol=0)
    eq = Equilibrium(solver="fixed_point", stop=budget, gradient=Phantom(1, 1.0, same_value=True))
    mine = theirs = {"y": torch.zeros(3, 4), "z": torch.zeros(3, 4)}
    for _ in range(2):
        with torch.no_grad():
            assert_bits([eq(cycle, mine, x)["y"]], [cycle(cycle(cycle(theirs, x), x), x)["y"]])
            for _ in range(2):
                theirs = cycle(theirs, x)
        theirs = cycle(theirs, x)
        mine = eq(cycle, mine, x)
        assert_bits([mine["y"], mine["z"]], [theirs["y"], theirs["z"]])
        assert_bits(gradients(mine["y"].square().sum(), net), gradients(theirs["y"].square().sum(), net))
        mine, theirs = ({k: t.detach() for k, t in s.items()} for s in (mine, theirs))


def test_hrm() -> None:
    """Two levels: fast steps within slow ones, and a gradient through the last of each."""
    low, high = (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(2))
    both, x, cycles, fast = nn.ModuleList([low, high]), torch.randn(3, 4), 2, 3
    H, L = torch.randn(3, 4), torch.randn(3, 4)
    start = (H, L)
    with torch.no_grad():
        for i in range(cycles):
            for j in range(fast):
                if not (i == cycles - 1 and j == fast - 1):
                    L = block(L + H + x, low)
            if i != cycles - 1:
                H = block(H + L, high)
    L = block(L + H + x, low)
    H = block(H + L, high)

    def cycle(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        H, L = z
        with torch.no_grad():
            for _ in range(fast - 1):
                L = block(L + H + x, low)
        L = block(L + H + x, low)
        return block(H + L, high), L

    eq = Equilibrium(solver="fixed_point", stop=Stop(max_iter=cycles - 1, rtol=0), gradient=OneStep(same_value=True))
    ours = eq(cycle, start)
    assert_bits(list(ours), [H, L])
    assert_bits(gradients(ours[0].square().sum(), both), gradients(H.square().sum(), both))
    with torch.no_grad():
        assert_bits(list(eq(cycle, start)), [H, L])


def test_a_fixed_point_rnn() -> None:
    """A linear recurrence whose gates see its own output: all tokens at once, with their recurrence inside f."""
    gate, x = shrunk(nn.Linear(4, 4), 0.7), torch.randn(2, 6, 4)

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = gate

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
            rate, h, out = torch.sigmoid(self.gate(0.5 * z + before) + x), torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = rate[:, t] * h + (1 - rate[:, t]) * x[:, t]
                out.append(h)
            return torch.stack(out, 1)

    cell = Cell()
    z = torch.zeros(2, 6, 4)
    for _ in range(60):
        z = cell(z, x)
    deq = DEQ(cell, inject="argument", causal=True, solver="fixed_point", stop=SHARP, gradient=EXACT)
    assert_near([deq(x)], [z], 1e-11)
    assert_near(gradients(deq(x).square().sum(), cell), gradients(z.square().sum(), cell))


def test_deer() -> None:
    """A recurrence as an equilibrium over its whole length, by Newton's method: the states of the loop."""
    cell, x = nn.GRUCell(3, 3), torch.randn(2, 5, 3)
    h, states = torch.zeros(2, 3), []
    for t in range(5):
        h = cell(x[:, t], h)
        states.append(h)

    def f(z: Tensor, x: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        return cell(x.flatten(0, 1), before.flatten(0, 1)).unflatten(0, (2, 5))

    sol = deqlm.solve(f, torch.zeros(2, 5, 3), args=(x,), solver=NewtonKrylov(), stop=SHARP, gradient=EXACT)
    assert_near([sol.z], [torch.stack(states, 1)], 1e-11)
    assert_near(gradients(sol.z.square().sum(), cell), gradients(torch.stack(states, 1).square().sum(), cell))


def test_an_implicit_language_model() -> None:
    """Embeddings, damped steps with grad behind iterations without, a tied head: by hand, and as a model."""
    model = ImplicitLM(
        Backbone([Block(Attention(8, n_head=2))]),
        vocab_size=7,
        solve=Solve(FixedPoint(), Stop(max_iter=5, rtol=0, per="token")),
        gradient=Phantom(3, 0.8),
        mode="simultaneous",
    ).double()
    ids = torch.randint(7, (2, 4))
    body, e = model.backbone, model.embedding(ids)
    context = body.open(e)
    u, z = body.project(e, context), torch.zeros_like(e)
    with torch.no_grad():
        for _ in range(5):
            z = body(z, u, context)
    for _ in range(3):
        z = torch.lerp(z, body(z, u, context), 0.8)
    logits = F.linear(z, model.embedding.weight)
    assert_near([model(ids).logits], [logits], 1e-12)
    wanted = torch.randint(7, (2, 4))
    ours, theirs = (F.cross_entropy(t.flatten(0, 1), wanted.flatten()) for t in (model(ids).logits, logits))
    assert_near(gradients(ours, model), gradients(theirs, model), 1e-12)
