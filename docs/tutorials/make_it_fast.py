# %% [markdown]
# # Make it fast
#
# Ten minutes, one CPU core, a C++ compiler. A solve asks a small layer again and again, and between two evaluations
# some work is done: a step, a test of every row. You see what that costs, what `test_every` saves, how
# `deqlm.compile` takes Python out of the loop, and how `deqlm.export` takes it out of the process.

# %%
import textwrap

import torch
from torch import nn

import deqlm

torch.manual_seed(0)
torch.set_num_threads(1)

layer = nn.Sequential(nn.Linear(48, 48), nn.Tanh()).eval()
x = torch.randn(24, 48)

# %% [markdown]
# ## Look first
#
# A compiled solve takes Python out of the loop. That helps where the layer is small and is asked many times: a call
# still has a fixed cost, which is larger than twenty evaluations of a small layer (the table below). For a layer of
# two milliseconds there is nothing to gain. `Solution` tells how often the layer was asked:

# %%
deq = deqlm.DEQ(layer, stop=deqlm.Stop(rtol=1e-5))
with torch.no_grad():
    y, sol = deq(x, with_stats=True)
print(sol.cost)

# %% [markdown]
# ## Test less often
#
# `Stop(test_every="auto")` predicts for each row when it will pass and leaves out the tests before. A row may end a
# few evaluations late, so it pays for plain iteration on maps that need many evaluations, and nothing else changes.

# %%
with torch.no_grad():
    _, rare = deq(x, with_stats=True, stop=deqlm.Stop(rtol=1e-5, test_every="auto"), solver="fixed_point")
print(rare.converged.all().item(), "after at most", rare.steps.max().item(), "evaluations")

# %% [markdown]
# ## Compile
#
# `deqlm.compile` returns a `DEQ` that shares layer and parameters. Its first call compiles one program of the whole
# solve: it evaluates the layer, takes the step, tests each row, and ends, without coming back to Python. That takes
# from some seconds to a minute, once; the machine code stays in torch's cache on disk, and the next process finds it
# there.

# %%
fast = deqlm.compile(deq)
with torch.no_grad():
    z, made = fast(x, with_stats=True)
print("same steps:", torch.equal(sol.steps, made.steps), " same statuses:", torch.equal(sol.status, made.status))
print("largest difference of the values below 1e-5:", bool((y - z).abs().max() < 1e-5))

# %% [markdown]
# `fast.compiler.report` says what was compiled, how long it took, and whether it was found in the cache:

# %% free
for part in fast.compiler.report:
    print(part)

# %% [markdown]
# Tolerances, budgets and even the solver are no part of the program, so changing them compiles nothing. Another batch
# size compiles once more, for all sizes.

# %%
with torch.no_grad():
    for stop in (deqlm.Stop(rtol=1e-3), deqlm.Stop(max_iter=4, rtol=0)):
        fast(x, stop=stop)
    fast(x, solver="broyden")
print(len(fast.compiler.report), "compilation")

# %% [markdown]
# ## Gradients
#
# With grad enabled the adjoint is a program too. torch's own `while_loop` gives silently wrong gradients to autograd,
# so autograd never sees the loop: the backward solve is a loop of its own, around the layer's backward pass.
# Gradients are those of the eager solve up to rounding.

# %%
fast(x).square().sum().backward()
compiled = layer[0].weight.grad.clone()
layer.zero_grad()
deq(x).square().sum().backward()
eager = layer[0].weight.grad
print("relative difference below 1e-5:", bool((compiled - eager).norm() < 1e-5 * eager.norm()))

# %% [markdown]
# ## What is refused
#
# A program must be the same at every evaluation. What cannot be is refused with the reason, at the first call:

# %%
try:
    deqlm.compile(deqlm.DEQ(nn.Sequential(layer, nn.Dropout(0.1))))(x)
except deqlm.NotCompiledError as error:
    print(textwrap.fill(str(error), 100))

# %% [markdown]
# With `on_refuse="eager"` the solve runs as it would without, and a warning tells the reason once.
#
# ## What it gives
#
# Microseconds of process time on one core, from `docs/records/compiled_solves.json` (its command makes them again).
# *Evaluation* and *solve* are the slope and the fixed part of a line through budgets of 1 to 64 evaluations; *whole
# solve* and *adjoint* say how many times faster the compiled ones are, at the same tolerance, by the best of plain
# iteration, Anderson and Broyden.

# %%
import json
from pathlib import Path

record = json.loads((Path(__file__).parents[1] / "records/compiled_solves.json").read_text())
for line in record["table"]:
    print(line)

# %%
import matplotlib.pyplot as plt

maps = record["maps"]
figure, axis = plt.subplots(figsize=(6.4, 2.6))
for place, kind in enumerate(("eager", "compiled")):
    heights = [told[f"{kind} line"]["evaluation"] / told["f"] for told in maps]
    axis.bar([i + 0.36 * place for i in range(len(maps))], heights, width=0.34, label=kind)
axis.set_xticks([i + 0.18 for i in range(len(maps))], [told["map"].removeprefix("tanh ") for told in maps])
axis.set_ylabel("an evaluation, in units of f")
axis.axhline(1.0, color="black", linewidth=0.8)
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## Without Python
#
# `deqlm.export` writes the solve to a file that starts, tests its rows, stops and reports by itself:
#
#     deqlm.export(deq, x, "model.pt2")
#     solution = deqlm.load_exported("model.pt2")(x)
#
# The same file runs in a C++ program of 30 lines, `examples/export/solve.cpp`, bit for bit. It takes any batch size,
# and needs the version of torch that wrote it.
