"""Evaluate a pretrained model: longer texts, other modes, more evaluations, and the tasks of lm-eval.

python -m examples.pretrain.evaluate runs/pretrain/cpu-demo/model --lengths 64 128 256
python -m examples.pretrain.evaluate MODEL --tasks paper        (LAMBADA, HellaSwag, PIQA, ARC, WinoGrande, OpenBookQA)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqlm import Stop
from deqlm.models import ImplicitLM
from deqlm.reporting import style
from examples.loop.results import write_json
from examples.pretrain.data import IGNORED, Shards, labels_of, prepare, shards_folder
from examples.pretrain.documents import CorpusError, make_tokenizer

__all__ = ["agreement", "budgets", "lengths", "score_tasks"]

PAPER = ("lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa")
MODES = ("simultaneous", "sequential")
BUDGETS = (1, 2, 4, 8, 16, 32, 64)


def windows(shards: Shards, length: int, count: int) -> Tensor:
    """Return the last windows of a corpus, (count or fewer, length): the texts that stand at its end, cut anew.

    Raises:
        CorpusError: it is shorter than one window.
    """
    count = min(count, shards.count // length)
    if not count:
        raise CorpusError(f"the corpus has {shards.count} tokens, and a window of {length} was asked for")
    first = shards.count - count * length
    return torch.stack([torch.from_numpy(shards.window(first + i * length, length)) for i in range(count)])


@torch.no_grad()
def measure(model: ImplicitLM, ids: Tensor, end: int, **how: Any) -> dict[str, Any]:
    """Return perplexity, accuracy, and what was spent, row by row, so that no number depends on a batch."""
    quiet = {"on_failure": "ignore"} if model.backbone.implicit else {}
    loss = right = count = 0.0
    steps, converged = [], []
    for row in ids:
        labels = labels_of(row[None], end)[:, 1:]
        out = model(row[None], **quiet, **how)
        logits = out.logits[:, :-1].double()
        counts = labels != IGNORED
        wants = labels.clamp_min(0)
        loss -= float(logits.log_softmax(-1).gather(2, wants[..., None])[..., 0][counts].sum())
        right += int(((logits.argmax(-1) == wants) & counts).sum())
        count += int(counts.sum())
        if out.solution is not None:
            steps.append(float(out.solution.steps.double().mean()))
            converged.append(float(out.solution.converged.double().mean()))
    told = {"perplexity": math.exp(loss / count), "bits": loss / count / math.log(2), "accuracy": right / count}
    if steps:
        told |= {"evaluations": sum(steps) / len(steps), "converged": sum(converged) / len(converged)}
    return told


def lengths(model: ImplicitLM, shards: Shards, asked: list[int], modes: list[str], tokens: int) -> list[dict[str, Any]]:
    """Return perplexities at several lengths, in several modes, on about as many tokens each."""
    found = []
    for length in asked:
        ids = windows(shards, length, max(1, tokens // length))
        for mode in modes:
            found.append({"length": length, "mode": mode, **measure(model, ids, shards.end, mode=mode)})
    return found


def budgets(model: ImplicitLM, shards: Shards, length: int, tokens: int, asked: tuple[int, ...] = BUDGETS) -> list[Any]:
    """Return perplexity and accuracy by test-time evaluations, all tokens at once."""
    ids, found = windows(shards, length, max(1, tokens // length)), []
    for count in asked:
        stop = Stop(max_iter=count, rtol=0)
        found.append({"budget": count, **measure(model, ids, shards.end, mode="simultaneous", stop=stop)})
    return found


@torch.no_grad()
def agreement(model: ImplicitLM, ids: Tensor, modes: list[str]) -> dict[str, float]:
    """Return for each mode the share of tokens whose most likely next token is that of the first mode, in percent."""
    best = {}
    for mode in modes:
        rows = [model(row[None], mode=mode, on_failure="ignore").logits.argmax(-1) for row in ids]
        best[mode] = torch.cat(rows)
    return {mode: 100 * float((best[mode] == best[modes[0]]).double().mean()) for mode in modes}


def score_tasks(model: Any, tokenizer: Any, tasks: list[str], *, batch: int = 8, include: Path | None = None) -> Any:
    """Return the scores of lm-eval by task; equal in batches of any size.

    Args:
        model: of `deqlm.hf`; its section "evaluation" is in use meanwhile, so that a score depends on no other text.
        tokenizer: of transformers.
        tasks: by name.
        batch: texts at once.
        include: a folder of tasks of your own.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    import deqlm.hf

    manager = TaskManager(include_path=None if include is None else str(include))
    with deqlm.hf.evaluation(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        found = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    return {task: {k: v for k, v in row.items() if isinstance(v, float)} for task, row in found["results"].items()}


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw perplexity and accuracy against test-time evaluations; return the files."""
    with style.steady():
        made, axes = style.panels(2, 2, (3.2, 2.6), 0.1)
        for panel, name, color in zip(axes, ("perplexity", "accuracy"), style.PALETTE, strict=False):
            panel.plot([row["budget"] for row in rows], [row[name] for row in rows], marker="o", color=color)
            panel.set_xscale("log", base=2)
            panel.set_xlabel("evaluations of f per token")
            panel.set_ylabel(name)
        made.tight_layout()
        return style.write(made, folder, "evaluations")


def load(folder: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder; the tokenizer is None where there is none.

    Raises:
        OSError, ValueError: no model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import deqlm.hf  # noqa: F401  (registers the families)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    has = (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists()
    return model, AutoTokenizer.from_pretrained(folder) if has else None


def main(argv: list[str] | None = None) -> int:
    """Read the command line, evaluate, write evaluation.json beside the model; return the exit status."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.model)
    try:
        model, tokenizer = load(folder)
        result = evaluate(model, tokenizer, arguments, folder)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(folder / "evaluation.json", result)
    return 0


def evaluate(model: Any, tokenizer: Any, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return and print everything that was asked for."""
    result: dict[str, Any] = {}
    lm, vocabulary = model.lm, model.config.vocab_size
    if arguments.tasks:
        if tokenizer is None:
            raise ValueError(f"{folder} has no tokenizer, which lm-eval needs: tokenizer.save_pretrained(folder)")
        include = Path(arguments.include) if arguments.include else None
        tasks = [name for task in arguments.tasks for name in (PAPER if task == "paper" else [task])]
        result["tasks"] = score_tasks(model, tokenizer, tasks, batch=arguments.batch, include=include)
        print(json.dumps(result["tasks"], indent=1))
        return result
    words = make_tokenizer(arguments.tokenizer, vocabulary, arguments.end)
    source = arguments.source
    shards = prepare(source, words, shards_folder(Path(arguments.data), source, words))
    modes = list(arguments.modes) if lm.backbone.implicit else ["simultaneous"]
    result["lengths"] = lengths(lm, shards, arguments.lengths, modes, arguments.tokens)
    for row in result["lengths"]:
        spent = ""
        if "evaluations" in row:
            spent = f"{row['evaluations']:8.1f} evaluations, {row['converged']:.0%} converged"
        print(f"length {row['length']:6}  {row['mode']:12}  perplexity {row['perplexity']:9.3f}  {spent}")
    if lm.backbone.implicit:
        first = arguments.lengths[0]
        ids = windows(shards, first, max(1, arguments.tokens // first))
        result["agreement"] = agreement(lm, ids, modes)
        for mode, share in result["agreement"].items():
            print(f"{mode}: {share:.2f} % of tokens as {modes[0]}")
        result["budgets"] = budgets(lm, shards, first, arguments.tokens)
        for row in result["budgets"]:
            print(f"{row['budget']:4} evaluations  perplexity {row['perplexity']:9.3f}  accuracy {row['accuracy']:.3f}")
        if style.can_draw():
            print("plot:", *draw(result["budgets"], folder))
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.pretrain.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="DIR", help="that a training exported, or model.save_pretrained wrote")
    parser.add_argument("--source", metavar="TEXT", help="default: Python's help pages")
    parser.add_argument("--tokenizer", default="bytes", metavar="FILE")
    parser.add_argument("--end", default="<|endoftext|>", help="the token behind a document")
    parser.add_argument("--data", default="runs/pretrain/data", metavar="DIR", help="of the tokenised corpora")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384], metavar="L")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=(*MODES, "auto", "frontier"))
    parser.add_argument("--tokens", type=int, default=16384, metavar="N", help="per length (default 16384)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"of lm-eval; 'paper' is {' '.join(PAPER)}")
    parser.add_argument("--include", metavar="DIR", help="of tasks of your own")
    parser.add_argument("--batch", type=int, default=8, metavar="B", help="texts at once for lm-eval (default 8)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
