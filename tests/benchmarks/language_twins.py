"""Implicit and explicit twins on a text: equal parameters, then equal tokens and equal time.

python -m tests.benchmarks.language_twins --text FILE --steps 1200 --seeds 0 1 2 --out docs/records/language_twins.json
python -m tests.benchmarks.language_twins --draw docs/assets

The explicit model is wider, or has wider MLPs, by the parameters that the implicit one has for its injection. It is
trained twice: with the steps of the implicit one, and with the CPU seconds of the implicit one, its rate decaying to
the end of these. A run that the record has already is not made again. Without --text it is Python's help pages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deqlm.reporting import style
from deqlm.reporting.environment import environment
from examples.language_model.corpus import Corpus, byte_tokenizer, read_text
from examples.language_model.families import FAMILIES, LENGTH, ROWS, Family
from examples.language_model.task import NextByte
from examples.loop import train
from examples.loop.results import read_json, write_json

EXPLICIT: dict[str, dict[str, int]] = {
    "mamba2": {"hidden_size": 80},
    "llama": {"hidden_size": 64, "intermediate_size": 164},
}
"""Sizes of the explicit models that bring their parameters within two percent of the implicit ones."""
LR = 6e-3
READS = 12
"""Evaluations per run."""


def model_of(name: str, *, implicit: bool) -> Any:
    """Return a model with initial weights."""
    family: Family = FAMILIES[name]
    if implicit:
        return family.make()
    sizes = {**family.sizes, **{key: size for key, size in EXPLICIT[name].items() if key != "hidden_size"}}
    width = EXPLICIT[name]["hidden_size"]
    return family.model(family.config(vocab_size=256, hidden_size=width, implicit=False, **sizes))


def run(name: str, corpus: Corpus, seed: int, steps: int, *, implicit: bool) -> dict[str, Any]:
    """Train one model; return its curve."""
    torch.manual_seed(seed)
    model = model_of(name, implicit=implicit)
    options = FAMILIES[name].training(steps, lr=LR, seed=seed, implicit=implicit)
    options = replace(options, log_every=max(1, steps // READS), evaluate_every=max(1, steps // READS))
    done = train(model.lm, NextByte(corpus, LENGTH), options, progress=False)
    seconds = {record["step"]: record["cpu_seconds"] for record in done.records}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": steps * ROWS * LENGTH,
        "cpu_seconds": done.seconds["cpu"],
        "curve": [{**row, "cpu_seconds": seconds.get(row["step"], done.seconds["cpu"])} for row in done.evaluations],
        "train_bits": [(record["step"], record["loss"] / math.log(2)) for record in done.records],
    }


def draw(record: dict[str, Any], folder: Path) -> Path:
    """Draw held-out bits per byte against tokens and CPU seconds, a line per run; return the file."""
    looks = {"implicit": "-", "explicit, equal tokens": "--", "explicit, equal time": ":"}
    with style.steady():
        made, panels = style.panels(4, 2, (3.4, 2.4), 0.5)
        for row, name in enumerate(FAMILIES):
            for column, (axis, label) in enumerate((("tokens", "tokens, thousands"), ("cpu_seconds", "CPU seconds"))):
                panel = panels[2 * row + column]
                panel.set_title(name)
                panel.set_xlabel(label)
                panel.set_ylabel("bits per byte")
                for key, run in record["runs"].items():
                    family, kind, _ = key.split("/")
                    if family == name:
                        color = style.PALETTE[list(looks).index(kind)]
                        xs = [
                            point["step"] * ROWS * LENGTH / 1e3 if axis == "tokens" else point[axis]
                            for point in run["curve"]
                        ]
                        ys = [point["bits_per_byte"] for point in run["curve"]]
                        panel.plot(xs, ys, looks[kind], color=color, linewidth=1.2)
                panel.set_ylim(2.4, 4.2)
        keys = [
            style.key(k, color=c, linestyle=dash) for (k, dash), c in zip(looks.items(), style.PALETTE, strict=False)
        ]
        style.legend_below(made, keys, 3, 0.3)
        path, png = style.write(made, folder, "language_twins")
        png.unlink()
    return path


def main() -> None:
    """Make what the record does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=["mamba2", "llama"])
    parser.add_argument("--out", type=Path, default=Path("docs/records/language_twins.json"))
    parser.add_argument("--draw", type=Path, metavar="DIR", help="draw the record instead of adding to it")
    args = parser.parse_args()
    if args.draw is not None:
        print(draw(read_json(args.out), args.draw))
        return
    torch.set_num_threads(1)
    text = read_text(args.text)
    about = {
        "text": "Python's help pages" if args.text is None else args.text.name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "steps": args.steps,
        "rows": ROWS,
        "length": LENGTH,
        "lr": LR,
        "explicit_sizes": EXPLICIT,
    }
    record = read_json(args.out) if args.out.exists() else {"about": about, "runs": {}}
    if record["about"] != about:
        raise SystemExit(f"{args.out} is a record of other settings: {json.dumps(record['about'])}")
    corpus = Corpus.of(text, byte_tokenizer(), length=LENGTH)

    def made(key: str, name: str, seed: int, steps: int, *, implicit: bool) -> dict[str, Any]:
        if key not in record["runs"]:
            record["runs"][key] = run(name, corpus, seed, steps, implicit=implicit)
            record["environment"] = environment()
            write_json(args.out, record)
            print(key, record["runs"][key]["curve"][-1], flush=True)
        return record["runs"][key]

    for seed in args.seeds:
        for name in args.families:
            ours = made(f"{name}/implicit/{seed}", name, seed, args.steps, implicit=True)
            tokens = made(f"{name}/explicit, equal tokens/{seed}", name, seed, args.steps, implicit=False)
            more = round(args.steps * ours["cpu_seconds"] / tokens["cpu_seconds"])
            made(f"{name}/explicit, equal time/{seed}", name, seed, more, implicit=False)


if __name__ == "__main__":
    main()
