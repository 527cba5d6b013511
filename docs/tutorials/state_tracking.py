# %% [markdown]
# # Follow a state
#
# Ten minutes, one CPU core. You train a single implicit layer to keep track of something, see that it goes on far
# beyond the lengths that it was trained on, watch the answer travel along the tokens, and see what the three ways to
# solve it cost. The models and the data are those of `examples/state_tracking`; run the script of this page,
# `docs/tutorials/state_tracking.py`, from the root of the repository.
#
# The task is a *word problem*. Elements of a group come one by one, and at every position the product of all elements
# so far is asked for. For Z2 that is the parity of the ones, for S3 the order of three cups after some swaps. One
# change anywhere changes every answer behind it, so nothing but a state that is carried along will do.

# %%
import matplotlib.pyplot as plt
import torch

from deqlm.sequence.modes import Chunked, Sequential, Simultaneous
from examples.state_tracking.data import word_problem
from examples.state_tracking.evaluate import by_budget, frontier, predict, summary
from examples.state_tracking.experiment import trained
from examples.state_tracking.recipe import Test
from examples.state_tracking.recipes import explicit, general, implicit

torch.set_num_threads(1)  # the tensors here are small
cups = word_problem("S3")
inputs, targets = cups.draw(batch=1, length=8, seed=1)
print("input: ", " ".join(cups.vocabulary.decode(inputs[0])))
print("answer:", " ".join(cups.vocabulary.decode(targets[0])))

# %% [markdown]
# ## Train one layer
#
# The model is one Mamba2 block whose output is fed back until it no longer changes: its state is a fixed point. It is
# trained on lengths 2, 4 and 8, where as many steps are unrolled as there are tokens, and then on 16, where the solver
# stops by itself. Beside it, the same block is used as it is, once and twice, with more steps. Here the group is Z2,
# which is quick.


# %%
def recipe(label, model, steps):
    return general("Z2", model=model, label=label, steps=steps, length=16, times=(1, 2, 4, 8))


recipes = [
    recipe("implicit, 1 layer", implicit("Z2"), 240),
    recipe("explicit, 1 layer", explicit("Z2", 1), 1000),
    recipe("explicit, 2 layers", explicit("Z2", 2), 1000),
]
models = {r.label: trained(r, None, progress=False)[0] for r in recipes}

# %% [markdown]
# Accuracy of the last token; guessing gets a half.

# %% volatile
problem = word_problem("Z2")
curves = {}
for r in recipes:
    tests = [test.replace(rows=128, batch=128) for test in r.tests]
    curves[r.label] = [summary(predict(models[r.label], problem, test), test)["last"] for test in tests]
    print(f"{r.label:19}", *(f"L={t.length}: {last:.2f}" for t, last in zip(tests, curves[r.label], strict=True)))

# %%
lengths = [test.length for test in recipes[0].tests]
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for label, curve in curves.items():
    axis.plot(lengths, curve, "o-", markersize=4, label=label)
axis.axvline(16, color="tab:gray", linestyle=":")
axis.set(xscale="log", xlabel="tokens (dotted: longest trained)", ylabel="accuracy of the last token", ylim=(0.3, 1.03))
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.set_title("One implicit layer goes on, explicit ones do not")
axis.legend(frameon=False)

# %% [markdown]
# ## How the answer travels
#
# Solve one sequence of 48 tokens, all of them at once, and note after each iteration how far each token still moves. A
# token is settled when the one before it is, so the settled prefix (the white line) grows by a token every one or two
# iterations. A simultaneous solve therefore needs a number of iterations that grows with the length.

# %%
solved = models["implicit, 1 layer"]
picture = frontier(solved, problem, length=48, iterations=96)
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
image = axis.imshow(picture["residual"], origin="lower", aspect="auto", cmap="magma", vmin=-4, vmax=0.5)
axis.plot(picture["settled"], range(96), color="white", linewidth=1.2)
axis.set(xlabel="token", ylabel="iteration", xlim=(-0.5, 47.5), title="The settled prefix grows token by token")
figure.colorbar(image, label="log10 of the relative residual")

# %% [markdown]
# The other side of it: cut the iterations off, and the answers at the end are not there yet.

# %% volatile
for row in by_budget(solved, problem, length=32, budgets=(1, 4, 16, 32, 64, 96), rows=128):
    print(f"{row['budget']:3d} iterations: all tokens {row['mean']:.2f}, the last one {row['last']:.2f}")

# %% [markdown]
# ## What the modes cost
#
# The fixed point is the same whether all tokens are solved at once, in chunks with what came before held fixed, or one
# by one, as in generation. The work is not: at once it grows with the square of the length.

# %% volatile
ways = {
    "all at once": Simultaneous(),
    "chunks of 16": Chunked(16),
    "chunks of 8": Chunked(8),
    "one by one": Sequential(),
}
for name, mode in ways.items():
    test = Test(length=192, rows=8, batch=8, mode=mode, max_iter=600)
    found = summary(predict(solved, problem, test), test)
    cost, share = found["evaluations_per_token"], found["converged"]
    print(
        f"{name:12} accuracy {found['mean']:.2f}, {cost:5.1f} evaluations per token, {share:4.0%} of the rows converged"
    )

# %% [markdown]
# ## Where to go from here
#
# - `python -m examples.state_tracking demo` does this for S3 in a minute, with baselines whose learning rates were
#   searched; `cpu`, `full` and `paper` are larger.
# - [Results of the examples](../results.md): seeds, steps and times.
# - [Wrap your own layer](wrap_your_layer.md): what a fixed point is, and how gradients get through one.
