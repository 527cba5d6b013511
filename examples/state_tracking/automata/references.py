"""Plain and small versions of what the tables compare with: an LSTM, DeltaProduct and PD-SSM, token by token.

They show what an architecture can learn in the time that the implicit layer has. They are written to be read and for
short sequences; the authors' kernels are faster and their models larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqlm_solvers.core.checks import require, whole

__all__ = ["LSTM", "PDSSM", "DeltaProduct", "Output", "Reference", "delta_product", "pd_ssm"]


class Output(NamedTuple):
    """What the training loop reads.

    Attributes:
        loss: mean cross-entropy over the labels that count; None without labels.
        logits: (B, L, V).
    """

    loss: Tensor | None
    logits: Tensor


class Reference(nn.Module):
    """Embedding, layers one behind the other, head.

    Args:
        rows: tokens and answers that the embedding and the head have a row for.
        width: of the embedding.
        layers: modules from (B, L, width) to (B, L, width).
    """

    def __init__(self, rows: int, width: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        whole("rows", rows, 1)
        self.embedding = nn.Embedding(rows, width)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, rows)

    def forward(self, ids: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Output:
        """Return logits, and the loss if there are labels.

        Raises:
            ValueError: a mask; sequences of a batch have one length here.
        """
        require(mask is None, "mask", "a tensor", "None, since sequences of a batch have one length")
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Output(loss, logits)


class LSTM(nn.Module):
    """torch's LSTM as one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states, (B, L, width)."""
        return self.lstm(x)[0]


def delta_product(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor) -> Tensor:
    """Return the outputs of gated DeltaProduct, (B, L, H, V), token by token.

    The state S, (K, V), is scaled by the gate and then takes n steps of gradient descent on |k_j^T S - v_j|^2, each a
    generalised Householder matrix: S <- (I - beta_j k_j k_j^T) S + beta_j k_j v_j^T; the output is q^T S.

    Args:
        q: (B, L, H, K).
        k: keys of norm one, (B, L, n, H, K).
        v: (B, L, n, H, V).
        beta: (B, L, n, H), in (0, 2): above one, the eigenvalue along the key is negative.
        gate: (B, L, H), in (0, 1).

    Reference:
        Siems et al. (2025), DeltaProduct: improving state-tracking in linear RNNs via Householder products, arXiv
        2502.10297; negative eigenvalues after Grazzi et al. (2024), arXiv 2411.12537.
    """
    state = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
    outputs = []
    for t in range(q.shape[1]):
        state = state * gate[:, t, :, None, None]
        for j in range(k.shape[2]):
            key, step = k[:, t, j], beta[:, t, j, :, None]
            error = v[:, t, j] - torch.einsum("bhk,bhkv->bhv", key, state)
            state = state + torch.einsum("bhk,bhv->bhkv", key * step, error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1)


class DeltaProduct(nn.Module):
    """A layer of gated DeltaProduct: norm, recurrence, residual; norm, gated MLP, residual.

    Args:
        width: of the model.
        heads: H.
        size: K and V of a head.
        steps: Householder matrices per token.
    """

    def __init__(self, width: int, *, heads: int = 2, size: int = 16, steps: int = 2) -> None:
        super().__init__()
        for name, value in (("width", width), ("heads", heads), ("size", size), ("steps", steps)):
            whole(name, value, 1)
        self.heads, self.size, self.steps = heads, size, steps
        inner = heads * size
        self.norm, self.last_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.parts = [inner, steps * inner, steps * inner, steps * heads, heads]
        self.project = nn.Linear(width, sum(self.parts))
        self.out_norm, self.out = nn.RMSNorm(size), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, width)."""
        batch, length, _ = x.shape
        q, k, v, beta, gate = self.project(self.norm(x)).split(self.parts, dim=-1)
        heads = (self.heads, self.size)
        k, v = (part.view(batch, length, self.steps, *heads) for part in (k, v))
        y = delta_product(
            F.normalize(F.silu(q).view(batch, length, *heads), dim=-1),
            F.normalize(F.silu(k), dim=-1),
            F.silu(v),
            2 * beta.view(batch, length, self.steps, self.heads).sigmoid(),
            # open at first, so that a state lives for some hundred tokens
            (gate + 6).sigmoid(),
        )
        x = x + self.out(self.out_norm(y).flatten(2))
        value, opened = self.up(self.last_norm(x)).chunk(2, dim=-1)
        return x + self.down(value * F.silu(opened))


def pd_ssm(select: Tensor, diagonal: Tensor, inputs: Tensor) -> Tensor:
    """Return the states of x_t = P_t D_t x_{t-1} + b_t from x_0 = e_1, (B, L, N) complex, token by token.

    Every column of P_t is one-hot, at the largest entry of that column; its gradient is that of the column's softmax.

    Args:
        select: scores of the entries of P, (B, L, N, N).
        diagonal: of D, (B, L, N) complex, of absolute value below one.
        inputs: b, (B, L, N) complex.

    Reference:
        Terzic et al. (2025), Structured sparse transition matrices to enable state tracking in state-space models,
        NeurIPS, arXiv 2509.22284.
    """
    soft = select.softmax(dim=-2)
    hard = F.one_hot(select.argmax(dim=-2), select.shape[-2]).transpose(-1, -2).to(soft)
    moved = (hard - soft.detach() + soft).to(diagonal.dtype)
    state = torch.zeros_like(inputs[:, 0])
    state[:, 0] = 1
    states = []
    for t in range(inputs.shape[1]):
        state = torch.einsum("bmn,bn->bm", moved[:, t], diagonal[:, t] * state) + inputs[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


class PDSSM(nn.Module):
    """A layer of PD-SSM, with its authors' generators of P and D, and their norm behind the sum.

    Args:
        width: of the model.
        size: N of the state.
        dictionary: matrices that P is mixed of.
    """

    def __init__(self, width: int, *, size: int = 32, dictionary: int = 8) -> None:
        super().__init__()
        for name, value in (("width", width), ("size", size), ("dictionary", dictionary)):
            whole(name, value, 1)
        self.choose = nn.Linear(width, dictionary, bias=False)
        self.dictionary = nn.Parameter(torch.randn(dictionary, size, size) / size**0.5)
        self.magnitude, self.phase = (
            nn.Sequential(nn.Linear(width, 2 * size), nn.GELU(), nn.Linear(2 * size, size), nn.Sigmoid())
            for _ in range(2)
        )
        self.enter = nn.Linear(width, 2 * size, bias=False)
        self.leave, self.skip = nn.Linear(2 * size, width), nn.Parameter(torch.randn(width) / width**0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, width)."""
        select = torch.einsum("blk,kmn->blmn", self.choose(x).softmax(-1), self.dictionary)
        diagonal = torch.polar(self.magnitude(x), 2 * torch.pi * self.phase(x))
        states = pd_ssm(select, diagonal, torch.complex(*self.enter(x).chunk(2, dim=-1)))
        return self.norm(self.leave(torch.cat([states.real, states.imag], dim=-1)) + self.skip * x)
