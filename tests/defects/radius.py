"""The spectral radius of the Jacobian at the solution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deqlm
from defects.maps import F64
from deqlm.diagnostics import Probes

TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)


class Turning(nn.Module):
    """z -> R z, R a matrix of n / 2 rotations scaled from .45 to .9, in a basis that is not orthogonal."""

    def __init__(self, n: int) -> None:
        super().__init__()
        scales = torch.linspace(0.9, 0.45, n // 2, dtype=F64)
        basis = torch.eye(n, dtype=F64) + 0.3 * torch.randn(n, n, dtype=F64) / n**0.5
        R = torch.block_diag(*(scale * TURN for scale in scales))
        self.R = nn.Parameter(torch.linalg.solve(basis, R @ basis))

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.R.T


def ours_finds_the_radius_of_complex_pairs() -> None:
    for n, dense in ((2, 100), (2, 0), (40, 100), (40, 0)):
        layer = Turning(n)
        deq = deqlm.DEQ(layer, stop=deqlm.Stop(rtol=1e-8, max_iter=500)).eval()
        x = torch.randn(2, n, dtype=F64)
        found = deqlm.diagnose(deq, x, probes=Probes(dense=dense, starts=1, suggest=False))
        assert found.contraction is not None
        assert found.contraction.method == ("dense" if dense else "arnoldi")
        assert all(abs(radius - 0.9) < 1e-3 for radius in found.contraction.radius)
        assert not x.requires_grad
        assert layer.R.grad is None
        with torch.no_grad():
            assert not deq(x).requires_grad


def theirs_misses_the_radius_of_a_rotation() -> None:
    from defects import peer

    R = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    module = peer.torchdeq.get_deq(f_max_iter=300, f_tol=1e-6).eval()
    states, info = module(lambda z: z @ R.T + 1, torch.zeros(1, 2), sradius_mode=True)
    assert states[-1].requires_grad, "in eval, of a map without parameters"
    assert info["sradius"].item() < 0.7, "the radius is .9"
