"""``deqlm info``: sizes, solver settings and cost of a preset or of a saved model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deqlm.cli.checkpoint import read_config
from deqlm.cli.errors import UserError, user_input
from deqlm.cli.prose import ProseFormatter
from deqlm.models import PRESETS, LMOptions, model_cost
from deqlm_solvers.core.checks import suggest

__all__ = ["add", "run"]

DESCRIPTION = """\
Say what a model is: parameters, layers and widths, how it is solved in training and without gradients, and what a
token costs. NAME is a preset of the paper's authors, DIR a directory that model.save_pretrained wrote. Without a name,
all presets are listed. Nothing is allocated and no weights are read.

A FLOP is one multiplication or one addition; matrix products, convolutions, scans and attention scores are counted. A
token costs its evaluations of f, of which the last one commits it, and once the injection and the head. How many
evaluations a token takes depends on the weights, the text and the tolerance: deqlm generate --stats counts them."""

EPILOG = """\
examples
  deqlm info                                     all presets
  deqlm info mamba2-130m-implicit
  deqlm info llama3-1.3b-implicit --context 2048 --json
  deqlm info my_model/                           needs the extra hf
"""

STARTS = (
    "a map may have several fixed points: with a cache a text is solved token by token, without one all at",
    "once, from other starts, and may become another text; deqlm.diagnose(model, ids) tells (PATH_DEPENDENT)",
)
"""What is to be known of every model that solves."""

NOTHING = "nothing is solved: an explicit model, one evaluation per token"


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "info",
        help="say what a preset or a saved model is and what a token costs",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="NAME|DIR", help="a preset or a directory with a config.json")
    parser.add_argument(
        "--context", type=int, default=0, metavar="T", help="tokens that attention looks back at (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return the exit status."""
    with user_input():
        if arguments.model is None:
            found = [facts(name, options, _solving(options), arguments.context) for name, options in PRESETS.items()]
            print(json.dumps(found, indent=1) if arguments.json else table(found))
            return 0
        known = _facts_of(arguments.model, arguments.context)
    print(json.dumps(known, indent=1) if arguments.json else report(known))
    return 0


def facts(name: str, options: LMOptions, solving: dict[str, Any] | None, context: int) -> dict[str, Any]:
    """Return everything that is told of a model, as plain data.

    Args:
        name: preset or directory.
        options: sizes.
        solving: how it is solved, by part; None for an explicit model.
        context: tokens in the cache.
    """
    cost = model_cost(options, context=context)
    most = 1 if solving is None else solving["no_grad"]["stop"]["max_iter"] + 1
    return {
        "name": name,
        "implicit": options.implicit,
        "mixer": options.mixer.to_dict(),
        "layers": options.n_layer,
        "width": options.d_model,
        "mlp_width": options.d_hidden,
        "vocab_size": options.vocab_size,
        "embedding_rows": options.rows,
        "tied": options.tie,
        "labels": options.labels,
        "parameters": {
            "total": cost.parameters,
            "embedding": cost.embedding,
            "head": cost.head,
            "backbone": cost.backbone,
        },
        "solving": solving,
        "flops_per_token": {
            "context": context,
            "evaluation": cost.evaluation,
            "once": cost.once,
            "one_evaluation": cost.per_token(1),
            "most_evaluations": most,
            "most": cost.per_token(most),
        },
    }


def report(known: dict[str, Any]) -> str:
    """Return the facts of one model as text."""
    mixer, parameters, flops = known["mixer"], known["parameters"], known["flops_per_token"]
    sizes = ", ".join(f"{key} {value}" for key, value in mixer.items() if key != "name" and value is not None)
    hidden = "" if known["mlp_width"] is None else f", MLP width {known['mlp_width']}"
    rows = "" if known["embedding_rows"] == known["vocab_size"] else f", table of {known['embedding_rows']} rows"
    head = "tied" if known["tied"] else f"{parameters['head']:,}"
    lines = [
        _line("model", f"{known['name']} ({'implicit' if known['implicit'] else 'explicit'} {mixer['name']})"),
        _line("parameters", f"{parameters['total']:,}"),
        _line("", f"embedding {parameters['embedding']:,}, head {head}, backbone {parameters['backbone']:,}"),
        _line("layers", f"{known['layers']} of width {known['width']}{hidden}"),
        _line("mixer", f"{mixer['name']}: {sizes}"),
        _line("tokens", f"{known['vocab_size']}{rows}; labels {known['labels']}"),
        *_solving_lines(known["solving"]),
        _line(
            "cost", f"one evaluation of f for a token: {_flops(flops['evaluation'])}, behind {flops['context']} tokens"
        ),
        _line("", f"once per token, injection and head: {_flops(flops['once'])}"),
    ]
    if known["solving"] is None:
        lines.append(_line("", f"a token: {_flops(flops['one_evaluation'])}"))
    else:
        most = f"at most {flops['most_evaluations']} evaluations: {_flops(flops['most'])}"
        lines.append(
            _line("", f"a token of K evaluations: K x {_flops(flops['evaluation'])} + {_flops(flops['once'])}")
        )
        lines.append(_line("", most))
    return "\n".join(lines)


def table(found: list[dict[str, Any]]) -> str:
    """Return one line per model."""
    rows = [["preset", "parameters", "embedding", "backbone", "layers", "width", "training", "without grad", "FLOPs"]]
    for known in found:
        parameters, solving = known["parameters"], known["solving"]
        training, evaluation = "-", "-"
        if solving is not None:
            training = f"{solving['grad']['stop']['max_iter']} + {solving['grad']['gradient']['steps']}"
            evaluation = f"<= {solving['no_grad']['stop']['max_iter']}"
        counts = [f"{parameters[part]:,}" for part in ("total", "embedding", "backbone")]
        sizes = [str(known["layers"]), str(known["width"])]
        cost = _flops(known["flops_per_token"]["evaluation"])
        rows.append([known["name"], *counts, *sizes, training, evaluation, cost])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:{widths[0]}}", *cells]))
    tail = "training: evaluations + differentiated steps. FLOPs: of one evaluation of f for one token."
    return "\n".join([*lines, "", tail])


def _facts_of(model: str, context: int) -> dict[str, Any]:
    if model in PRESETS:
        return facts(model, PRESETS[model], _solving(PRESETS[model]), context)
    if not Path(model).exists() and not any(mark in model for mark in ("/", "\\")):
        raise UserError(f"{model!r} is neither a preset nor a directory: {suggest(model, PRESETS)}")
    config = read_config(model)
    return facts(model, config.to_lm_options(), config.deq.to_dict() if config.implicit else None, context)


def _solving(options: LMOptions) -> dict[str, Any] | None:
    """Return how a preset is solved, by the parts of the section ``deq`` of a configuration."""
    if not options.implicit:
        return None
    model = options.replace(n_layer=1).make("meta")
    grad = {**model.solve.to_dict(), "gradient": model.gradient.to_dict()}
    return {"grad": grad, "no_grad": model.no_grad.to_dict()}


def _solving_lines(solving: dict[str, Any] | None) -> list[str]:
    if solving is None:
        return [_line("solving", NOTHING)]
    grad = solving["grad"]
    lines = [
        _line("with grad", f"{_named(grad['solver'])}; {_stop(grad['stop'])}"),
        _line("", f"gradient {_named(grad['gradient'])}"),
        _line("without", f"{_named(solving['no_grad']['solver'])}; {_stop(solving['no_grad']['stop'])}"),
    ]
    lines += [_line("", line) for line in STARTS]
    modes = {key: solving[key] for key in ("mode", "prompt_mode", "token_mode") if key in solving}
    if modes:
        lines.append(_line("modes", ", ".join(f"{key} {_named(mode)}" for key, mode in modes.items())))
    phases = (solving.get("phases") or {}).get("phases")
    for number, phase in enumerate(phases or [], 1):
        steps = "to the end" if phase["steps"] is None else f"{phase['steps']} steps"
        how = f"{_named(phase['solver'])}; {_stop(phase['stop'])}; gradient {_named(phase['gradient'])}"
        lines.append(_line(f"phase {number}", f"{steps}: {how}"))
    return lines


def _named(given: dict[str, Any]) -> str:
    told = {key: value for key, value in given.items() if key != "name" and value is not None and value is not False}
    settings = ", ".join(f"{key} {value}" for key, value in told.items())
    return f"{given['name']} ({settings})" if settings else given["name"]


def _stop(stop: dict[str, Any]) -> str:
    keep = ", keeps the smallest residual" if stop.get("keep") == "best_f" else ""
    return f"at most {stop['max_iter']} evaluations, rtol {stop['rtol']:g} per {stop['per']}{keep}"


def _flops(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}FLOP"
    return f"{count:g} FLOP"


def _line(name: str, value: str) -> str:
    return f"{name:11}{value}"
