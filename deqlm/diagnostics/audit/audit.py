"""Every gradient method against the exact gradient, on the user's own layer."""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from deqlm.deq import DEQ
from deqlm.diagnostics.audit.audit_report import GradientAudit, MethodAudit, Verdict
from deqlm.diagnostics.audit.exact import Exact, Groups, NoExactError, Truth, joined, leaves_of, masked_rows
from deqlm.diagnostics.audit.inverse import NotSolvedError
from deqlm.diagnostics.unchanged import unchanged
from deqlm.gradients import GRADIENTS, Gradient, Implicit
from deqlm.wrap.failures import Failures
from deqlm.wrap.generators import accelerators, generator_states, set_generator_states
from deqlm.wrap.trees import first_tensor, map_tensors, tensors
from deqlm_solvers import FixedPoint, ReversibleIteration, Solution, Solve, Status
from deqlm_solvers.core.checks import whole
from deqlm_solvers.memory.meter import MemoryMeter

__all__ = ["audit_gradient"]

Methods = Iterable[str | Mapping[str, Any] | Gradient] | str | Mapping[str, Any] | Gradient


def audit_gradient(
    deq: DEQ,
    x: Any,
    *args: Any,
    gradients: Methods | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    repeats: int = 3,
    token_mask: Tensor | None = None,
    **kwargs: Any,
) -> GradientAudit:
    """Hold every gradient method against the exact gradient, for the parameters and for x, on your own layer.

    The exact gradient is that of the implicit function theorem on a float64 copy of the layer, at a fixed point with a
    residual of 1e-12, by a dense solve with I - J^T up to 512 unknowns per row and a converged adjoint beyond. Where no
    such point is found, the report says so and compares nothing. The module, its gradients, buffers and torch's
    generators are left as they were; every run starts from the same generator state, so all see the same dropout.

    A method that claims to be exact (`Gradient.exact`) is held against the exact gradient *at the point that its own
    forward solve returned*, and is called WRONG where it is further away than the residual of its backward solve, the
    conditioning of I - J and rounding explain. Truncated methods are biased and not wrong: beside their error stands
    ||((1 - tau) I + tau J^T)^k||, which bounds what they lack of the adjoint.

    Args:
        deq: the module, in the mode (train, eval) that matters to you.
        x: input of a call.
        *args: further arguments of the layer.
        gradients: names, dicts with ``name``, objects, or one of them; None takes every registered one. The method of
            ``deq`` itself is audited with its own options.
        loss: output -> scalar; None takes a fixed random linear function of the output.
        repeats: timed runs per method, >= 1; medians are reported.
        token_mask: as for a call.
        **kwargs: further keywords of the layer.

    Returns:
        `GradientAudit`: a table (`str`), fields, and `to_dict`.

    Raises:
        ValueError: f is random beyond torch's generators, so that no two runs compare.
        TypeError: ``deq`` is no `DEQ`.

    Examples:
        >>> import deqlm, torch
        >>> deq = deqlm.DEQ(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()))
        >>> audit = deqlm.audit_gradient(deq, torch.randn(3, 4), repeats=1)
        >>> audit["implicit"].verdict, audit["phantom"].verdict
        ('exact', 'truncated')

    Reference:
        Bound of a truncated series: Z. Geng et al. (2021), On training implicit models, NeurIPS, theorem 2, in norm.
    """
    if not isinstance(deq, DEQ):
        raise TypeError(f"deq must be a DEQ, got {type(deq).__name__}; wrap the map, such as DEQ(layer)")
    whole("repeats", repeats, 1)
    first = first_tensor(x)
    if first is None:
        raise TypeError(f"x must be a tensor or a tree of tensors, got {type(x).__name__}")
    with unchanged(deq), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Audit(deq, (x, args, kwargs), loss, token_mask, first.device).run(gradients, repeats)


class _Audit:
    """One audit: the call, the state of the generators in which every run starts, and the truth."""

    def __init__(
        self,
        deq: DEQ,
        call: tuple[Any, tuple[Any, ...], dict[str, Any]],
        loss: Callable[[Any], Tensor] | None,
        token_mask: Tensor | None,
        device: torch.device,
    ) -> None:
        self.deq, self.call, self.token_mask, self.device = deq, call, token_mask, device
        self.loss = loss or _random_linear
        self.devices = accelerators(deq, device)
        self.generators = generator_states(self.devices)

    def run(self, gradients: Methods | None, repeats: int) -> GradientAudit:
        probe = self._probe(self.deq.gradient, self.deq.solve)
        x, args, kwargs = self.call
        with torch.no_grad():
            state, sol = probe(x, *args, with_stats=True, token_mask=self.token_mask, **kwargs)
        rows = self._rows_of_call(state)
        report = GradientAudit(
            layer=type(self.deq.layer).__name__,
            rows=rows.count,
            unknowns=sum(rows.sizes),
            dtype=str(rows.dtype).removeprefix("torch."),
            device=str(rows.device),
            parameters=sum(p.numel() for p in self.deq.parameters() if p.requires_grad),
        )
        astray = sol.runaway is not None and bool(sol.runaway.any())
        truth = None if astray else self._truth(report, state)
        if astray:
            report.no_exact = (
                "rows ran away: the layer is z + F(z), whose state grows and whose residual does not fall, so there is "
                "no fixed point to differentiate; deqlm.diagnose(deq, x) tries a norm after the sum"
            )
        at_point: dict[Solve, Exact] = {}
        for label, make in _methods(gradients, self.deq):
            entry = MethodAudit(gradient=label)
            report.methods.append(entry)
            try:
                method = make()
                how = _forward_for(method, self.deq.solve)
                self._judge(entry, method, how, truth, at_point, repeats)
            except ImportError as error:
                entry.outcome, entry.notes = "not installed", [_one_line(error)]
            except Exception as error:
                entry.outcome, entry.notes = "raised", [_one_line(error)]
        return report

    def _rows_of_call(self, state: Any) -> Any:
        """Return how states are packed; refuse an f that is another one at every evaluation."""
        x, args, kwargs = self.call
        probe = self._probe(self.deq.gradient, self.deq.solve)
        with torch.no_grad():
            rowmap, _ = probe.on_rows(x, args, kwargs)
            self.rows, f = rowmap.rows, masked_rows(probe, rowmap, self.token_mask)
            self.point = self.rows.pack(state)
            once, again = f(self.point).double(), f(self.point).double()
        if _apart(again, once) > 100 * torch.finfo(self.rows.dtype).eps:
            raise ValueError(
                "f gives another value at every evaluation, from noise that is not drawn by torch's own generators "
                "(random, numpy, a torch.Generator): no two runs compare; call deq.eval(), or draw it with torch"
            )
        self.value = once
        return self.rows

    def _truth(self, report: GradientAudit, state: Any) -> Truth | None:
        """Return the exact gradient and write down what it is, or why there is none."""
        try:
            set_generator_states(self.generators, self.devices)
            truth = Truth(self.deq, self.call, self.loss, state, self.token_mask)
            apart = _apart(truth.values(self.point.double()), self.value)
            allowed = min(0.5, 1e-3 + 64 * torch.finfo(self.rows.dtype).eps)
            if not apart <= allowed:
                raise NoExactError(
                    f"the float64 copy of the layer computes something else (f(z) is {apart:.1%} apart): noise that "
                    "comes out differently in float64? call deq.eval()"
                )
        except (NoExactError, NotSolvedError) as error:
            report.no_exact = str(error)
            return None
        exact = truth.at_fixed_point
        report.exact_by = "dense" if truth.dense else "adjoint"
        report.mixes_rows = truth.mixes
        report.fixed_point_by, report.fixed_point_residual = truth.solver, truth.residual
        report.adjoint_residual, report.kappa = exact.residual, exact.kappa
        return truth

    def _judge(
        self,
        entry: MethodAudit,
        method: Gradient,
        how: Solve,
        truth: Truth | None,
        at_point: dict[Solve, Exact],
        repeats: int,
    ) -> None:
        entry.solver, entry.options = how.solver.name, _written(method)
        groups, sol, seconds = self._differentiate(method, how)
        entry.outcome = "ran"
        entry.evaluations, entry.row_evaluations = sol.cost.evaluations, sol.cost.row_evaluations
        if sol.adjoint is not None:
            entry.vjps, entry.jvps = sol.adjoint.cost.vjps, sol.adjoint.cost.jvps
        entry.notes = _notes(sol, how, self.deq.solve)
        with (meter := MemoryMeter()):
            self._differentiate(method, how)
        entry.peak_bytes = meter.peak
        times = [seconds, *(self._differentiate(method, how)[2] for _ in range(repeats - 1))]
        entry.forward, entry.backward = (statistics.median(t) for t in zip(*times, strict=True))
        if truth is None:
            return
        exact = truth.at_fixed_point
        for name, gradient in groups.items():
            entry.compare(name, gradient, exact.groups[name])
        if (cut := method.truncation()) is not None:
            entry.series_norm, entry.series_error = truth.series(*cut)
        if not method.exact:
            entry.verdict = "truncated"
            return
        if how not in at_point:
            z = truth.rows.pack(map_tensors(lambda t: t.detach().to(_wide(t)), sol.z))
            at_point[how] = truth.at(z)
        by_parts = isinstance(method, Implicit) and method.backward().stop.per != "row"
        entry.verdict = self._verdict(entry, groups, sol, at_point[how], exact, by_parts)

    def _verdict(
        self, entry: MethodAudit, groups: Groups, sol: Solution, own: Exact, exact: Exact, by_parts: bool
    ) -> Verdict:
        """Say whether the distance to the exact gradient at the method's own point is explained.

        A backward solve ``by_parts`` tells its residual relative to the parts of w, the others relative to g.
        """
        if int((sol.status >= 4).sum()):
            entry.notes.append("rows that failed add nothing to its gradient, so it is not judged")
            return "untold"
        eps = torch.finfo(self.rows.dtype).eps
        adjoint = sol.adjoint
        left = adjoint.residual.max().item() if adjoint is not None and adjoint.residual is not None else 0.0
        left *= own.gain if by_parts else 1.0
        verdict: Verdict = "exact"
        for name, gradient in groups.items():
            size = exact.groups[name].norm()
            if not size > 0:
                continue
            apart = ((gradient.cpu() - own.groups[name].cpu()).norm() / size.cpu()).item()
            explained = 3 * own.sensitivity[name] * (left + 32 * eps) + 100 * eps
            entry.own_error[name], entry.explained[name] = apart, explained
            if explained > 0.5:
                verdict = "untold" if verdict == "exact" else verdict
            elif not apart <= explained:
                verdict = "WRONG"
        return verdict

    def _differentiate(self, method: Gradient, how: Solve) -> tuple[Groups, Solution, tuple[float, float]]:
        """Return the gradients, the solution, and the seconds of forward and backward, on a fresh copy of the layer."""
        probe = self._probe(method, how)
        x, args, kwargs = self.call
        x = map_tensors(lambda t: t.detach().clone(), x)
        leaves = leaves_of(probe, x)
        wanted = [leaf for group in leaves.values() for leaf in group]
        _synchronize(self.device)
        begun = time.perf_counter()
        with torch.enable_grad():
            y, sol = probe(x, *args, with_stats=True, token_mask=self.token_mask, **kwargs)
            value = self.loss(y)
            _synchronize(self.device)
            halfway = time.perf_counter()
            got = torch.autograd.grad(value, wanted, allow_unused=True)
        _synchronize(self.device)
        return joined(leaves, got), sol, (halfway - begun, time.perf_counter() - halfway)

    def _probe(self, method: Gradient, how: Solve) -> DEQ:
        """Return a copy of the module with another gradient method, and the generators in the state of the call."""
        probe = copy.deepcopy(self.deq)
        probe.gradient, probe.solve = method, how
        probe.failures = Failures("ignore", "drop")
        set_generator_states(self.generators, self.devices)
        return probe


def _methods(gradients: Methods | None, deq: DEQ) -> list[tuple[str, Callable[[], Gradient]]]:
    """Return labels and makers; the module's own method, where it is asked for by name, has its own options."""
    one = isinstance(gradients, str | Mapping | Gradient)
    chosen: list[Any] = list(GRADIENTS) if gradients is None else [gradients] if one else list(gradients)  # type: ignore[arg-type]
    made: list[tuple[str, Callable[[], Gradient]]] = []
    for spec in chosen:
        if spec == deq.gradient.name or (isinstance(spec, Gradient) and spec is deq.gradient):
            made.append((deq.gradient.name, lambda: deq.gradient))
        else:
            label = (
                spec if isinstance(spec, str) else str(spec.name if isinstance(spec, Gradient) else spec.get("name"))
            )
            made.append((label, lambda spec=spec: GRADIENTS.make(spec)))
    return made


def _written(method: Gradient) -> str:
    """Return the method as one would write it, with the options that differ from their defaults."""
    own = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}  # type: ignore[arg-type]
    return f"{type(method).__name__}({', '.join(f'{key}={value}' for key, value in own.items())})"


def _forward_for(method: Gradient, own: Solve) -> Solve:
    """Return the module's own solve if the method can differentiate it, else an iteration with the same `Stop`."""
    for how in (own, Solve(FixedPoint(), own.stop)):
        try:
            method.check(how)
        except ValueError:
            continue
        return how
    last = Solve(ReversibleIteration(), own.stop)
    method.check(last)
    return last


def _notes(sol: Solution, how: Solve, own: Solve) -> list[str]:
    notes = []
    if how is not own:
        notes.append(f"cannot differentiate {own.solver.name}")
    failed = int(sol.failed.sum())
    if failed:
        notes.append(f"forward not converged in {failed} of {sol.status.numel()} rows")
    astray = 0 if sol.runaway is None else int(sol.runaway.sum())
    if astray:
        notes.append(f"{astray} rows ran away")
    adjoint = sol.adjoint
    if (
        adjoint is not None
        and adjoint.status is not None
        and (lost := int((adjoint.status > int(Status.BUDGET)).sum()))
    ):
        notes.append(f"backward not converged in {lost} rows")
    if adjoint is not None and adjoint.growth is not None and bool((adjoint.growth > 1).any()):
        notes.append(f"terms of the series grow by {adjoint.growth.nan_to_num(0.0).max().item():.2g}")
    return notes


def _random_linear(y: Any) -> Tensor:
    """Return a fixed random linear function of the output: the same weights in every dtype."""
    draw = torch.Generator().manual_seed(0)
    total: Any = 0.0
    for leaf in tensors(y):
        real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        weights = torch.randn(real.shape, generator=draw, dtype=torch.float64, device="cpu").to(real)
        total = total + (real * weights).sum()
    return total


def _wide(t: Tensor) -> torch.dtype:
    return torch.complex128 if t.is_complex() else torch.float64


def _apart(ours: Tensor, value: Tensor) -> float:
    """Return ||ours - value|| / ||value||; 0 where both are zero."""
    gap = (ours - value).norm().item()
    size = value.norm().item()
    return gap / size if size else math.inf if gap else 0.0


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
