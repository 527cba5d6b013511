"""``deqlm generate``: text from a saved model."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deqlm.cli.checkpoint import has_tokenizer, hugging_face, read_config
from deqlm.cli.errors import UserError, user_input
from deqlm.cli.prose import ProseFormatter
from deqlm.comparison.settings import parse_device
from deqlm.comparison.spec import make_from
from deqlm.layers import fold_weight_norm_
from deqlm.sequence.modes import MODES
from deqlm_solvers import ConvergenceWarning

if TYPE_CHECKING:
    from deqlm.hf import ImplicitConfig

__all__ = ["add", "run"]

DESCRIPTION = """\
Continue a text with a model that model.save_pretrained wrote. The prompt is solved in chunks, then every new token is
a solve of its own: plain iteration until ||f(z) - z|| <= rtol ||f(z)||. A smaller rtol costs evaluations and changes
the text only where two tokens are about equally likely.

Without --temperature the most likely token is taken each time. The text goes to stdout, all else to stderr, also how
many of the solves did not converge, where any did not."""

EPILOG = """\
examples
  deqlm generate --model my_model/ --prompt "Once upon" --max-new-tokens 40
  deqlm generate --model my_model/ --prompt - < prompt.txt     the prompt from stdin
  deqlm generate --model my_model/ --prompt "Once" --temperature 0.8 --top-k 20 --seed 1
  deqlm generate --model my_model/ --prompt "Once" --rtol 1e-3 --stats
  deqlm generate --model my_model/ --ids "3 14 15" --beams 4   without a tokenizer
"""

COUNTS = ("max_new_tokens", "beams", "top_k", "max_iter")
SPARE = {"rtol": "--rtol", "max_iter": "--max-iter", "start": "--start"}
"""Options that an explicit model, which solves nothing, would ignore."""


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "generate",
        help="continue a text with a saved model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=ProseFormatter,
    )
    option = parser.add_argument
    option("--model", required=True, metavar="DIR", help="directory with config.json and weights")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue; - reads it from stdin")
    prompt.add_argument("--ids", metavar='"1 2 3"', help="token ids to continue, for a model without a tokenizer")
    option("--max-new-tokens", type=int, default=50, metavar="N", help="most tokens to add (default 50)")
    option(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="sample at this temperature (default 0: take the most likely token)",
    )
    option(
        "--top-k",
        type=int,
        metavar="K",
        help="sample among the K most likely tokens (default: all); needs --temperature",
    )
    option("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    option("--beams", type=int, default=1, metavar="N", help="beam search with N beams (default 1: none)")
    option("--rtol", type=float, metavar="TOL", help="relative tolerance of every solve (default: the model's)")
    option("--max-iter", type=int, metavar="K", help="most evaluations of f per solve (default: the model's)")
    option(
        "--mode",
        metavar="SPEC",
        help="how the prompt is cut: simultaneous, sequential or chunked:size=16 (default: the model's)",
    )
    option(
        "--start",
        choices=("zero", "previous"),
        help="where a token's solve starts: at zero or at the solution of the token before (default: the model's)",
    )
    option("--device", default="cpu", help="cpu (default), cuda, ...")
    option("--stats", action="store_true", help="say how many evaluations of f and seconds it took")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate and print; return the exit status."""
    with user_input():
        options = _options(arguments)
        config = read_config(arguments.model)
        options |= _solving(arguments, config)
        tokenizer = None if arguments.prompt is None else _tokenizer(arguments.model)
        ids = _ids(arguments, tokenizer).to(parse_device(arguments.device))
        model = _load(arguments.model).to(ids.device).eval()
        torch.manual_seed(arguments.seed)
        begun = time.perf_counter()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **options)
        seconds = time.perf_counter() - begun
    (tokens,) = out.sequences
    print(" ".join(map(str, tokens.tolist())) if tokenizer is None else tokenizer.decode(tokens))
    for each in told:
        here = ". Here Stop is --max-iter and --rtol" if issubclass(each.category, ConvergenceWarning) else ""
        print(f"warning: {each.message}{here}", file=sys.stderr)
    if arguments.stats:
        print(_stats(out, ids.shape[1], seconds), file=sys.stderr)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what transformers is told."""
    for name in COUNTS:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be a whole number >= 1, got {value}")
    if not 0 <= arguments.temperature < float("inf"):
        raise UserError(f"--temperature must be a number >= 0, got {arguments.temperature}")
    options = {"max_new_tokens": arguments.max_new_tokens, "num_beams": arguments.beams, "do_sample": False}
    if arguments.temperature > 0:
        options |= {"do_sample": True, "temperature": arguments.temperature, "top_k": arguments.top_k or 0}
    elif arguments.top_k is not None:
        raise UserError("--top-k needs --temperature > 0: without it the most likely token is taken")
    return options


def _solving(arguments: argparse.Namespace, config: ImplicitConfig) -> dict[str, Any]:
    """Return how the call solves, as far as it is not the model's way."""
    options: dict[str, Any] = {"on_failure": "warn"} if config.implicit else {}
    if arguments.mode is not None:
        options["mode"] = make_from(MODES, arguments.mode)
    given = {name: getattr(arguments, name) for name in SPARE if getattr(arguments, name) is not None}
    if given and not config.implicit:
        names = ", ".join(SPARE[name] for name in given)
        raise UserError(f"{names}: {arguments.model!r} is an explicit model, which solves nothing")
    if "start" in given:
        options["start"] = given.pop("start")
    if given:
        options["stop"] = config.deq.no_grad.stop.replace(**given)
    return options


def _tokenizer(directory: str) -> Any:
    if not has_tokenizer(directory):
        raise UserError(
            f"{directory!r} holds no tokenizer: give token ids by --ids, or save one there by "
            "tokenizer.save_pretrained(DIR)"
        )
    hugging_face()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _ids(arguments: argparse.Namespace, tokenizer: Any) -> Tensor:
    """Return the prompt as tokens, (1, L) int64."""
    if tokenizer is None:
        try:
            ids = [int(part) for part in arguments.ids.replace(",", " ").split()]
        except ValueError:
            raise UserError(f'--ids must be whole numbers such as "1 2 3", got {arguments.ids!r}') from None
    else:
        text = sys.stdin.read().rstrip("\n") if arguments.prompt == "-" else arguments.prompt
        ids = tokenizer(text)["input_ids"]
    if not ids:
        raise UserError("the prompt is empty: give at least one token to continue")
    return torch.tensor([ids], dtype=torch.int64, device="cpu")


def _load(directory: str) -> Any:
    hugging_face()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the weights in {directory!r} cannot be read: {first}") from error
    # weights that no step changes are normalised once, not for every token
    fold_weight_norm_(model.lm)
    return model


def _stats(out: Any, prompt: int, seconds: float) -> str:
    new = out.sequences.shape[1] - prompt
    lines = [f"{prompt} + {new} tokens in {seconds:.2f} s, {new / seconds:.1f} new ones per second"]
    steps = getattr(out, "steps", None)
    if steps is None:
        return "\n".join([*lines, "nothing was solved: an explicit model"])
    whole, tokens = steps[:, 0].double().mean(), steps[:, 1:].double()
    lines.append(f"prompt: {whole:.0f} evaluations of f, summed over its chunks")
    if tokens.numel():
        spread = f"least {tokens.min():.0f}, most {tokens.max():.0f}"
        lines.append(f"new tokens: {tokens.mean():.1f} evaluations each, {spread}")
    return "\n".join(lines)
