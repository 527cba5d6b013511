# %% [markdown]
# # Train, save and use an implicit language model
#
# One minute of training on a CPU, then everything you would do with a model from Hugging Face: save it, load it with
# `AutoModelForCausalLM` in a new process, and let it write. Two models, the two of "Implicit Language Models are RNNs"
# in small: an implicit Mamba2 and an implicit Llama. You need `pip install '.[hf]'`.
#
# An ordinary language model sends the embedded text once through its layers. An implicit one iterates *all of its
# layers*,
#
#     z = layers(z, u)
#
# with `u` made from the embeddings, until `z` does not change any more, and reads its logits off that `z`.
#
# The script of this page is `docs/tutorials/language_model.py`; from the root of the repository,
# `PYTHONPATH=. python docs/tutorials/language_model.py` runs it. The same as a command with options is
# `python -m examples.language_model`.

# %%
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import torch

import deqlm
import deqlm.hf
from examples.language_model.corpus import Corpus, byte_tokenizer, read_text
from examples.language_model.families import FAMILIES, LENGTH
from examples.language_model.task import NextByte
from examples.loop import train

torch.set_num_threads(1)  # the tensors here are small

# %% [markdown]
# ## Text
#
# Python's own help pages, which every installation carries, one token per byte. The tokenizer is an ordinary one of
# `transformers`; it will be saved beside the models.

# %% free
tokenizer = byte_tokenizer()
corpus = Corpus.of(read_text(), tokenizer, length=LENGTH)
print(len(corpus.train), "bytes to train on,", len(corpus.held_out), "held out")
print(repr(tokenizer.decode(corpus.train[1000:1064])))

# %% [markdown]
# ## Two models
#
# A configuration has the names that you know from `transformers`, and one section of its own, `deq`: how to solve with
# gradients, how without, and how to walk along the tokens. `implicit=False` is the explicit twin, the same layers used
# once.

# %%
config = deqlm.hf.ImplicitMamba2Config(vocab_size=256, hidden_size=64, num_hidden_layers=1, state_size=16, head_dim=32)
for how in (config.deq.grad, config.deq.no_grad):
    print(how.stop.max_iter, "evaluations at most, to", how.stop.rtol, "of every", how.stop.per, "by", how.solver.name)
print(deqlm.hf.ImplicitMamba2ForCausalLM(config).num_parameters(), "parameters")

# %% [markdown]
# ## Training
#
# While a model is trained its solve may be rough. The paper's recipe has two phases. The *bounded* one, four fifths of
# all steps, evaluates the layers at most 4 times without a graph and once with one. The *free* one evaluates until the
# state moves by less than 5 %, at most 24 or 32 times, and differentiates 4 more steps. A phase is plain data.

# %%
for name in FAMILIES:
    for phase in FAMILIES[name].phases(300).phases:
        print(f"{name:6}  steps={phase.steps}  at most {phase.stop.max_iter} evaluations, then {phase.gradient}")

# %% volatile
models, runs = {}, {}
for name, family in FAMILIES.items():
    torch.manual_seed(0)
    models[name] = family.make()
    began = time.perf_counter()
    runs[name] = train(models[name].lm, NextByte(corpus, LENGTH), family.training(300, lr=6e-3), progress=False)
    took = time.perf_counter() - began
    final = runs[name].evaluations[-1]
    print(f"{name:6}  {runs[name].steps} steps in {took:.0f} s  {final['bits_per_byte']:.2f} bits per byte")

# %% [markdown]
# The left picture shows how well the next byte is predicted. The right one shows what an implicit model has and no
# other: the number of evaluations that a text needs. Where the bounded phase ends (dotted) the solves may take as long
# as they want, and training makes them shorter or longer.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, run in runs.items():
    steps = [row["step"] for row in run.records]
    left.plot(steps, [row["loss"] / torch.log(torch.tensor(2.0)).item() for row in run.records], label=name)
    right.plot(steps, [row["evaluations"] / row["steps"] for row in run.records], label=name)
left.set(xlabel="step", ylabel="bits per byte", title="Loss")
right.set(xlabel="step", ylabel="evaluations per solve", title="Work")
for axis in (left, right):
    axis.axvline(240, color="grey", linestyle=":", linewidth=1)
    axis.legend(frameon=False)

# %% [markdown]
# ## Save, and load in a new process
#
# Weights go to `model.safetensors`, everything else to `config.json`. `import deqlm.hf` tells `transformers` of the two
# families.

# %%
for name, model in models.items():
    model.eval()
    model.save_pretrained(f"runs/{name}")
    tokenizer.save_pretrained(f"runs/{name}")

script = """
import torch, transformers, deqlm.hf

for name in ("mamba2", "llama"):
    model = transformers.AutoModelForCausalLM.from_pretrained(f"runs/{name}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"runs/{name}")
    torch.manual_seed(0)
    prompt = tokenizer("The ", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=100, do_sample=True, temperature=0.7, pad_token_id=0)
    print(f"--- {name}")
    print(tokenizer.decode(ids[0]))
"""

# %% free
print(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)

# %% [markdown]
# Nonsense, as a minute of training allows, but of words that have the look of the text. From the command line it is
# `deqlm generate --model runs/mamba2 --prompt "The "`.
#
# ## What only an implicit model offers
#
# How deep it thinks is decided when it is used, not when it is built: give a call another tolerance. And text can be
# solved at once, in chunks, or token by token; the fixed point is the same.

# %% volatile
model = models["mamba2"]
ids = corpus.held_out[None, :LENGTH]
with torch.no_grad():
    exact = model(ids, stop=deqlm.Stop(rtol=1e-6, max_iter=1000)).logits
    for rtol in (0.5, 0.05, 0.005):
        out = model(ids, stop=deqlm.Stop(rtol=rtol, max_iter=1000))
        same = (out.logits.argmax(-1) == exact.argmax(-1)).float().mean()
        print(f"rtol {rtol:<6}  {int(out.steps)} evaluations  {same:.0%} of the predictions as at the fixed point")
    for mode in (deqlm.Simultaneous(), deqlm.Chunked(16), deqlm.Sequential()):
        out = model(ids, stop=deqlm.Stop(rtol=1e-6, max_iter=1000), mode=mode)
        print(f"{mode!r:22} largest difference of a logit {float((out.logits - exact).abs().max()):.1e}")

# %% [markdown]
# ## Is it better than the explicit twin?
#
# On this text, in this minute, no. At equal steps and one seed the explicit twins reached 2.40 (Mamba2) and 2.78
# (Llama) bits per byte, the implicit models 2.47 and 2.75, and the twins took less than half the time. The next byte
# hardly needs a state. Where implicit models win is where a state has to be *tracked*: see the state-tracking tutorial.
#
# `python -m examples.language_model --explicit` trains the explicit twins in the same way.
