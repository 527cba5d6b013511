"""Train a tiny implicit Mamba2 and a tiny implicit Llama on text, save them, and generate in a new process."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from examples.language_model.corpus import Corpus, byte_tokenizer, read_text
from examples.language_model.families import FAMILIES, LENGTH
from examples.language_model.task import NextByte
from examples.loop import train

EPILOG = """
what it prints, per model:
  bits per byte     on held-out text; 8 is guessing
  evaluations       of f per window until every token was solved, mean and most
  converged         fraction of the windows that were solved within the cap

try:
  python -m examples.language_model --steps 20                        does it run?
  python -m examples.language_model --family llama --data book.txt    a text of your own
  python -m examples.language_model --explicit                        the same layers, used once
  python -m deqlm generate --model runs/language_model/mamba2 --prompt "The statement "
"""


def main() -> None:
    """Train, save, generate."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    tokenizer = byte_tokenizer()
    try:
        corpus = Corpus.of(read_text(args.data), tokenizer, length=LENGTH)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"text: {len(corpus.train) + len(corpus.held_out):,} bytes, the last tenth held out")
    for name in args.family:
        folder = args.out / (f"{name}-explicit" if args.explicit else name)
        train_one(name, corpus, tokenizer, folder, args)
        command = [sys.executable, "-m", "deqlm", "generate", "--model", str(folder), "--prompt", args.prompt]
        command += ["--max-new-tokens", "120", "--temperature", "0.7", "--seed", str(args.seed)]
        print(f"\nin a new process: python -m {' '.join(command[2:5])} {folder} --prompt {args.prompt!r}", flush=True)
        subprocess.run(command, check=True)


def train_one(name: str, corpus: Corpus, tokenizer: Any, folder: Path, args: argparse.Namespace) -> None:
    """Train one family and save it as `transformers.AutoModelForCausalLM` loads it."""
    family = FAMILIES[name]
    torch.manual_seed(args.seed)
    model = family.make(implicit=not args.explicit)
    began = time.perf_counter()
    options = family.training(args.steps, lr=args.lr, seed=args.seed, implicit=not args.explicit)
    run = train(model.lm, NextByte(corpus, LENGTH), options, name=name)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"\n{name}: {parameters:,} parameters, {run.steps} steps in {time.perf_counter() - began:.0f} s, {folder}")
    print("  step  bits per byte" + ("" if args.explicit else "  evaluations  most  converged"))
    for row in run.evaluations:
        solved = "" if args.explicit else f"  {row['steps']:11.1f}  {row['most_steps']:4.0f}  {row['converged']:9.0%}"
        print(f"  {row['step']:4}  {row['bits_per_byte']:13.3f}{solved}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.language_model",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--family", nargs="+", choices=sorted(FAMILIES), default=["mamba2", "llama"], help="default: both, in turn"
    )
    parser.add_argument("--explicit", action="store_true", help="the explicit twins in their place")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a UTF-8 text; default: Python's own help pages")
    parser.add_argument("--steps", type=_positive, default=300, help="optimizer steps per model (default 300)")
    parser.add_argument("--lr", type=float, default=6e-3, help="highest learning rate (default 6e-3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", default="The ", help="what the generated text goes on from (default 'The ')")
    parser.add_argument("--threads", type=_positive, default=1, help="of torch; these tensors are small (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/language_model"), metavar="DIR", help="a folder each")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


if __name__ == "__main__":
    main()
