# %% [markdown]
# # Wrap your own layer
#
# Ten minutes, one CPU core. You take a layer that already works, make it *implicit* with one line, look at what the
# solver did, train it, and see what a failure looks like. You need to know PyTorch, and nothing of deep-equilibrium
# models; the pictures need matplotlib (`pip install '.[compare]'`).
#
# A plain layer computes `y = layer(x)`. Its implicit version looks for a state `z` that the layer leaves alone,
#
#     z = layer(z + x)
#
# and returns that state. It is as if the layer had been applied again and again until nothing changes, with the same
# weights every time.
#
# The tensors here are small. More threads gain nothing with them, and on a machine with other work to do they wait for
# each other: the same half second of work then took half a minute with two (`docs/records/threads.json`). So we ask for
# one. Leave that line out for a large model.

# %%
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn

import deqlm

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## A layer that is too small for its task
#
# The task: a sequence holds markers, +1 or -1, with zeros between them. At every position, say which marker came last.
# The layer: a causal convolution that sees three positions. Markers are about eight positions apart, so three are not
# enough.


# %%
class CausalConv(nn.Module):
    """(batch, length, width) -> the same shape; position t sees t-2, t-1 and t."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel_size=3)

    def forward(self, z):
        return torch.tanh(self.conv(nn.functional.pad(z.mT, (2, 0))).mT)


def last_marker_task(batch, length, generator):
    """Return markers (batch, length, 1) and, per position, whether the last marker was +1."""
    here = torch.rand(batch, length, generator=generator) < 0.12
    here[:, 0] = True
    sign = torch.randint(0, 2, (batch, length), generator=generator) * 2.0 - 1.0
    position = torch.where(here, torch.arange(length), 0).cummax(dim=1).values
    return (here * sign)[..., None], (sign.gather(1, position) > 0).float()


markers, target = last_marker_task(1, 16, torch.Generator().manual_seed(5))
print("markers", " ".join(f"{int(m):+d}" if m else " ." for m in markers[0, :, 0]))
print("target ", " ".join(" +" if t else " -" for t in target[0]))

# %% [markdown]
# ## One line
#
# `deqlm.DEQ(layer)` is an ordinary `nn.Module` around your layer. It adds no parameters, and the layer is not changed.
# With `with_stats=True` a call also returns a `Solution`: one entry per sequence of the batch, because every sequence
# is solved on its own.

# %% volatile
WIDTH = 16
layer = CausalConv(WIDTH)
deq = deqlm.DEQ(layer, stop=deqlm.Stop(rtol=1e-5, trace=True))

x = torch.randn(4, 16, WIDTH)
y, sol = deq(x, with_stats=True)

print("output      ", tuple(y.shape), "like the input", tuple(x.shape))
print("parameters  ", sum(p.numel() for p in deq.parameters()), "=", sum(p.numel() for p in layer.parameters()))
print("converged   ", sol.converged.tolist())
print("evaluations ", sol.steps.tolist())
print("residual    ", [f"{r:.0e}" for r in sol.relative.tolist()])

# %% [markdown]
# *Converged* means one thing, everywhere in this library: the returned state satisfies
#
#     ||layer(z + x) - z||  <=  rtol * ||layer(z + x)||
#
# (plus `atol`, which is 0 unless you set it). You can check it by hand:

# %%
with torch.no_grad():
    image = layer(y + x)
by_hand = (image - y).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)
print("within 1e-5, computed by hand:", bool((by_hand <= 1.01e-5).all()))

# %% [markdown]
# `trace=True` kept the residual of every evaluation. Here it is for our convolution and for a stock transformer layer,
# with the default solver (Anderson acceleration) and with plain iteration, `z <- layer(z + x)`. How much the better
# solver saves depends on the layer: next to nothing on the left, almost half of the evaluations on the right.


# %%
def draw_residuals(axis, layer, x):
    for solver, color in (("fixed_point", "tab:gray"), ("anderson", "tab:blue")):
        deq = deqlm.DEQ(layer, solver=solver, stop=deqlm.Stop(rtol=1e-5, trace=True))
        _, sol = deq(x, with_stats=True)
        for row, steps in enumerate(sol.steps.tolist()):
            curve = sol.trace[:steps, row] / sol.trace[0, row]
            axis.semilogy(range(1, steps + 1), curve, color=color, alpha=0.8, label=None if row else solver)
    axis.set(xlabel="evaluations of the layer")
    axis.grid(alpha=0.25)


attention = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
draw_residuals(left, layer, x)
draw_residuals(right, attention, torch.randn(4, 20, 32))
left.set(title="Causal convolution, four sequences", ylabel="residual / first residual")
right.set(title="Transformer layer, four sequences")
right.legend(frameon=False)

# %% [markdown]
# *Every sequence on its own* is something that your layer has to keep: it must not mix rows, the entries of the
# first dimension. Mind three things. `nn.TransformerEncoderLayer` and `nn.GRU` need `batch_first=True`, as above;
# without it the first dimension is time, and attention runs across your sequences with no error at all.
# `nn.BatchNorm1d` in `train()` takes its statistics over the batch. And in a graph the first dimension is nodes,
# which belong together. In these two cases say `DEQ(layer, batch_dims=0)`: one problem with one status. A layer
# that does mix rows is still solved until all rows are within tolerance together, with the right gradient, but
# answers that do not depend on the rest of the batch are promised only where it keeps rows apart.

# %%
for batch_first in (True, False):
    mixing = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=batch_first)
    deq = deqlm.DEQ(mixing, stop=deqlm.Stop(rtol=1e-5))
    rows = torch.randn(4, 20, 32)
    with torch.no_grad():
        before, after = deq(rows), deq(torch.cat([rows[:1], rows[1:] + 1]))
    print(f"batch_first={batch_first}: row 0 depends on the others: {not torch.equal(before[0], after[0])}")

# %% [markdown]
# ## Train it
#
# Nothing about training is special: the `DEQ` goes where the layer was, the loss calls `backward()`, and gradients
# arrive at the layer's weights and at whatever came before. We train the plain layer and the implicit one with the same
# data, optimizer and number of steps.
#
# For this task we choose plain iteration as the solver. Remembering a bit means that a position has more than one state
# that it could keep, so this map has *several* fixed points once it is trained. Plain iteration from zero carries the
# markers along the sequence and reaches the one that we mean; an accelerated solver may land on another one. On a map
# with one fixed point the choice changes the cost and not the answer.


# %%
class Tagger(nn.Module):
    """Embed the markers, apply the core, read one bit off per position."""

    def __init__(self, core):
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.core = core
        self.read = nn.Linear(WIDTH, 1)

    def forward(self, markers):
        if not isinstance(self.core, deqlm.DEQ):
            return self.read(self.core(self.embed(markers)))[..., 0], 0
        z, sol = self.core(self.embed(markers), with_stats=True)
        return self.read(z)[..., 0], int(sol.failed.sum())


def accuracy(model, length):
    markers, target = last_marker_task(100, length, torch.Generator().manual_seed(99))
    with torch.no_grad():
        logits, _ = model(markers)
    return ((logits > 0) == (target > 0)).float().mean().item()


def train(core, steps=120):
    model = Tagger(core)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    curve, unsolved = [], 0
    for step in range(1, steps + 1):
        markers, target = last_marker_task(16, 16, generator)
        logits, failed = model(markers)
        unsolved += failed
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            curve.append((step, accuracy(model, 16)))
        if step % 40 == 0:
            print(f"  step {step:3d}  loss {loss.item():.2f}  accuracy {curve[-1][1]:.2f}  unsolved so far {unsolved}")
    return model, curve


# %% volatile
torch.manual_seed(0)
print("plain layer")
plain, plain_curve = train(CausalConv(WIDTH))

torch.manual_seed(0)
print("the same layer, implicit")
stop = deqlm.Stop(max_iter=60, rtol=1e-3)
implicit, implicit_curve = train(deqlm.DEQ(CausalConv(WIDTH), solver="fixed_point", stop=stop, on_failure="ignore"))

# %% [markdown]
# Three positions are enough for the implicit layer, because a state may lean on its neighbor's state, which leans on
# *its* neighbor's. It was trained on 16 positions, and on sequences sixteen times as long it loses little. (Not a lucky
# seed: with seeds 0 to 4 the accuracy was 1.00 on length 16 and between 0.93 and 1.00 on the longer ones.)

# %%
lengths = [16, 64, 256]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for curve, model, color, name in (
    (plain_curve, plain, "tab:gray", "plain layer"),
    (implicit_curve, implicit, "tab:blue", "implicit layer"),
):
    left.plot(*zip(*curve, strict=True), color=color, label=name)
    right.plot(lengths, [accuracy(model, length) for length in lengths], "o-", color=color, label=name)
left.set(xlabel="training step", ylabel="accuracy", title="While training on length 16", ylim=(0.45, 1.02))
right.set(xlabel="length of the test sequence", title="On longer sequences", xscale="log", ylim=(0.45, 1.02))
right.set_xticks(lengths, lengths)
right.minorticks_off()
for axis in (left, right):
    axis.grid(alpha=0.25)
right.legend(frameon=False)

# %% [markdown]
# What the solver does is visible position by position. `Stop(per="token")` demands the tolerance of every position
# instead of the whole sequence, and then `sol.token_steps` says from which evaluation each one stayed within it.
# Where markers (dotted) are close, an answer is there after a few evaluations. In a long gap it has to be carried from
# position to position, and the line climbs until the next marker.

# %%
watched = deqlm.DEQ(implicit.core.layer, solver="fixed_point", stop=deqlm.Stop(max_iter=200, rtol=1e-2, per="token"))
markers, _ = last_marker_task(1, 96, torch.Generator().manual_seed(3))
with torch.no_grad():
    _, watched_sol = watched(implicit.embed(markers), with_stats=True)

figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
axis.plot(watched_sol.token_steps[0], color="tab:blue", marker=".")
for place in markers[0, :, 0].nonzero()[:, 0].tolist():
    axis.axvline(place, color="tab:gray", linestyle=":", linewidth=1)
axis.set(xlabel="position", ylabel="evaluations until it settled", title="The answer travels along the sequence")
axis.grid(alpha=0.25)

# %% [markdown]
# ## Masks and other arguments
#
# Everything after the first argument of a call goes to the layer, at every evaluation, by position or by keyword. So a
# stock `nn.TransformerEncoderLayer` keeps its masks:

# %%
deq = deqlm.DEQ(attention)

tokens = torch.randn(3, 10, 32)
causal = nn.Transformer.generate_square_subsequent_mask(10)
padding = torch.zeros(3, 10).masked_fill(torch.arange(10) >= torch.tensor([[10], [7], [4]]), -torch.inf)
y, sol = deq(tokens, src_mask=causal, src_key_padding_mask=padding, is_causal=True, with_stats=True)

changed = tokens.clone()
changed[:, 6:] += 1.0
again = deq(changed, src_mask=causal, src_key_padding_mask=padding, is_causal=True)
print("all converged:", bool(sol.converged.all()))
print("positions 0..5 ignore a change at positions 6..9:", torch.allclose(y[:, :6], again[:, :6], atol=1e-2))
print("positions 6..9 see it:", not torch.allclose(y[:, 6:], again[:, 6:], atol=1e-2))

# %% [markdown]
# The tolerances of that check are loose on purpose: two solves agree as well as they were solved, here to about 1e-4
# of the size of the state. Ask for more with `stop=deqlm.Stop(rtol=1e-6)`.
#
# How the input enters is your choice too. `inject="add"` is `layer(z + x)`; `inject="argument"` calls `layer(z, x)`;
# a module, as in `inject=nn.Linear(32, 32)`, transforms the input once per call and adds it.

# %% [markdown]
# ## Not a single tensor? Use a dict
#
# The state may be a tree of tensors. Here two quantities per row are coupled; `"argument"` hands the layer the state
# and the input, and `start` makes the first state from the input.


# %%
class Coupled(nn.Module):
    """A fast and a slow quantity, each of which depends on the other."""

    def __init__(self):
        super().__init__()
        self.fast, self.slow = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, state, x):
        slow = state["slow"].repeat(1, 4)
        return {
            "fast": torch.tanh(self.fast(state["fast"]) + slow + x),
            "slow": 0.5 * torch.tanh(self.slow(state["fast"])),
        }


def zeros(x):
    return {"fast": torch.zeros(len(x), 8), "slow": torch.zeros(len(x), 2)}


coupled = deqlm.DEQ(Coupled(), inject="argument", start=zeros)
state, sol = coupled(torch.randn(5, 8), with_stats=True)
print({name: tuple(value.shape) for name, value in state.items()}, "converged:", bool(sol.converged.all()))

# %% [markdown]
# A layer that returns more than its new state, such as a recurrent network over the sequence, is wrapped in a module
# whose forward returns the state alone. The layer may also be a function, but a function has no parameters to offer:
# one that uses a module gets a warning.


# %%
class OverSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, z):
        return self.gru(z)[0]


over_sequence = deqlm.DEQ(OverSequence())
y, sol = over_sequence(torch.randn(2, 12, 8), with_stats=True)
y.square().mean().backward()
print(
    "converged:",
    bool(sol.converged.all()),
    "| the GRU has gradients:",
    over_sequence.layer.gru.weight_hh_l0.grad is not None,
)

# %% [markdown]
# ## When it fails
#
# Not every layer has a fixed point that every solver finds. This one doubles and rotates its input, so plain iteration
# runs away. Nothing is raised, the other rows are not touched, and you are told:

# %% volatile
doubling = nn.Linear(4, 4)
with torch.no_grad():
    doubling.weight.copy_(2 * torch.linalg.qr(torch.randn(4, 4)).Q)
x = torch.randn(3, 4)

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _, sol = deqlm.DEQ(doubling, solver="fixed_point")(x, with_stats=True)
print(caught[0].category.__name__, *str(caught[0].message).split(". "), sep="\n  ")

# %% [markdown]
# The message names the reason and what to try; `print(sol)` shows which rows. `sol.status` holds the reason per row, as
# numbers that `deqlm.Status` names; a row that ended `DIVERGED` or `NONFINITE` adds exactly zero to every gradient, so
# one bad row cannot spoil a step. Now we try what was suggested:

# %%
_, sol = deqlm.DEQ(doubling, solver="anderson")(x, with_stats=True)
print("anderson:", [deqlm.Status(code).name for code in sol.status.tolist()])

# %% [markdown]
# | what you see | what to do |
# |---|---|
# | `MAX_ITER`, residual still falling | raise `max_iter`, or loosen `rtol` |
# | `DIVERGED` | another solver (`"anderson"`, `"broyden"`), damping, or smaller weights |
# | `STALLED` | loosen `rtol`; set `atol` if the solution is zero |
# | `NONFINITE` | look for NaN in that row's input |
# | a row that must not fail | `DEQ(layer, on_failure="raise")` |
# | you count failures yourself | `DEQ(layer, on_failure="ignore")` and read `sol.status` |

# %%
rows = torch.randn(3, 4)
rows[1] = torch.nan
shrinking = nn.Linear(4, 4)
y, sol = deqlm.DEQ(shrinking, on_failure="ignore")(rows, with_stats=True)
y[sol.converged].sum().backward()
print([deqlm.Status(code).name for code in sol.status.tolist()])
print("gradient of the shared weight is finite:", bool(shrinking.weight.grad.isfinite().all()))

# %% [markdown]
# ## Failures in a training loop
#
# In a loop of thousands of steps, warnings are the wrong instrument: they repeat, or Python shows them once, and they
# never say how often. One unsolved row is no reason to stop either. Say `on_failure="ignore"` and log
# `sol.failed.sum()`. There are two solves per step, and each has its own `Stop`:
#
# - The forward one gets `DEQ(stop=...)`. Its outcome is `sol`, its warning begins with "solve:".
# - The backward one solves for the gradient, and `DEQ(stop=...)` does not reach it. Its limits are part of the gradient
#   method, `gradient=Implicit(solve=Solve(solver, Stop(...)))`, with up to 200 products and `rtol=1e-6` by default. Its
#   outcome is `sol.adjoint`, once `backward()` has run; its warning begins with "backward solve:".

# %% volatile
backward = deqlm.Solve(deqlm.Anderson(), deqlm.Stop(max_iter=20, rtol=1e-4))
deq = deqlm.DEQ(
    CausalConv(WIDTH),
    stop=deqlm.Stop(max_iter=20, rtol=1e-4),
    gradient=deqlm.Implicit(solve=backward),
    on_failure="ignore",
)
optimizer = torch.optim.Adam(deq.parameters(), lr=3e-2)
failed = torch.zeros(2, dtype=torch.int64)
for step in range(1, 41):
    x = torch.randn(16, 16, WIDTH)
    y, sol = deq(x, with_stats=True)
    loss = nn.functional.mse_loss(y, torch.tanh(x.cumsum(dim=1)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    failed += torch.stack([sol.failed.sum(), (~sol.adjoint.converged).sum()])
    if step % 10 == 0:
        print(f"step {step}  not converged so far, of {16 * step}: forward {failed[0]}, backward {failed[1]}")

# %% [markdown]
# The counts are tensors; printing them is what waits for the device. Counts that rise, as here, say that training makes
# the layer harder to solve: allow more evaluations, loosen a tolerance, or use weight decay.
#
# ## Evaluation, and no gradient
#
# As in all of PyTorch, `train()` and `eval()` steer dropout and normalization, and grad mode decides about gradients. A
# `DEQ` in `eval()` mode can be differentiated; under `torch.no_grad()` it runs the solver and nothing else. Dropout is
# drawn once per call, so the map does not change while it is being solved.

# %%
noisy = deqlm.DEQ(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True), on_failure="raise")
noisy.train()
print("train():   converged with dropout:", bool(noisy(tokens, with_stats=True)[1].converged.all()))
noisy.eval()
print("eval():    carries a gradient:", noisy(tokens).requires_grad)
with torch.no_grad():
    print("no_grad(): carries a gradient:", noisy(tokens).requires_grad)

# %% [markdown]
# ## Which gradient?
#
# The default, `implicit`, solves a second linear system in `backward()` and gives the exact gradient of the fixed
# point, whatever the solver did to find it; its outcome is in `sol.adjoint`. The others are cheaper or simpler. Here
# every method differentiates the transformer layer from above (in float64), and the error is measured against the
# implicit gradient with both solves converged to 1e-12.

# %% volatile
exact_layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).double()
inputs, direction = torch.randn(2, 6, 10, 32, dtype=torch.float64)


def gradient(method, solver="anderson", rtol=1e-6):
    stop = deqlm.Stop(max_iter=300, rtol=rtol)
    deq = deqlm.DEQ(exact_layer, solver=solver, gradient=method, stop=stop, on_failure="raise")
    exact_layer.zero_grad()
    (deq(inputs) * direction).sum().backward()
    return torch.cat([p.grad.flatten() for p in exact_layer.parameters()])


tight = deqlm.Solve(deqlm.Anderson(), deqlm.Stop(max_iter=300, rtol=1e-12))
truth = gradient(deqlm.Implicit(solve=tight), rtol=1e-12)
print(f"{'method':24} {'error':>8} {'cosine':>7}")
for name, method, solver in (
    ("implicit", deqlm.Implicit(), "anderson"),
    ("unrolled", deqlm.Unrolled(), "fixed_point"),
    ("phantom, 16 steps", deqlm.Phantom(steps=16), "anderson"),
    ("phantom, 8 steps", deqlm.Phantom(steps=8), "anderson"),
    ("phantom, 4 steps", deqlm.Phantom(steps=4), "anderson"),
    ("one_step", deqlm.OneStep(), "anderson"),
):
    g = gradient(method, solver)
    error = (g - truth).norm() / truth.norm()
    print(f"{name:24} {error:8.0e} {torch.cosine_similarity(g, truth, dim=0):7.3f}")

# %% [markdown]
# How large the errors are depends on the layer: the closer the spectral radius of its Jacobian comes to 1,
# the more the short methods leave out.
#
# | method | backward costs | memory | choose it when |
# |---|---|---|---|
# | `implicit` | a linear solve, one Jacobian product per step | one evaluation | you want the gradient (default) |
# | `phantom` | `steps` evaluations and their backward | `steps` evaluations | a bias is acceptable |
# | `one_step` | one evaluation and its backward | one evaluation | the layer contracts strongly |
# | `unrolled` | as many as the forward made | every step | short budgets, warm-up phases, or as a check |
#
# ## Where to go from here
#
# - [Choose and compare solvers](choose_a_solver.md): which solver is fastest on *your* layer.
# - [What happens in forward and backward](../concepts/forward_backward.md): the same story with the mathematics.
# - [Add a solver or a gradient in ten minutes](../guides/extend.md).
# - `examples/wrap_your_layer/`: a wrapped transformer layer trained on text, compared with the plain one.
