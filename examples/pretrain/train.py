"""Pretrain an implicit language model on one process or many.

python -m examples.pretrain.train --config cpu-demo
torchrun --nproc-per-node 2 -m examples.pretrain.train --config cpu-demo

A training that was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from deqlm.models import GPUS, ImplicitLM, model_cost
from deqlm.models.planning import train_flops
from deqlm.reporting.progress import Progress
from deqlm.training import CheckpointError, random_state_kept
from examples.loop.guard import Fall, Watchman
from examples.loop.train import TrainingError
from examples.pretrain.checkpoints import Checkpoints
from examples.pretrain.data import IGNORED, PackedStream, Shards, Windows, labels_of, prepare, shards_folder
from examples.pretrain.documents import CorpusError, make_tokenizer
from examples.pretrain.feed import Feed, StreamFeed, WindowFeed
from examples.pretrain.metrics import Metrics
from examples.pretrain.model import apply_phase, export, make_model, make_optimizer, place, without_grad
from examples.pretrain.processes import World, leave, world
from examples.pretrain.settings import Settings, read_settings

__all__ = ["Training", "main"]


class Training:
    """One training; every process runs the same lines.

    Args:
        settings: what and how.
        here: this process among the others.
        folder: of the training.
        data: of the shards, shared by trainings.
        gpu: a name of `deqlm.models.planning.GPUS`, for the model-FLOP utilisation; None leaves it away.
        tensorboard: also write event files.
        show: as for `Progress`.
    """

    def __init__(
        self,
        settings: Settings,
        here: World,
        folder: Path,
        data: Path,
        *,
        gpu: str | None = None,
        tensorboard: bool = False,
        show: bool | None = None,
    ) -> None:
        self.settings, self.here, self.folder, self.gpu, self.show = settings, here, folder, gpu, show
        self.recipe, self.passes = settings.recipe, settings.passes(here.size)
        self.feed = make_feed(settings, here, data)
        self.model: ImplicitLM = make_model(settings, here.device)
        self.cost = model_cost(self.recipe.model, context=self.recipe.length // 2)
        self.called = place(self.model, settings, here)
        self.optimizer = make_optimizer(self.model, settings)
        self.phases = self.recipe.solving if self.recipe.phases else None
        self.schedule = self.recipe.schedule
        self.watchman = None if settings.guard is None else Watchman(settings.guard)
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        experiment = {"settings": settings.identity(), "data": self.feed.identity}
        self.checkpoints = Checkpoints(folder, experiment, here, keep=settings.keep)
        # dropout of each process is its own, the weights were not
        torch.manual_seed(settings.seed * 1_000_003 + here.rank)
        if (path := self.checkpoints.newest()) is not None:
            self._go_on(path)
        self.metrics = Metrics(folder if here.first else None, self.step, tensorboard=tensorboard)

    def run(self) -> dict[str, Any]:
        """Train to the end; return the last evaluation."""
        self._say(f"step {self.step} of {self.recipe.steps}, {self.here.size} processes, {self.passes} passes a step")
        show = self.show if self.here.first else False
        with Progress(self.recipe.steps, show, name="pretrain", unit="step", first=self.step) as bar:
            while self.step < self.recipe.steps:
                record = self._step()
                bar.reach(self.step, f"loss={record['loss']:.3f}")
                self._keep_books(record)
        result = self._evaluate()
        self._save()
        self.checkpoints.finish()
        self.metrics.close()
        self._export()
        self._say(f"done: {json.dumps(result)}; model in {self.folder / 'model'}")
        return result

    def _step(self) -> dict[str, float]:
        """Take one optimizer step: as many passes as it takes to the tokens of a step."""
        began = time.perf_counter()
        if self.phases is not None:
            apply_phase(self.model, self.phases.at(self.step), self.here)
        rate = self.schedule.at(self.step) * (1.0 if self.watchman is None else self.watchman.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [(ids, labels_of(ids, self.feed.end)) for ids in self.feed.batches(self.step, self.passes)]
        count = int(self.here.total(torch.tensor(sum(int((y[:, 1:] != IGNORED).sum()) for _, y in batches))))
        sums = torch.zeros(4, dtype=torch.float64, device=self.here.device)
        for number, (ids, labels) in enumerate(batches):
            with self._synced(number == self.passes - 1):
                sums += self._backward(ids.to(self.here.device), labels.to(self.here.device), count)
        norm = self._clip()
        loss, steps, converged, residual = self.here.total(sums).tolist()
        rows = self.recipe.batch_tokens // self.recipe.length
        record = {"loss": loss, "grad_norm": norm, "lr": rate, "evaluations": steps / rows}
        record |= {"converged": converged / rows, "residual": residual / rows}
        self._check(record)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._guard(record)
        self.step += 1
        self.seconds += time.perf_counter() - began
        return {**record, "seconds_per_step": time.perf_counter() - began}

    def _backward(self, ids: Tensor, labels: Tensor, count: int) -> Tensor:
        """Return loss, evaluations, converged rows and residuals of one pass, summed over its rows."""
        with self._autocast():
            output = self.called(ids, labels=labels, label_count=count)
        # what gradients are averaged over is the number of processes, and the sum is wanted
        (output.loss * self.here.size).backward()
        loss, solution = output.loss.detach().double(), output.solution
        if solution is None:
            return torch.stack([loss, loss.new_tensor(len(ids)), loss.new_tensor(len(ids)), loss.new_zeros(())])
        found = (solution.steps.double().sum(), solution.converged.double().sum(), solution.relative.double().sum())
        return torch.stack([loss, *found])

    def _clip(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _check(self, record: dict[str, float]) -> None:
        """Stop before a number that is not finite reaches the weights; what was trained so far is saved."""
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(record[name])]
        if not bad or (self.watchman is not None and len(self.watchman.falls) < self.watchman.guard.most):
            return
        self.optimizer.zero_grad()
        self._save()
        self.checkpoints.finish()
        where = f"step {self.step}, with the rate {record['lr']:.3g}"
        phase = "" if self.phases is None else f" and {self.phases.at(self.step).stop.max_iter} evaluations at most"
        raise TrainingError(
            f"{bad[0]} is {record[bad[0]]} at {where}{phase}; the weights before that step are in "
            f"{self.checkpoints.saved}; try a smaller lr or clip, or a guard in the config"
        )

    def _guard(self, record: dict[str, float]) -> None:
        if self.watchman is None:
            return
        loss = record["loss"] if math.isfinite(record["grad_norm"]) else record["grad_norm"]
        self.watchman.observe(0, loss, record["converged"])
        if (fall := self.watchman.judge(self.step + 1, self._weights)) is not None:
            assert self.watchman.refuge is not None
            # the optimizer goes on in the tensors that it is given
            kept = copy.deepcopy(self.watchman.refuge["weights"])
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self._say(fall.line())

    def _weights(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _keep_books(self, record: dict[str, float]) -> None:
        settings = self.settings
        if self.step % settings.log_every == 0 or self.step == self.recipe.steps:
            self.metrics.write("train", self._told(record))
        if settings.evaluate_every is not None and self.step % settings.evaluate_every == 0:
            self._evaluate()
        if settings.checkpoint_every is not None and self.step % settings.checkpoint_every == 0:
            self._save()

    def _told(self, record: dict[str, float]) -> dict[str, Any]:
        """Return the record of a step as it is written."""
        speed = self.recipe.batch_tokens / record["seconds_per_step"]
        told: dict[str, Any] = {"step": self.step, "tokens": self.step * self.recipe.batch_tokens, **record}
        told |= {"tokens_per_second": speed, "seconds": self.seconds, "phase": self._phase()}
        if self.gpu is not None:
            differentiated = 1 if self.phases is None else self.phases.at(self.step - 1).gradient.steps  # type: ignore[attr-defined]
            made = record["evaluations"] + (0 if self.phases is None else differentiated)
            flops = train_flops(self.cost, made, differentiated, recompute=self.settings.recompute)
            told["model_flop_utilisation"] = speed * flops / (self.here.size * GPUS[self.gpu].teraflops * 1e12)
        if self.here.device.type == "cuda":
            told["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return told

    def _phase(self) -> int:
        return 0 if self.phases is None else sum(self.step > end for end in self.phases.ends())

    def _evaluate(self) -> dict[str, Any]:
        """Return loss and perplexity on held-out windows, shared out among the processes."""
        rows = min(self.settings.evaluate_rows, self.feed.held_count)
        mine = [*range(self.here.rank, rows, self.here.size)]
        # sharded weights are gathered by all: who has a window less looks at his last one again, without counting it
        turns = -(-rows // self.here.size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.here.device)
        self.model.eval()
        with random_state_kept(), torch.no_grad():
            for turn in range(turns):
                ids = self.feed.held([mine[min(turn, len(mine) - 1)] if mine else 0]).to(self.here.device)
                labels = labels_of(ids, self.feed.end)
                with self._autocast():
                    loss = self.called(
                        ids, labels=labels, label_count=1, mode="simultaneous", **without_grad(self.model, self.here)
                    ).loss
                if turn < len(mine):
                    sums += torch.stack([loss.double(), (labels[:, 1:] != IGNORED).sum().double()])
        self.model.train()
        total, count = self.here.total(sums).tolist()
        result = {"step": self.step, "loss": total / count, "perplexity": math.exp(min(700.0, total / count))}
        self.metrics.write("evaluation", result)
        return result

    def _save(self) -> None:
        guard = None if self.watchman is None else {"falls": [list(f) for f in self.watchman.falls]}
        state = {"step": self.step, "seconds": self.seconds, "guard": guard, "feed": self.feed.state()}
        self.checkpoints.save(self.step, self.model, self.optimizer, state)

    def _go_on(self, path: Path) -> None:
        state = self.checkpoints.load(path, self.model, self.optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        self.feed.go_on(state["feed"])
        if self.watchman is not None and state["guard"] is not None:
            self.watchman.falls = [Fall(*fall) for fall in state["guard"]["falls"]]

    def _export(self) -> None:
        """Write the model as `transformers.AutoModelForCausalLM` loads it, where transformers is installed."""
        state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.here.first:
            try:
                export(self.model, self.settings, self.folder / "model", state)
            except ImportError:
                torch.save(state, self.folder / "model.pt")
        self.here.barrier()

    def _autocast(self) -> Any:
        half = self.settings.precision == "bfloat16" and not (self.here.size > 1 and self.settings.parallel == "fsdp")
        return torch.autocast(self.here.device.type, dtype=torch.bfloat16) if half else nullcontext()

    @contextmanager
    def _synced(self, last: bool) -> Iterator[None]:
        """Add up gradients of earlier passes here, and over the processes with the last one."""
        if hasattr(self.called, "no_sync"):
            with nullcontext() if last else self.called.no_sync():  # type: ignore[operator]
                yield
            return
        if hasattr(self.called, "set_requires_gradient_sync"):
            self.called.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def _say(self, line: str) -> None:
        if self.here.first:
            print(line, flush=True)


def make_feed(settings: Settings, here: World, data: Path) -> Feed:
    """Return what a training reads; the first process writes the shards, the others wait."""
    tokenizer = make_tokenizer(settings.tokenizer, settings.recipe.model.vocab_size, settings.end)
    length = settings.recipe.length
    if settings.stream:
        stream = PackedStream(settings.source, tokenizer, length, rank=here.rank, processes=here.size)
        return StreamFeed(stream, settings, here)
    folder, failed = shards_folder(data, settings.source, tokenizer), None
    if here.first:
        try:
            prepare(settings.source, tokenizer, folder)
        except (CorpusError, OSError) as error:
            failed = str(error)
    if (failed := here.told(failed)) is not None:
        raise CorpusError(failed)
    return WindowFeed(Windows(Shards(folder), length, settings.held_out, settings.seed), settings, here)


def main(argv: list[str] | None = None) -> int:
    """Read the command line and train; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        settings = read_settings(arguments.config, dict(_change(text) for text in arguments.set))
        folder = Path(arguments.out or Path("runs/pretrain") / Path(arguments.config).stem)
        with world(arguments.device, settings.timeout) as here:
            torch.set_num_threads(arguments.threads)
            options = {"gpu": arguments.gpu, "tensorboard": arguments.tensorboard}
            Training(settings, here, folder, Path(arguments.data), **options).run()
    except (ValueError, TypeError, KeyError, OSError, CheckpointError, TrainingError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"error: training stopped, give the same command again to go on: {error}", file=sys.stderr)
        leave(1)
        return 1
    return 0


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.pretrain.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a name in configs/, a recipe, or a JSON file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of the config")
    parser.add_argument("--out", metavar="DIR", help="of checkpoints and metrics (default runs/pretrain/CONFIG)")
    parser.add_argument("--data", default="runs/pretrain/data", metavar="DIR", help="of the tokenised corpora")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--gpu", choices=sorted(GPUS), help="tells what share of its stated rate is used")
    parser.add_argument("--threads", type=int, default=1, help="of torch, per process (default 1)")
    parser.add_argument("--tensorboard", action="store_true", help="also write event files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
