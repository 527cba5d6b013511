# %% [markdown]
# # A layer that solves Sudoku by converging
#
# Five minutes, one CPU core. You wrap a stock transformer layer, train it on puzzles with at most a dozen evaluations,
# and watch it solve puzzles that it has not seen by doing the same thing again and again until nothing moves. The
# puzzles are those of `examples/puzzles`; run the script of this page, `docs/tutorials/puzzles.py`, from the root of
# the repository.
#
# ## Puzzles
#
# 4x4 Sudoku: every digit once per row, column and box. All puzzles here are *minimal*: take one clue away, and there is
# a second solution. Up to symmetry (names of digits, rows of a band, bands, columns of a stack, stacks, transposition)
# there are 36 of them. 25 are learnt from, 7 are kept for the test.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import deqlm
from examples.puzzles.data import Draw, board_named, load, only_solution, problem_named

torch.set_num_threads(1)  # the tensors here are small
torch.manual_seed(0)
board, problem = board_named("4x4"), problem_named("4x4")
puzzles = load(Draw(problem="4x4", train=25, valid=4, test=300), None)
test = puzzles["test"]
print(board.write(test.cells[0].tolist()))
print("one solution, found by search:", *only_solution(board, test.cells[0].tolist()))

# %% [markdown]
# ## The model
#
# A stock `nn.TransformerEncoderLayer` with a norm behind it, wrapped. What enters, u, says what is in a cell and where
# the cell is. The layer is evaluated on z + u, from a random z, and a linear head reads each cell of where that ends.


# %%
class Solver(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        layer = nn.Sequential(layer, nn.RMSNorm(width))
        self.deq = deqlm.DEQ(layer, solver="fixed_point", gradient="unrolled", on_failure="ignore")
        self.content = nn.Embedding(5, width)
        self.row, self.column, self.box = (nn.Embedding(4, width) for _ in range(3))
        self.head = nn.Linear(width, 4)
        self.places = torch.tensor(board.places).T

    def forward(self, cells, stop, solver="fixed_point", start=None):
        where = self.row(self.places[0]) + self.column(self.places[1]) + self.box(self.places[2])
        u = self.content(cells) + where
        self.deq.solve = deqlm.Solve(solver, stop)
        z, sol = self.deq(u, start=torch.randn_like(u) if start is None else start, with_stats=True)
        return self.head(z), z, sol


model = Solver()
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## Training
#
# Each step draws how often the layer is evaluated, 4 to 12 times, and backpropagates through that. The random start
# makes the answer independent of where one begins, the random number makes it a point where the iteration can stay.
# Both together are what makes it a fixed point.


# %%
def budget(evaluations):
    return deqlm.Stop(max_iter=evaluations, rtol=0)


STEPS = 450
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS, pct_start=0.1, cycle_momentum=False)
generator = torch.Generator().manual_seed(0)
train = puzzles["train"]
for _ in range(STEPS):
    which = torch.randint(len(train.cells), (64,), generator=generator)
    cells, answers = problem.shuffled(train.cells[which], train.answers[which], generator)
    logits, _, _ = model(cells, budget(int(torch.randint(4, 13, ()))))
    loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    rate.step()

# %% [markdown]
# ## More evaluations, better answers
#
# 300 puzzles that differ from all of training, whatever symmetry one tries. A puzzle counts only if all of its 16 cells
# are right. Used once, the layer solves nothing.

# %% volatile
model.eval()
counts, shares, residuals = (1, 2, 4, 8, 16, 32, 64, 128), [], []
with torch.no_grad():
    for count in counts:
        logits, _, sol = model(test.cells, budget(count))
        shares.append(float((logits.argmax(-1) == test.answers).all(1).double().mean()))
        residuals.append(float(sol.relative.median()))
        print(f"{count:3d} evaluations: {shares[-1]:.3f} solved, median relative residual {residuals[-1]:.0e}")

# %%
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
axis.plot(counts, shares, "o-", markersize=4)
axis.axvline(12, color="tab:gray", linestyle=":")
axis.set(xscale="log", xlabel="evaluations (dotted: most in training)", ylabel="puzzles solved", ylim=(-0.02, 1.04))
axis.set_xticks(counts, counts)
axis.minorticks_off()
axis.set_title("One layer, evaluated again and again")

# %% [markdown]
# ## The board on the way
#
# Clues are black, right cells green, wrong ones red.

# %%
looks = (1, 2, 3, 4, 8, 32)
figure, axes = plt.subplots(1, len(looks), figsize=(9, 1.8), layout="constrained")
with torch.no_grad():
    start = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(1))
    for axis, count in zip(axes, looks, strict=True):
        answer = model(test.cells[:1], budget(count), start=start)[0].argmax(-1)[0]
        for cell in range(16):
            given, right = test.cells[0, cell] > 0, answer[cell] == test.answers[0, cell]
            color = "black" if given else "tab:green" if right else "tab:red"
            axis.text(cell % 4 + 0.5, cell // 4 + 0.5, int(answer[cell]) + 1, color=color, ha="center", va="center")
        for line in range(5):
            axis.axhline(line, color="gray", linewidth=1.5 if line % 2 == 0 else 0.5)
            axis.axvline(line, color="gray", linewidth=1.5 if line % 2 == 0 else 0.5)
        axis.set(xlim=(0, 4), ylim=(4, 0), aspect="equal", title=f"{count} evaluation{'s' * (count > 1)}")
        axis.axis("off")

# %% [markdown]
# ## Stop when nothing moves
#
# Nobody has to say how often. With a tolerance in place of a budget every puzzle ends when its own residual is small,
# and says whether it did. Any solver may look for the point. But the layer was trained with plain iteration: Anderson
# acceleration converges too, and now and then to another fixed point, whose board is wrong.

# %% volatile
with torch.no_grad():
    for solver in ("fixed_point", "anderson"):
        logits, _, sol = model(test.cells, deqlm.Stop(max_iter=200, rtol=1e-2), solver)
        right = (logits.argmax(-1) == test.answers).all(1)
        took, done = sol.steps.double().mean(), sol.converged.double().mean()
        solved = right.double().mean()
        print(f"{solver:11}: {done:.2f} converged, {took:.0f} evaluations, {solved:.3f} solved")

# %% [markdown]
# ## Does the start matter?
#
# Solve every puzzle from eight random points. If the answer is a fixed point that attracts, all eight agree.

# %% volatile
with torch.no_grad():
    answers = torch.stack([model(test.cells, budget(64))[0].argmax(-1) for _ in range(8)])
agree = (answers == answers[0]).all(2).all(0)
print(f"all eight starts give the same board: {agree.double().mean():.3f} of the puzzles")

# %% [markdown]
# ## What is no puzzle
#
# The exact solver behind the data refuses what has no answer, or more than one.

# %%
for text in ("1..............4", "11.............."):
    try:
        only_solution(board, board.read(text))
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Where to go from here
#
# - `python -m examples.puzzles demo` does this with a twin that uses the layer once; `six` and `maze` are larger,
#   `nine` is a recipe for 9x9 on one GPU.
# - [Puzzles](../puzzles.md): seeds, times, residuals, difficulty, breadth against depth.
# - [Wrap your own layer](wrap_your_layer.md): what a fixed point is, and how gradients get through one.
