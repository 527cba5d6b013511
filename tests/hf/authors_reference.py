"""The authors' models in plain formulas on the tensors of their files: what an imported model must reproduce.

Written from the description of their training and evaluation; nothing here comes from deqlm.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTH, WIDTH, TOKENS = 2, 16, 37
N, EXPAND, HEADDIM, TAPS = 4, 2, 8, 4
HEADS, D_INNER = 2, 48

PHASES = {"4+1": (4, 1), "24+4": (24, 4), "32+4": (32, 4)}


def config(family: str, kind: str = "implicit", phase: str = "24+4", **top) -> dict:
    """Return a config.json with every key that the authors' ones have, tiny; ``kind`` is implicit or explicit."""
    mamba = family == "mamba2"
    backbone = {
        "block_type": "mamba2" if mamba else "transformer",
        "block_cfg": {"d_state": N, "expand": EXPAND, "headdim": HEADDIM} if mamba else {"n_head": HEADS},
        **{"d_model": WIDTH, "n_layer": DEPTH, "d_inner": 0 if mamba else D_INNER},
        **{"pre_norm": True, "rms_norm": True, "dropout": 0.0},
    }
    if not mamba:
        backbone["mlp_type"] = "llama_mlp"
    deq = {}
    if kind == "implicit":
        backbone |= {"init_gain": 0.5, "pretrain_iter": 4, "pretrain_steps": 0}
        most, steps = PHASES[phase]
        deq = {
            "solver": {
                **{"f_solver": "fixed_point_iter", "f_max_iter": most, "f_tol": 0.05, "f_stop_mode": "rel"},
                **{"b_solver": "fixed_point_iter", "b_max_iter": 32, "b_tol": 1e-3, "b_stop_mode": "rel"},
                **{"eval_factor": 4.0, "eval_f_max_iter": 0},
            },
            "norm": {
                **{"norm_type": "weight_norm", "norm_no_scale": False, "norm_clip": False, "norm_clip_val": 1.0},
                **{"norm_target_norm": 1.0, "sn_n_power_iters": 1},
            },
            "training": {
                **{"core": "sliced", "ift": False, "hook_ift": False, "n_states": 1, "indexing": [], "gamma": 0.8},
                **{"grad": steps, "tau": 0.8, "sup_gap": -1, "sup_loc": []},
            },
            "regularization": {
                **{"jac_loss_weight": 0, "jac_loss_freq": 0, "jac_incremental": 0, "sradius_mode": True}
            },
        }
    made = {
        "architectures": ["ImplicitMambaForCausalLM" if mamba else "ImplicitLlamaForCausalLM"],
        "model_type": "implicit_mamba2" if mamba else "implicit_llama3",
        **{"torch_dtype": "float32", "transformers_version": "4.51.3", "tokenizer": "EleutherAI/gpt-neox-20b"},
        **{"backbone_type": kind, "vocab_size": TOKENS, "d_embed": WIDTH, "dropout": 0.0, "head_bias": False},
        **{"tie_embeddings": True, "pad_vocab": mamba, "pad_vocab_size_multiple": 16 if mamba else 8},
        **{"emb_init_std": 0.01, "weight_decay": 0.1, "average_eval": True, "data_info": {}, "dataset_name": None},
        **{"keep_sequence_dim": False, "save_output_ids": False},
        **{"backbone_config": backbone, "deq_params": deq},
    }
    if mamba:
        made |= {"n_tokens": TOKENS, "load_from_pretrained_shell": False, "masked_training": False}
    return made | top


def rows(given: dict) -> int:
    """Return the rows of the embedding table."""
    tokens = given.get("n_tokens", given["vocab_size"])
    multiple = given["pad_vocab_size_multiple"] if given["pad_vocab"] else 1
    return math.ceil(tokens / multiple) * multiple


def state(given: dict, dtype: torch.dtype = torch.float32, normed: bool | None = None) -> dict[str, Tensor]:
    """Return random tensors by the names of the authors' files, in their order; each weight_g is not ||weight_v||."""
    implicit = given["backbone_type"] == "implicit"
    normed = implicit if normed is None else normed
    out: dict[str, Tensor] = {}

    def vector(name: str, size: int, center: float = 0.0) -> None:
        out[name] = center + 0.1 * torch.randn(size, dtype=dtype)

    def matrix(name: str, *shape: int) -> None:
        v = (torch.rand(shape, dtype=dtype) * 2 - 1) / math.sqrt(math.prod(shape[1:]))
        if normed:
            norms = v.flatten(1).norm(dim=1).view(-1, *[1] * (len(shape) - 1))
            out[f"{name}.weight_g"] = norms * (0.8 + 0.4 * torch.rand_like(norms))
            out[f"{name}.weight_v"] = v
        else:
            out[f"{name}.weight"] = v

    inner = EXPAND * WIDTH
    heads, conv = inner // HEADDIM, inner + 2 * N
    mamba = given["backbone_config"]["block_type"] == "mamba2"
    injected = 2 * inner + 2 * N + heads if mamba else 3 * WIDTH
    for i in range(DEPTH):
        at = f"backbone.layers.{i}"
        vector(f"{at}.norm.weight", WIDTH, 1.0)
        if mamba:
            step = torch.exp(torch.rand(heads, dtype=dtype) * math.log(100)) * 1e-3
            out[f"{at}.mixer.dt_bias"] = step + torch.log(-torch.expm1(-step))
            out[f"{at}.mixer.A_log"] = torch.log(1 + 15 * torch.rand(heads, dtype=dtype))
            vector(f"{at}.mixer.D", heads, 1.0)
            matrix(f"{at}.mixer.in_proj", injected, WIDTH)
            if normed:
                vector(f"{at}.mixer.conv1d.bias", conv)
            matrix(f"{at}.mixer.conv1d", conv, 1, TAPS)
            if not normed:
                vector(f"{at}.mixer.conv1d.bias", conv)
            vector(f"{at}.mixer.norm.weight", inner, 1.0)
            matrix(f"{at}.mixer.out_proj", WIDTH, inner)
        else:
            for name in ("wq", "wk", "wv", "out_proj"):
                matrix(f"{at}.mixer.{name}", WIDTH, WIDTH)
            vector(f"{at}.norm2.weight", WIDTH, 1.0)
            hidden = 2 * D_INNER // 3
            matrix(f"{at}.mlp.w1", hidden, WIDTH)
            matrix(f"{at}.mlp.fc2", WIDTH, hidden)
            matrix(f"{at}.mlp.w3", hidden, WIDTH)
    vector("backbone.norm_f.weight", WIDTH, 1.0)
    if implicit:
        vector("backbone.injection.bias", injected)
        matrix("backbone.injection", injected, WIDTH)
        vector("backbone.injection_norm.weight", WIDTH, 1.0)
    out["word_emb.emb.weight"] = 0.02 * torch.randn(rows(given), WIDTH, dtype=dtype)
    tied = given["tie_embeddings"]
    out["criterion.decoder.weight"] = out["word_emb.emb.weight"]
    if not tied:
        out["criterion.decoder.weight"] = torch.randn(rows(given), WIDTH, dtype=dtype) / math.sqrt(WIDTH)
    return out


def contract(tensors: dict[str, Tensor], reach: float = 0.1) -> dict[str, Tensor]:
    """Return weights of a map that contracts: layers see little of the state, and the injected input is large."""
    out = {name: t.clone() for name, t in tensors.items()}
    for name, t in out.items():
        if name in ("word_emb.emb.weight", "criterion.decoder.weight"):
            t.mul_(50)
        elif ".mixer." in name and name.endswith("weight_g"):
            t.mul_(4.0 if "out_proj" in name else reach)
        elif name.endswith((".norm.weight", ".norm2.weight")) and ".mixer." not in name:
            t.mul_(0.5)
        elif name == "backbone.norm_f.weight":
            t.mul_(0.3)
    return out


class Authors:
    """The authors' model with these tensors.

    Attributes:
        w: tensors by name, leaves that take gradients; a tied head is the embedding table itself.
        calls: evaluations of the backbone in the last forward.
        kept: the evaluation, from 0, whose value each sample kept in the last `free`.
    """

    def __init__(self, given: dict, tensors: dict[str, Tensor]) -> None:
        self.given, self.calls = given, 0
        self.kept: list[int] = []
        self.w = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        if given["tie_embeddings"]:
            self.w["criterion.decoder.weight"] = self.w["word_emb.emb.weight"]

    def weight(self, name: str) -> Tensor:
        if f"{name}.weight" in self.w:
            return self.w[f"{name}.weight"]
        g, v = self.w[f"{name}.weight_g"], self.w[f"{name}.weight_v"]
        return g * v / v.flatten(1).norm(dim=1).view(g.shape)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.w[f"{name}.weight"]

    def mamba2(self, a: Tensor, u: Tensor | None, at: str) -> Tensor:
        inner = EXPAND * WIDTH
        heads = inner // HEADDIM
        q = a @ self.weight(f"{at}.in_proj").T
        q = q if u is None else q + u
        gate, xBC, dt = q.split([inner, inner + 2 * N, heads], dim=-1)
        xBC = F.pad(xBC.transpose(1, 2), (TAPS - 1, 0))
        xBC = F.conv1d(xBC, self.weight(f"{at}.conv1d"), self.w[f"{at}.conv1d.bias"], groups=inner + 2 * N)
        x, B, C = F.silu(xBC.transpose(1, 2)).split([inner, N, N], dim=-1)
        x = x.unflatten(-1, (heads, HEADDIM))
        dt = F.softplus(dt + self.w[f"{at}.dt_bias"])
        decay = torch.exp(-dt * self.w[f"{at}.A_log"].exp())
        S = torch.zeros(*x[:, 0].shape, N, dtype=x.dtype)
        y = []
        for t in range(x.shape[1]):
            S = decay[:, t, :, None, None] * S + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
            y.append((S * C[:, t, None, None]).sum(-1) + self.w[f"{at}.D"][:, None] * x[:, t])
        y = torch.stack(y, dim=1).flatten(-2) * F.silu(gate)
        return self.norm(y, f"{at}.norm") @ self.weight(f"{at}.out_proj").T

    def attention(self, a: Tensor, u: Tensor | None, at: str) -> Tensor:
        shifts = (0, 0, 0) if u is None else u.chunk(3, dim=-1)
        q, k, v = (
            (a @ self.weight(f"{at}.{name}").T + shift).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name, shift in zip(("wq", "wk", "wv"), shifts, strict=True)
        )
        length, width = q.shape[2:]
        frequencies = 5e5 ** -(torch.arange(0, width, 2, dtype=a.dtype) / width)
        angles = torch.arange(length, dtype=a.dtype)[:, None] * frequencies.repeat(2)

        def turned(x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=-1)
            return x * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()

        scores = turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(width)
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ self.weight(f"{at}.out_proj").T

    def backbone(self, z: Tensor, u: Tensor | None) -> Tensor:
        self.calls += 1
        mamba = self.given["backbone_config"]["block_type"] == "mamba2"
        for i in range(DEPTH):
            at = f"backbone.layers.{i}"
            mixer = self.mamba2 if mamba else self.attention
            z = z + mixer(self.norm(z, f"{at}.norm"), u, f"{at}.mixer")
            if not mamba:
                a = self.norm(z, f"{at}.norm2")
                hidden = F.silu(a @ self.weight(f"{at}.mlp.w1").T) * (a @ self.weight(f"{at}.mlp.w3").T)
                z = z + hidden @ self.weight(f"{at}.mlp.fc2").T
        return self.norm(z, "backbone.norm_f")

    def start(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings, injected input and the zero state."""
        self.calls = 0
        e = self.w["word_emb.emb.weight"][ids]
        u = self.norm(e, "backbone.injection_norm") @ self.weight("backbone.injection").T
        return e, u + self.w["backbone.injection.bias"], torch.zeros_like(e)

    def logits(self, z: Tensor) -> Tensor:
        return z @ self.w["criterion.decoder.weight"].T

    def explicit(self, ids: Tensor) -> Tensor:
        return self.logits(self.backbone(self.w["word_emb.emb.weight"][ids], None))

    def free(self, ids: Tensor) -> Tensor:
        """Undamped evaluations from zero, the f(z) with the smallest residual of each sample, then damped steps."""
        solver, training = self.given["deq_params"]["solver"], self.given["deq_params"]["training"]
        _, u, z = self.start(ids)
        with torch.no_grad():
            lowest, best = torch.full((len(ids),), 1e8, dtype=z.dtype), z
            self.kept = [0] * len(ids)
            for j in range(solver["f_max_iter"]):
                f = self.backbone(z, u)
                r = (f - z).flatten(1).norm(dim=1) / (f.flatten(1).norm(dim=1) + 1e-9)
                better = r < lowest
                best = torch.where(better[:, None, None], f, best)
                lowest = torch.where(better, r, lowest)
                self.kept = [j if b else k for b, k in zip(better, self.kept, strict=True)]
                z = f
                if r.max() < solver["f_tol"]:
                    break
        z = best
        for _ in range(training["grad"]):
            z = training["tau"] * self.backbone(z, u) + (1 - training["tau"]) * z
        return self.logits(z)

    def warm_up(self, ids: Tensor) -> Tensor:
        """One undamped and then damped evaluations, all of them differentiated."""
        tau = self.given["deq_params"]["training"]["tau"]
        _, u, z = self.start(ids)
        z = self.backbone(z, u)
        for _ in range(self.given["backbone_config"]["pretrain_iter"] - 1):
            z = (1 - tau) * z + tau * self.backbone(z, u)
        return self.logits(z)

    @torch.no_grad()
    def fixed_point(self, ids: Tensor) -> Tensor:
        """Undamped evaluations until nothing moves."""
        _, u, z = self.start(ids)
        for _ in range(3000):
            f = self.backbone(z, u)
            if (f - z).abs().max() <= 1e-13:
                return self.logits(f)
            z = f
        raise AssertionError("the map of the reference does not contract")


def shifted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
