"""The mixers that every suite of this folder is held to, small ones."""

from __future__ import annotations

import torch

from deqlm.layers import Attention, Mamba2

F64 = torch.float64
WIDTH = 12

MIXERS = {
    "mamba2": lambda **more: Mamba2(WIDTH, d_state=5, headdim=4, **more),
    "mamba2 with groups": lambda **more: Mamba2(WIDTH, d_state=3, headdim=4, ngroups=2, D_has_hdim=True, **more),
    "mamba2 with gated MLP": lambda **more: Mamba2(WIDTH, d_state=3, headdim=4, d_ssm=16, bias=True, **more),
    "mamba2 without norm": lambda **more: Mamba2(WIDTH, d_state=3, headdim=4, rmsnorm=False, d_conv=1, **more),
    "mamba2 before gate": lambda **more: Mamba2(WIDTH, d_state=3, headdim=4, norm_before_gate=True, **more),
    "attention": lambda **more: Attention(WIDTH, n_head=3, **more),
    "attention with groups": lambda **more: Attention(WIDTH, n_head=6, n_kv_head=2, bias=True, **more),
    "attention in a window": lambda **more: Attention(WIDTH, n_head=3, sliding_window=4, **more),
    "attention to itself": lambda **more: Attention(WIDTH, n_head=3, sliding_window=1, **more),
    "attention without rotary": lambda **more: Attention(WIDTH, n_head=3, apply_rotary=False, **more),
}
