# %% [markdown]
# # Fixed points by pictures
#
# Ten minutes, one CPU core, `pip install '.[compare]'` for the plots. What an implicit layer is, why its solver
# matters, how it fails, and where its gradient comes from, each in one picture.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import nn

import deqlm

torch.set_num_threads(1)
torch.manual_seed(0)

# %% [markdown]
# ## A state that the map leaves alone
#
# Press the cosine key of a calculator again and again: the number settles at .739, the solution of z = cos(z). Where
# the curve crosses the diagonal, the map leaves the state alone. That is a *fixed point*, and walking to it by
# applying the map is *plain iteration*.

# %%
points = [torch.tensor(0.1)]
for _ in range(12):
    points.append(torch.cos(points[-1]))

line = torch.linspace(0, 1.2, 50)
figure, axis = plt.subplots(figsize=(4, 3.4), layout="constrained")
axis.plot(line, line, color="0.7")
axis.plot(line, torch.cos(line))
for before, after in pairwise(points):
    axis.plot([before, before, after], [before, after, after], color="C3", linewidth=0.8)
axis.set(xlabel="z", ylabel="cos z", title="z = cos(z), by plain iteration")

# %% [markdown]
# The library does the same for any map, for many rows at once, and stops each row when its *residual* f(z) - z is
# small against f(z):

# %%
sol = deqlm.solve(torch.cos, torch.zeros(3, 1), solver="fixed_point")
print(sol.z.flatten(), sol.steps, sol.converged)

# %% [markdown]
# ## How fast
#
# Plain iteration shrinks the error by the slope of the map at the fixed point, in several dimensions by the *spectral
# radius* of its Jacobian. At .5 a digit takes three evaluations, at .99 two hundred and thirty. Other solvers look
# back at the points they have seen and do better. Two unknowns that turn around the answer show how:

# %% volatile
turn = 0.95 * torch.tensor([[0.8, -0.6], [0.6, 0.8]])


def spiral(z):
    return z @ turn.T + 1


paths, stop = {}, deqlm.Stop(max_iter=300)
for solver in ("fixed_point", "anderson"):
    seen = [torch.zeros(1, 2)]
    watch = {"on_evaluation": lambda k, z, fz, seen=seen: seen.append(fz)}
    deqlm.solve(spiral, seen[0], solver=solver, stop=stop, **watch)
    paths[solver] = torch.cat(seen)
print({solver: len(path) - 1 for solver, path in paths.items()})

figure, axis = plt.subplots(figsize=(4.4, 3.4), layout="constrained")
for solver, path in paths.items():
    axis.plot(*path.T, marker=".", linewidth=0.8, label=f"{solver}, {len(path) - 1} evaluations")
axis.set(title="Two ways to one fixed point", xlabel="first unknown", ylabel="second")
axis.legend()

# %% [markdown]
# ## How it fails
#
# Where the slope is beyond one, plain iteration leaves. With a negative slope it jumps from side to side, here
# between two values for ever. The fixed point is still there, and Anderson finds it; a map such as z + 1 has none,
# and then no solver can. Every row says how it ended.


# %% volatile
def steep(z):
    return torch.tanh(1 - 3 * z)


for solver in ("fixed_point", "anderson"):
    sol = deqlm.solve(steep, torch.zeros(1, 1), solver=solver, on_failure="ignore")
    print(solver, deqlm.Status(int(sol.status)).name, f"residual {sol.residual.item():.0e}")
sol = deqlm.solve(lambda z: z + 1, torch.zeros(1, 1), on_failure="ignore")
print("z + 1:", deqlm.Status(int(sol.status)).name)

# %% [markdown]
# ## A layer whose depth is not fixed
#
# Wrap a layer, and its output is the fixed point of z = layer(z + x). Rows that are easy end early and hard ones go
# on: the depth is that of the input. Here the rows are inputs of growing size, which a tanh saturates: large ones are
# easy.

# %%
layer = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
with torch.no_grad():
    nn.init.orthogonal_(layer[0].weight).mul_(0.95)
deq = deqlm.DEQ(layer, solver="fixed_point", stop=deqlm.Stop(max_iter=300))
size = torch.logspace(-1, 1.3, 24)
y, sol = deq(size[:, None] * torch.randn(24, 16).sign(), with_stats=True)

figure, axis = plt.subplots(figsize=(4.4, 3), layout="constrained")
axis.semilogx(size, sol.steps, marker="o")
axis.set(xlabel="size of the input", ylabel="evaluations", title="Every row has its own depth")

# %% [markdown]
# ## The gradient needs no steps
#
# How does the fixed point move when the map changes? Not by going back through the steps: whatever they were, the
# answer solves z = f(z, a), and differentiating that equation gives dz/da = (1 - df/dz)^-1 df/da. That is the
# *implicit gradient*. It is the slope of the curve of fixed points, here of z = tanh(a z + .1).
# (Beyond a = 1.3 there are three fixed points. Plain iteration from zero stays on the upper branch; a solver that jumps
# may land on another one, which is as much a solution.)

# %%
a = torch.linspace(0.0, 2.0, 61, dtype=torch.float64)[:, None].requires_grad_()
how = {"solver": "fixed_point", "stop": deqlm.Stop(rtol=1e-10, max_iter=300)}
z = deqlm.solve(lambda z, a: torch.tanh(a * z + 0.1), torch.zeros_like(a), args=(a,), **how).z
(slope,) = torch.autograd.grad(z.sum(), a)
with torch.no_grad():
    differences = (z[2:] - z[:-2]) / (a[2:] - a[:-2])
apart = (slope[1:-1] - differences).abs().max()
print(f"largest difference from (coarse) finite differences: {apart:.0e}")

figure, axis = plt.subplots(figsize=(4.4, 3), layout="constrained")
axis.plot(a.detach(), z.detach())
for i in range(6, 61, 8):
    reach = torch.tensor([-0.2, 0.2], dtype=torch.float64)
    axis.plot(a[i].detach() + reach, z[i].detach() + slope[i] * reach, color="C3")
axis.set(xlabel="a", ylabel="z = tanh(a z + .1)", title="Implicit gradients are tangents")

# %% [markdown]
# ## Where to go on
#
# - [Wrap your own layer](wrap_your_layer.md): the same with a transformer, masks, training.
# - [Which solver](../guides/which_solver.md), [choose and compare solvers](choose_a_solver.md).
# - [It does not converge](../guides/not_converging.md): what `deqlm.diagnose` says, and what to do about it.
