"""A classifier whose state is a tuple of feature maps, one per resolution, solved together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import deqlm
from deqlm import Implicit, Solve, Stop
from deqlm.training import jacobian_penalty
from examples.vision.data import CLASSES

Maps = tuple[Tensor, ...]

FORWARD = Stop(max_iter=30, rtol=1e-3)
BACKWARD = Solve("anderson", Stop(max_iter=30, rtol=1e-2))


class Classifier(nn.Module):
    """Stem, equilibrium of all resolutions, read-out; ``implicit=False`` applies the layer once, from the stem's maps.

    Args:
        widths: channels per resolution, the finest first; each next one has half the side.
        implicit: solve z = layer(z, u) rather than return layer(u, u).
    """

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16), *, implicit: bool = True) -> None:
        super().__init__()
        layer = MultiScale(widths)
        gradient = Implicit(solve=BACKWARD)
        # the DEQ computes each normalised weight once per call, not once per evaluation
        self.deq = deqlm.DEQ(layer, inject="argument", stop=FORWARD, gradient=gradient, on_failure="ignore")
        self.implicit = implicit
        self.stems = nn.ModuleList(
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(4, width)) for width in widths
        )
        self.reads = nn.ModuleList(nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU()) for width in widths)
        self.head = nn.Linear(2 * sum(widths), CLASSES)

    def forward(self, image: Tensor, penalty: bool = False) -> tuple[Tensor, Tensor]:
        """Return logits (B, CLASSES) and, if asked for, the Jacobian penalty at the solved state, else 0.

        Args:
            image: (B, 1, side, side).
            penalty: estimate ||df/dz||_F^2 / N, with one random vector.
        """
        u = self.inject(image)
        z = self.deq(u) if self.implicit else self.deq.layer(u, u)
        cost = jacobian_penalty(lambda z: self.deq.layer(z, u), z) if penalty else image.new_zeros(())
        # a mean alone would read little: GroupNorm leaves the channels of a group with the mean 0
        seen = [read(leaf).mean(dim=(2, 3)) for read, leaf in zip(self.reads, z, strict=True)]
        return self.head(torch.cat(seen, dim=1)), cost

    def inject(self, image: Tensor) -> Maps:
        """Return what enters the layer at each resolution; the finest sees the image, the others its average."""
        return tuple(stem(F.avg_pool2d(image, 2**i)) for i, stem in enumerate(self.stems))


class MultiScale(nn.Module):
    """One residual block per resolution, then every resolution receives from every other.

    GroupNorm takes its statistics within an image, so rows of a batch do not mix; it ends the layer, so the state stays
    bounded.

    Args:
        widths: channels per resolution.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width) for width in widths)
        scales = range(len(widths))
        self.paths = nn.ModuleList(
            nn.ModuleList(Resample(widths[j], widths[i], j, i) for j in scales if j != i) for i in scales
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths)

    def forward(self, z: Maps, u: Maps) -> Maps:
        inner = [block(leaf, given) for block, leaf, given in zip(self.blocks, z, u, strict=True)]
        mixed = []
        for i, (paths, norm) in enumerate(zip(self.paths, self.norms, strict=True)):
            others = [leaf for j, leaf in enumerate(inner) if j != i]
            received = [path(leaf) for path, leaf in zip(paths, others, strict=True)]
            mixed.append(norm(torch.relu(sum(received, inner[i]))))
        return tuple(mixed)


class Residual(nn.Module):
    """norm(relu(u + conv(relu(norm(conv(z)))))), two 3x3 convolutions with weight norm.

    The residual is to the input and not to the state: z + F(z) would have no fixed point near.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.second = weight_norm(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        inner = torch.relu(self.norms[0](self.first(z)))
        return self.norms[1](torch.relu(u + self.second(inner)))


class Resample(nn.Module):
    """From one resolution to another: averages on the way down, repeats on the way up, and mixes channels.

    Args:
        width: channels in.
        out: channels out.
        source: place of the resolution it comes from, 0 the finest.
        target: place of the one it goes to.
    """

    def __init__(self, width: int, out: int, source: int, target: int) -> None:
        super().__init__()
        self.mix = weight_norm(nn.Conv2d(width, out, 1, bias=False))
        self.down, self.up = 2 ** max(target - source, 0), 2 ** max(source - target, 0)

    def forward(self, z: Tensor) -> Tensor:
        mixed = self.mix(F.avg_pool2d(z, self.down))
        return mixed.repeat_interleave(self.up, dim=2).repeat_interleave(self.up, dim=3)
