# %% [markdown]
# # One equation, three schedules
#
# Ten minutes, one CPU core, `pip install '.[compare]'` for the plots. A causal layer, in which a token sees no later
# one, can be solved for all tokens at once, chunk by chunk, or one token after the other. The equation is the same, and
# so is the answer. What differs is the work.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import deqlm

torch.set_num_threads(1)
torch.manual_seed(0)

# %% [markdown]
# ## A layer that follows a state
#
# Our layer is a small recurrence in disguise: token t looks at itself and at the token before. Solved to its fixed
# point, it hands a state along the whole sequence, although one evaluation reaches back by one token only. Its
# `forward_chunk` goes on behind what is solved already; a layer without one is evaluated on the prefix again, which is
# right and dearer.


# %%
class Neighbours(nn.Module):
    """z_t = tanh(A z_(t-1) + B z_t + x_t): causal, token by token."""

    def __init__(self, width):
        super().__init__()
        self.before = nn.Linear(width, width, bias=False)
        self.itself = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            nn.init.orthogonal_(self.before.weight).mul_(0.9)
            self.itself.weight.mul_(0.3)

    def forward(self, z, u):
        return self.forward_chunk(z, u, None)[0]

    def forward_chunk(self, z, u, cache):
        """Go on behind the token in the cache; return the output, and the next cache."""
        first = torch.zeros_like(z[:, :1]) if cache is None else cache
        before = torch.cat([first, z[:, :-1]], dim=1)
        return torch.tanh(self.before(before) + self.itself(z) + u), z[:, -1:]


layer = Neighbours(8).double()
x = 0.3 * torch.randn(2, 64, 8, dtype=torch.float64)


def solved(mode):
    how = {"solver": "fixed_point", "stop": deqlm.Stop(rtol=1e-8, max_iter=500)}
    deq = deqlm.DEQ(layer, inject="argument", causal=True, mode=mode, **how)
    with torch.no_grad():
        return deq(x, with_stats=True)


# %% [markdown]
# ## The same answer
#
# All tokens at once is how one trains; one after the other is how text is generated; chunks are between. Each token is
# solved to the same tolerance, so the answers agree to it.

# %%
whole, at_once = solved(deqlm.Simultaneous())
for mode in (deqlm.Chunked(16), deqlm.Chunked(4), deqlm.Sequential()):
    z, sol = solved(mode)
    apart, ended = (z - whole).abs().max(), int(sol.converged.sum())
    print(f"{mode!s:28} apart by {apart:.0e}, {ended} of {len(x)} rows converged")

# %% [markdown]
# ## Another amount of work
#
# The cost of a schedule is the number of tokens that pass through the layer, summed over evaluations. At once, every
# evaluation moves all tokens, also those at the end that cannot be right before the ones in front of them are. Chunks
# wait for their turn.

# %%
lengths = (8, 16, 32, 64)
schedules = {
    "at once": deqlm.Simultaneous(),
    "chunks of 8": deqlm.Chunked(8),
    "one by one": deqlm.Sequential(),
}
work = {name: [] for name in schedules}
sequence = x
for length in lengths:
    x = sequence[:, :length]
    for name, mode in schedules.items():
        work[name].append(solved(mode)[1].cost.token_evaluations / (len(x) * length))

figure, axis = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
for name, numbers in work.items():
    axis.plot(lengths, numbers, marker="o", label=name)
axis.set(xlabel="tokens", ylabel="evaluations per token")
axis.set_title("Work of one equation, three schedules")
axis.legend()
for name, numbers in work.items():
    print(f"{name:12} {[round(number, 1) for number in numbers]}")

# %% [markdown]
# The work is not the time: one evaluation of 64 tokens takes hardly longer than one of 8, least of all on a GPU. At
# once has the fewest *calls*. `mode="auto"` looks and decides, see [pay only for what moves](../guides/what_moves.md).
#
# ## The gradient is that of the answer
#
# Because the answer is the same, so is its gradient, whatever the schedule was:

# %%
x = sequence[:, :16].clone().requires_grad_()
slopes = []
for mode in schedules.values():
    how = {"stop": deqlm.Stop(rtol=1e-10, max_iter=500)}
    z = deqlm.DEQ(layer, inject="argument", causal=True, mode=mode, **how)(x)
    slopes.append(torch.autograd.grad(z.square().sum(), x)[0])
print([f"{(slope - slopes[0]).abs().max():.0e}" for slope in slopes])

# %% [markdown]
# ## Where to go on
#
# - [Follow a state](state_tracking.md): what such a layer learns that an explicit one does not.
# - [Results](../results.md#one-fixed-point-any-schedule): the same experiment on a trained model, to tens of thousands
#   of tokens.
# - [Generate text](../guides/generate.md): the models, with caches.
