"""The modules of torchdeq, ``deq(f, z0) -> (states, info)``, on the solvers and gradients of this library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deqlm.compat.torchdeq.backward import backward_solve
from deqlm.compat.torchdeq.dropout import reset_dropout
from deqlm.compat.torchdeq.gradient import Behind, Tail
from deqlm.compat.torchdeq.norm import reset_norm
from deqlm.compat.torchdeq.registered import registered_rule
from deqlm.compat.torchdeq.settings import Settings
from deqlm.compat.torchdeq.solvers import Rule, get_solver, rule_of, stopping
from deqlm.compat.torchdeq.watch import SolverStat, Watch
from deqlm.diagnostics.radius import spectral_radius
from deqlm.functional import solve
from deqlm.gradients import Implicit
from deqlm.training.random_state import get_random_state, set_random_state
from deqlm.wrap.rows import Rows
from deqlm.wrap.trees import map_tensors, tensors
from deqlm_solvers import Status
from deqlm_solvers.core.checks import require, suggest, whole

__all__ = ["DEQBase", "DEQIndexing", "DEQSliced", "get_deq", "register_deq", "reset_deq"]

Writer = Callable[[SolverStat], Any]


class DEQBase(nn.Module):
    """What both modules share: the options, and one solve. A core of one's own inherits from it.

    Args:
        args: options as a dict, a Namespace or an object with attributes; it is not written to.
        **options: options of `Settings`, in place of those.

    Attributes:
        settings: the options.

    Raises:
        TypeError: an unknown option.
        ValueError: an option outside its range.
        KeyError: an unknown solver.
    """

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__()
        self.settings = s = Settings.read(args, options)
        for name in (s.f_solver, s.b_solver):
            get_solver(name)

    @property
    def eval_f_max_iter(self) -> int:
        """Evaluations of a solve in eval(), at most."""
        s = self.settings
        return s.eval_f_max_iter if s.eval_f_max_iter > 0 else int(s.f_max_iter * s.eval_factor)

    def forward(
        self,
        func: Callable[..., Any],
        z_init: Any,
        solver_kwargs: Mapping[str, Any] | None = None,
        sradius_mode: bool = False,
        backward_writer: Writer | None = None,
    ) -> tuple[list[Any], SolverStat]:
        """Solve z = func(z) and return the states and the numbers of the solve.

        In train() there are as many states as the options ask for; in eval() one. Grad mode alone decides whether they
        carry a gradient.

        Args:
            func: map of the state; of a list of tensors it takes each as an argument, and returns a list of them.
            z_init: start: a tensor (B, ...), or a list of them.
            solver_kwargs: options of the forward solver, ``f_max_iter``, ``tol`` and ``stop_mode``, for this call.
            sradius_mode: in eval(), put the spectral radius at the returned point into ``info["sradius"]``, (B,).
            backward_writer: called with the numbers of the backward solve of ``ift``, once it is done.

        Returns:
            ``(states, info)``: a list of states, and `SolverStat`.
        """
        require(isinstance(sradius_mode, bool), "sradius_mode", sradius_mode, "True or False")
        call = Call(self.settings, func, z_init, solver_kwargs, backward_writer, self.eval_f_max_iter)
        if self.training:
            return self.train_states(call)
        states, info = call.run(call.most_in_eval, [call.only_tail()], same=True)
        radius = spectral_radius(call.f, states[-1], batch_dims=call.rows.batch_dims) if sradius_mode else None
        info["sradius"] = torch.zeros_like(info["abs_lowest"]) if radius is None else radius.reshape(-1)
        return states, info

    def train_states(self, call: Call) -> tuple[list[Any], SolverStat]:
        """Return the states of a call in train()."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        s, plain = self.settings, Settings()
        return ", ".join(f"{k}={v!r}" for k, v in vars(s).items() if v != getattr(plain, k))


class Call:
    """One call of a `DEQBase`: the map, the start, and what the options make of it.

    Args:
        settings: options of the module.
        func: map of the user.
        z_init: start.
        solver_kwargs: for this call.
        writer: gets the numbers of the backward solve.
        most_in_eval: evaluations in eval().
    """

    def __init__(
        self,
        settings: Settings,
        func: Callable[..., Any],
        z_init: Any,
        solver_kwargs: Mapping[str, Any] | None,
        writer: Writer | None,
        most_in_eval: int,
    ) -> None:
        own = dict(solver_kwargs or {})
        self.settings = settings
        self.several = not isinstance(z_init, Tensor)
        self.f = _of_list(func) if self.several else func
        self.z0 = list(z_init) if self.several else z_init
        self.rows = Rows(map_tensors(Tensor.detach, self.z0), min(1, *(t.dim() for t in tensors(self.z0)), 1), "z_init")
        asked = own.pop("f_max_iter", own.pop("max_iter", None))
        if asked is not None:
            whole("f_max_iter", int(asked), 0)
        self.most = settings.f_max_iter if asked is None else int(asked)
        self.most_in_eval = most_in_eval if asked is None else int(asked)
        self.tol = own.pop("tol", settings.f_tol)
        self.stop_mode = own.pop("stop_mode", settings.f_stop_mode)
        self.final = own.pop("return_final", False)
        self.options = own
        self.writer = writer

    def rule(self, most: int) -> Rule:
        """Return the forward solver."""
        name = self.settings.f_solver
        return registered_rule(name, self.options) or rule_of(name, most, self.options)

    def tails(self, of: int) -> list[Tail]:
        """Return how each of ``of`` states is tied to autograd."""
        s = self.settings
        steps = s.steps
        require(len(steps) in (1, of), "grad", list(steps), f"one number, or one for each of {of} states")
        counts = steps * of if len(steps) == 1 else steps
        return [self._tail(count, last=k + 1 == of) for k, count in enumerate(counts)]

    def only_tail(self) -> Tail:
        """Return how the one state of a call in eval() is tied to autograd."""
        last = self._tail(self.settings.steps[-1], last=True)
        return replace(last, places=(last.steps,))

    def _tail(self, steps: int, *, last: bool) -> Tail:
        s = self.settings
        if last and (s.ift or s.hook_ift):
            return Tail((1,), s.tau, implicit=Implicit(solve=backward_solve(s, self.writer)))
        if s.sup_gap > 0:
            require(s.sup_gap <= steps, "sup_gap", s.sup_gap, f"at most grad, {steps}")
            return Tail(tuple(range(s.sup_gap, steps + 1, s.sup_gap)), s.tau)
        return Tail((*sorted(k for k in set(s.sup_loc or ()) if k < steps), steps), s.tau)

    def run(
        self, most: int, tails: Sequence[Tail], places: Sequence[int] = (), same: bool = False
    ) -> tuple[list[Any], SolverStat]:
        """Solve once from ``z0``, and return the states with their gradients.

        Args:
            most: evaluations, at most.
            tails: how the states after ``places``, and the last, are tied to autograd.
            places: evaluations after which there are states.
            same: return the solved point itself.
        """
        s = self.settings
        rule = self.rule(most)
        quiet = s.f_solver == "simple_fixed_point_iter" if s.no_stat is None else s.no_stat
        stop = stopping(most, self.tol if rule.tests else 0.0, self.stop_mode, final=self.final)
        watch = Watch(self.f, self.rows.count, places, numbers=not quiet or not rule.tests)
        ahead = None if stop.is_budget else rule.ahead
        behind = Behind(watch, ahead, tails, places, same)
        sol = solve(
            *(watch, self.z0),
            solver=rule.solver,
            stop=stop,
            gradient=behind,
            batch_dims=self.rows.batch_dims,
            on_failure=s.on_failure,
        )
        found = self.rows.pack(sol.z)
        bad = (sol.status.reshape(-1) >= int(Status.DIVERGED))[:, None]
        kept = [torch.where(bad, found.detach(), state) for state in behind.states[:-1]]
        states = [*(self.rows.result(state) for state in kept), sol.z] if behind.states else [sol.z] * len(tails)
        return states, watch.info(self.stop_mode, self.rows.device, final=stop.is_budget)


class DEQSliced(DEQBase):
    """Cuts the evaluations into slices: each is a solve that begins where the steps behind the last one ended.

    Args:
        args: see `DEQBase`.
        **options: likewise.
    """

    def train_states(self, call: Call) -> tuple[list[Any], SolverStat]:
        slices = _slices(self.settings, call.most)
        states: list[Any] = []
        info: SolverStat = {}
        tails = call.tails(len(slices))
        noise = get_random_state() if len(slices) > 1 else None
        for k, most in enumerate(slices):
            if k:
                # one call has one noise
                set_random_state(noise)  # type: ignore[arg-type]
                call.z0 = map_tensors(Tensor.detach, states[-1])
            more, info = call.run(most, [tails[k]])
            states += more
        return states, info


class DEQIndexing(DEQBase):
    """Makes one solve, takes states on its way, and lets the steps of the gradient begin at each.

    Args:
        args: see `DEQBase`.
        **options: likewise.
    """

    def train_states(self, call: Call) -> tuple[list[Any], SolverStat]:
        places = _places(self.settings, call.most)
        return call.run(call.most, call.tails(len(places)), places[:-1])


_CORES: dict[str, type[nn.Module]] = {"sliced": DEQSliced, "indexing": DEQIndexing}


def register_deq(deq_type: str, core: type[nn.Module]) -> None:
    """Make a module known to `get_deq` by a name.

    Args:
        deq_type: the name, for the option ``core``.
        core: called with the options.

    Raises:
        TypeError: what is no class.
    """
    if not inspect.isclass(core):
        raise TypeError(f"core must be a class, got {type(core).__name__}")
    _CORES[deq_type] = core


def get_deq(args: Any = None, **options: Any) -> Any:
    """Return the module that torchdeq's options ask for.

    Args:
        args: options as a dict, an ``argparse.Namespace`` or an object with attributes; it is not written to.
        **options: options in place of those, see `Settings`.

    Raises:
        TypeError: an unknown option; the message names the nearest one.
        ValueError: an option outside its range.
        KeyError: an unknown core or solver.

    Examples:
        >>> deq = get_deq(f_solver="anderson", f_max_iter=30, f_tol=1e-5, ift=True)
        >>> layer = torch.nn.Linear(4, 4)
        >>> x = torch.ones(2, 4)
        >>> (z,), info = deq(lambda z: torch.tanh(0.5 * layer(z) + x), torch.zeros(2, 4))
        >>> z.shape, info["abs_lowest"].shape
        (torch.Size([2, 4]), torch.Size([2]))
    """
    core = Settings.read(args, options).core
    if core not in _CORES:
        raise KeyError(f"unknown core {core!r}: {suggest(core, set(_CORES))}")
    return _CORES[core](args, **options)


def reset_deq(model: nn.Module) -> None:
    """Make normalised weights and masks new; nothing has to, because both are made once per call.

    Args:
        model: the layer.
    """
    reset_norm(model)
    reset_dropout(model)


def _of_list(func: Callable[..., Any]) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda z: list(func(*z))


def _slices(s: Settings, most: int) -> list[int]:
    """Return the evaluations of each slice, all of them together ``most``."""
    if s.n_states > 1:
        count = max(min(most, s.n_states), 1)
        each, rest = divmod(most, count)
        return [each + (k >= count - rest) for k in range(count)]
    ends = [*(s.indexing or []), most]
    require(ends == sorted(set(ends)), "indexing", ends[:-1], f"below f_max_iter, {most}")
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _places(s: Settings, most: int) -> list[int]:
    """Return the evaluations after which there is a state, the last included."""
    if s.n_states > 1:
        count = max(min(most, s.n_states), 1)
        each, rest = divmod(most, count)
        return [most - (count - k - 1) * each if rest else (k + 1) * each for k in range(count)]
    ends = [*(s.indexing or []), most]
    require(ends == sorted(set(ends)), "indexing", ends[:-1], f"below f_max_iter, {most}")
    return ends
