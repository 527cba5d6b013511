"""An implicit graph layer, and explicit layers with as many parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

import deqlm
from deqlm import Implicit, Solve, Stop
from deqlm.layers import Contractive
from examples.graph.data import CLASSES, Graph

STOP = Stop(max_iter=600, rtol=1e-4, per="token")
"""Each node passes on its own: a message fades on its way, and the norm of a whole chain would not notice its end."""


class Propagate(nn.Module):
    """z -> tanh(A z W + u), with the normalised adjacency A of norm at most 1, and W of norm at most ``bound`` below 1.

    W is ``bound`` times an orthogonal matrix: a message fades at one rate in all directions, so what it says remains.
    The `deqlm.DEQ` computes it once per call, not once per evaluation.
    """

    def __init__(self, width: int, bound: float) -> None:
        super().__init__()
        linear = nn.Linear(width, width, bias=False)
        nn.init.eye_(linear.weight)
        self.mix = Contractive(orthogonal(linear), bound)

    def forward(self, z: Tensor, u: Tensor, graph: Graph) -> Tensor:
        return torch.tanh(graph.gather(self.mix(z)) + u)


class ImplicitGNN(nn.Module):
    """The states of all nodes solve z = tanh(A z W + u), with u the embedded features: as many hops as the graph has.

    It converges by construction: the map contracts by ``bound``, so plain iteration finds its one solution.

    Args:
        width: features per node.
        bound: of the norm of W, in (0, 1).
    """

    def __init__(self, width: int, bound: float) -> None:
        super().__init__()
        how = Solve("fixed_point", STOP)
        layer = Propagate(width, bound)
        self.deq = deqlm.DEQ(layer, inject="argument", solver=how.solver, stop=how.stop, gradient=Implicit(solve=how))
        self.enter = nn.Linear(CLASSES, width, bias=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Return logits of the last node, (B, CLASSES), from features (B, nodes, CLASSES)."""
        return self.head(read(self.deq(self.enter(x), graph)))


class ExplicitGNN(nn.Module):
    """``depth`` graph layers with weights of their own: a node hears of those within ``depth`` hops, and of no other.

    Args:
        width: features per node.
        depth: layers.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(CLASSES, width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        for layer in self.layers:
            nn.init.eye_(layer.weight)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Return logits of the last node, (B, CLASSES), from features (B, nodes, CLASSES)."""
        u = z = self.enter(x)
        for layer in self.layers:
            z = torch.tanh(graph.gather(layer(z)) + u)
        return self.head(read(z))


def read(z: Tensor) -> Tensor:
    """Return the direction of the last node's state, (B, D): what a fading message keeps."""
    return nn.functional.normalize(z[:, -1], dim=-1)


def explicit_width(depth: int, parameters: int) -> int:
    """Return the largest width at which ``depth`` layers have at most so many parameters, and 1 at least."""
    width = 1
    while count(ExplicitGNN(width + 1, depth)) <= parameters:
        width += 1
    return width


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())
