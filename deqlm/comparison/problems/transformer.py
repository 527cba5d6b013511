"""A stock transformer layer on real text."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deqlm.comparison.problem import Case, Problem, register_problem
from deqlm.comparison.settings import Settings
from deqlm.comparison.truth import polish
from deqlm_solvers import Map, options
from deqlm_solvers.core.checks import require, whole

__all__ = ["Transformer"]


@register_problem("transformer")
@options
class Transformer(Problem):
    """nn.TransformerEncoderLayer in eval() on the text of Python's own documentation, z = layer(z + embedding).

    The text is `pydoc_data.topics`, which every Python has; weights are random with the seed of the settings.

    Args:
        width: features of a position, divisible by 4 (the heads).
        length: positions of a row.
    """

    width: int = 32
    length: int = 32

    rows: ClassVar[int] = 4
    HEADS: ClassVar[int] = 4

    def __post_init__(self) -> None:
        ok = isinstance(self.width, int) and self.width >= 4 and self.width % self.HEADS == 0
        require(ok, "width", self.width, f"divisible by {self.HEADS}")
        whole("length", self.length, 1)

    def build(self, settings: Settings) -> Case:
        rows = settings.batch or self.rows
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            known: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
            options = {"dropout": 0.0, "batch_first": True, **known}
            layer = nn.TransformerEncoderLayer(self.width, self.HEADS, 2 * self.width, **options)
            table = torch.randn(256, self.width, **known)
        layer = layer.eval().to(settings.device, settings.dtype)
        u = table[read_text(rows, self.length)].to(settings.device, settings.dtype)
        exact_layer, exact_u = copy.deepcopy(layer).double(), u.double()
        exact = self._map(exact_layer, exact_u)
        z0 = torch.zeros_like(u).flatten(1)
        return Case(
            f=self._map(layer, u),
            exact=exact,
            z0=z0,
            max_iter=self.budget(settings),
            solution=lambda: polish(exact, z0),
            parameters=(*layer.parameters(), u),
            exact_parameters=(*exact_layer.parameters(), exact_u),
            tokens=self.length,
        )

    def _map(self, layer: nn.Module, u: Tensor) -> Map:
        return lambda z: layer(z.view(u.shape) + u).flatten(1)


def read_text(rows: int, length: int) -> Tensor:
    """Return (rows, length) bytes of documentation, one passage per row, int64."""
    from pydoc_data.topics import topics

    text = " ".join(topics[name] for name in sorted(topics)).encode()
    stride = max(1, (len(text) - length) // rows)
    passages = [text[i * stride : i * stride + length] for i in range(rows)]
    return torch.tensor([list(passage) for passage in passages], dtype=torch.int64, device="cpu")
