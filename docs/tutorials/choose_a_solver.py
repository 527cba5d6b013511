# %% [markdown]
# # Choose and compare solvers
#
# Which solver is best depends on your map and on nothing else. So measure it: this tutorial takes a map, runs every
# solver on it, and reads the result. It needs the `compare` extra (`pip install '.[compare]'`), which brings scipy
# and torchdeq as competitors.
#
# The states here are small. More threads gain nothing with them, and on a machine with other work to do they wait for
# each other, up to fifty times as long as they work (`docs/records/threads.json`). That would spoil every time measured
# here, so this page computes on one.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import deqlm
from deqlm.comparison import compare

torch.set_num_threads(1)

# %% [markdown]
# ## Your own map
#
# A problem is a function that returns `(f, z0)`: the map, and a start with the batch first. If it has the keywords
# `dtype`, `device`, `batch` or `seed`, it is given them. A module as map is best, because the comparison widens a copy
# of it to float64 to compute the *true* residual of whatever a solver returns.
#
# Ours is a classic from radiative transfer, Chandrasekhar's H-equation, discretized with 100 points:
#
#     H(m) = 1 / (1 - c/2 * integral over n in (0, 1) of m H(n) / (m + n))
#
# It has a dial. The map contracts by about `1 - sqrt(1 - c)` per step: harmless for small `c`, and by nothing at all
# for `c = 1`. Every row of the batch gets its own `c`.


# %%
class Chandrasekhar(nn.Module):
    def __init__(self, c, points=100):
        super().__init__()
        m = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        self.register_buffer("kernel", m[:, None] / (m[:, None] + m[None, :]) / points)
        self.register_buffer("c", c)

    def forward(self, h):
        return 1 / (1 - self.c / 2 * h @ self.kernel.mT)


CONTRACTION = torch.linspace(0.05, 0.99, 16, dtype=torch.float64)
C = (1 - (1 - CONTRACTION) ** 2)[:, None]


def chandrasekhar(dtype=torch.float32):
    """Chandrasekhar's H-equation, from easy to nearly singular."""
    return Chandrasekhar(C).to(dtype), torch.ones(len(C), 100, dtype=dtype)


# %% [markdown]
# ## One call
#
# `compare(problems, solvers)` takes your function, or the names of built-in problems, or both. Without `solvers` it
# runs everything that is registered; adapters such as `scipy.anderson` and `torchdeq.broyden` are rows like any other,
# and so is a solver of your own. Every solver gets the same map, start, tolerance and number of evaluations.

# %% free
result = compare(
    [chandrasekhar],
    ["fixed_point", "anderson", "broyden", "scipy.anderson", "scipy.krylov", "torchdeq.anderson", "torchdeq.broyden"],
    repeats=3,
    progress=False,
)
print(result)

# %% [markdown]
# The same from the command line, for a function `chandrasekhar` in a file `my_map.py`; `--out` adds JSON and plots:
#
# ```bash
# deqlm compare --problems my_map.py:chandrasekhar --solvers fixed_point,anderson,broyden --out runs/chandrasekhar
# ```
#
# ## Read the table
#
# - **solved** comes first. It counts rows whose *true* residual, computed in float64 at the returned point, is within
#   the tolerance, with 5 % of slack for rounding. What the solver believes about itself does not count.
# - **evals** and **row-evals** are what your map saw. They are the same in every run with the same seed, on the same
#   machine and versions, and they are what you pay when f is expensive.
# - **time** is the median run. It is evaluations times the cost of f, plus the overhead.
# - **overhead** is what the solver itself costs per evaluation. When f is cheap, it decides.
# - **memory** is the most that the solver held at once, in units of the state: history, best point, working space. With
#   few unknowns it looks large; [below](#memory-damping-ridge) is why.
# - **residual** is that of the worst row.
#
# A solver that fails stays in the table, with the reason.

# %%
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for entry in result.problems[0].entries:
    style = {"scipy": "--", "torchdeq": ":"}.get(entry.solver.partition(".")[0], "-")
    axis.step(entry.trace.evaluations, entry.trace.residual, style, where="post", label=entry.solver)
axis.axhline(result.problems[0].tol, color="black", linewidth=0.6)
axis.set(xlabel="evaluations of f", ylabel="residual of the worst row", title="Chandrasekhar's H-equation, 16 rows")
axis.set(yscale="log", ylim=(3e-6, None))
axis.grid(alpha=0.25)
axis.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## When plain iteration is enough
#
# The table shows the worst row. `sol.steps` shows every one, and here we know how strongly each row contracts:

# %%
f, z0 = chandrasekhar(torch.float64)
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for solver, marker in (("fixed_point", "."), ("anderson", "o"), ("broyden", "x")):
    sol = deqlm.solve(f, z0, solver=solver, stop=deqlm.Stop(max_iter=2000, rtol=1e-8), on_failure="raise")
    axis.semilogy(CONTRACTION, sol.steps, marker=marker, label=solver)
axis.set(xlabel="contraction factor of the row", ylabel="evaluations", title="Easy rows need no clever solver")
axis.grid(alpha=0.25)
axis.legend(frameon=False)

# %% [markdown]
# Up to a factor of about 0.3 an accelerated solver saves a handful of evaluations, and plain iteration may still be
# faster by the clock, because its step costs next to nothing. Close to 1 it needs hundreds, and the others a dozen or
# two. So:
#
# - f is cheap and contracts well, or you can afford a few evaluations only: `fixed_point`.
# - f is expensive, or contracts slowly, or you do not know: `anderson`, the default.
# - plain iteration oscillates: `{"name": "fixed_point", "damping": 0.5}`, or `anderson`.
#
# The built-in problem `two_cycle` is the standard oscillating one, `tanh(b - 1.6 z)`:

# %%
cycle = compare(["two_cycle"], ["fixed_point", "fixed_point:damping=0.5", "anderson"], repeats=1, progress=False)
for entry in cycle.problems[0].entries:
    rows = f"{entry.solved} of {cycle.problems[0].rows} rows"
    print(f"{entry.solver:24} {rows:16} {'' if entry.outcome == 'solved' else entry.outcome}")

# %% [markdown]
# ## Memory, damping, ridge
#
# Options are typed behind a colon. **Memory** is the one that matters: a short history forgets what it needs on a slow
# map. Here is a symmetric map with eigenvalues up to 0.99.

# %% volatile
memories = [1, 3, 5, 12, 25]
names = [f"anderson:memory={m}" for m in memories]
slow = compare(["symmetric:rho=0.99"], [*names, "fixed_point"], repeats=1, memory=False, progress=False).problems[0]
for entry in slow.entries:
    print(f"{entry.solver:22} {entry.outcome:9} {entry.evaluations:5d} evaluations")

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for entry, shade in zip(slow.entries[:-1], plt.cm.Blues(torch.linspace(0.35, 1, 5).numpy()), strict=True):
    axis.step(entry.trace.evaluations, entry.trace.residual, color=shade, where="post", label=entry.solver)
plain = slow.entries[-1].trace
axis.step(plain.evaluations, plain.residual, color="tab:gray", where="post", linestyle="--", label="fixed_point")
axis.set(xlabel="evaluations of f", ylabel="residual of the worst row", title="A longer memory on a slow map")
axis.set(xscale="log", yscale="log")
axis.grid(alpha=0.25)
axis.legend(frameon=False, fontsize=8)

# %% [markdown]
# With memory 1, Anderson *is* damped plain iteration, and the curves coincide. Each further point costs two states of
# memory and a row of inner products per step; 12 is the default, whose history is 22 states.
#
# The tables show more than that, because a history of M pairs also needs a few matrices of M x M numbers per row, in
# float64 and rounded up to a multiple of 8. Their size does not depend on the state, so they weigh most where it is
# small. For M = 11 one of them is up to 2 kB per row: 8 states of 64 float32 numbers, and half a state of 1024. Six are
# held at once. What remains with large states is the history, half of it again for its inner products, and some ten
# points and residuals:

# %% volatile
sizes = compare([f"symmetric:unknowns={n}" for n in (64, 128, 1024, 4096)], ["anderson"], repeats=1, progress=False)
for problem in sizes.problems:
    print(f"N = {problem.unknowns:4d}: anderson holds {problem.entries[0].memory:5.1f} states")

# %% [markdown]
# **Damping** takes a part of the step only. It settles oscillations of plain iteration, as above, at the price of
# slower progress where nothing oscillates.
#
# **Ridge** keeps Anderson's small least-squares problem solvable when its history is nearly dependent. What it is
# relative to decides whether you ever have to think about it. Here it is relative to a matrix scaled to unit diagonal,
# and the default is fine for float32 and float64. An *absolute* one has to be tuned to the size of your residuals:
# torchdeq's default is 1e-4.

# %% volatile
ridges = [
    *("anderson:ridge=1e-4", "anderson:ridge=1e-6", "anderson:ridge=1e-8", "anderson:ridge=1e-10"),
    *("torchdeq.anderson:memory=12,lam=1e-4", "torchdeq.anderson:memory=12,lam=1e-8"),
]
for entry in compare(["symmetric:rho=0.99"], ridges, repeats=1, memory=False, progress=False).problems[0].entries:
    print(f"{entry.solver:40} {entry.outcome:9} {entry.evaluations:5d} evaluations")

# %% [markdown]
# ## When to stop
#
# `Stop(rtol=..., atol=...)` ends a row when `||f(z) - z|| <= atol + rtol * ||f(z)||`. `rtol` is a relative
# tolerance and has no unit; 1e-4 is the default. Float32 resolves about 2e-7 (float64 4e-16): below that you get a
# warning, and rows may not converge. `atol` is for solutions near zero, where no relative tolerance can ever be
# met:


# %% volatile
def shrink(z):
    return 0.9 * z  # the solution is exactly zero


for stop in (deqlm.Stop(rtol=1e-4), deqlm.Stop(rtol=1e-4, atol=1e-4)):
    sol = deqlm.solve(shrink, torch.ones(1, 4), solver="fixed_point", stop=stop, on_failure="ignore")
    print(f"atol={stop.atol:g}: {deqlm.Status(int(sol.status)).name}, {int(sol.steps)} evaluations")

# %% [markdown]
# For sequences there is a trap. In a causal map the answer travels from the first position to the last, and positions
# it has not reached yet do not move. A norm over the whole sequence sees a small residual and is satisfied.
# `Stop(per="token")` demands the tolerance of every position. Here every position is 0.95 times the one before:


# %%
def decay(z):
    return torch.cat([torch.ones_like(z[:, :1]), 0.95 * z[:, :-1]], dim=1)


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(0.95 ** torch.arange(80), color="black", linewidth=3, alpha=0.25, label="the solution")
for per, color in (("row", "tab:orange"), ("token", "tab:blue")):
    stop = deqlm.Stop(rtol=0.1, per=per)
    with torch.no_grad():
        sol = deqlm.solve(decay, torch.zeros(1, 80, 1), solver="fixed_point", stop=stop)
    print(f'per="{per}": {deqlm.Status(int(sol.status)).name} after {int(sol.steps)} evaluations')
    axis.plot(sol.z[0, :, 0], color=color, label=f'per="{per}"')
axis.set(xlabel="position", ylabel="z", title="The same tolerance, two meanings")
axis.grid(alpha=0.25)
axis.legend(frameon=False)

# %% [markdown]
# With a tight tolerance the two agree in the end; with the loose ones that save time in training, they do not.
#
# ## Where to go from here
#
# - `deqlm solvers` lists every solver with one line each; `deqlm compare --help` lists problems and options.
# - `deqlm compare --gradients` does for gradient methods what this page does for solvers.
# - [Add a solver](../guides/extend.md): yours becomes a row of these tables.
# - [What happens in forward and backward](../concepts/forward_backward.md).
