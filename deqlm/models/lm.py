"""A language model whose hidden state is a fixed point: embeddings, solve, head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deqlm.equilibrium.settings import GivenGradient, GivenSolver, GivenStop, in_use
from deqlm.equilibrium.transformed import summary
from deqlm.gradients import GRADIENTS, Gradient, Phantom
from deqlm.gradients.collective import processes_in_step
from deqlm.layers import Context, fold_weight_norm_
from deqlm.models.backbone import Backbone
from deqlm.models.call import BackboneChunk, LMCache, chunk_forward
from deqlm.models.failing import LMFailures, WhenFailed
from deqlm.models.inputs import check_mask, embedded, tokens, vocabulary, wanted
from deqlm.models.loss import Labels, label_loss
from deqlm.sequence.chunks import per_token, solve_chunks
from deqlm.sequence.modes import MODES, Mode
from deqlm.wrap.eager import eagerly
from deqlm.wrap.replay import Replay
from deqlm.wrap.rows import RowMap, Rows
from deqlm.wrap.trees import map_tensors, start_like
from deqlm_solvers import Anderson, Broyden, FixedPoint, Solution, Solve, Stop
from deqlm_solvers.core.checks import explain_options, require, whole
from deqlm_solvers.core.kinds import refuse_tracing
from deqlm_solvers.core.peer_names import HINTS

__all__ = ["ImplicitLM", "LMOutput"]

FREE = Solve(FixedPoint(), Stop(max_iter=24, rtol=0.05, per="token"))
"""With grad: evaluations and tolerance of the paper's free phase. Every row ends by itself, so that a loss does not
depend on how a batch is cut into parts; the paper's own rule, ``keep="best_f"``, ends when all rows pass at once."""
EVALUATION = Solve(FixedPoint(damping=0.8), Stop(max_iter=96, rtol=0.05, per="token"))
"""Without grad."""

_TWO = "give it in solve=Solve(solver, stop), with grad, and in no_grad=Solve(solver, stop), without"
LM_HINTS = {name: f"{told}; {_TWO}" for name, told in HINTS.items()} | dict.fromkeys(
    ("solver", "stop", "evaluation"), _TWO
)
"""Where options of others belong."""

DERIVATIVE_FREE = (FixedPoint, Anderson, Broyden)
"""Solvers whose points may be tensors of inference mode, which autograd cannot differentiate at."""


class LMOutput(NamedTuple):
    """What `ImplicitLM` returns.

    Attributes:
        logits: (B, L, V); None of a model without a head.
        loss: mean cross-entropy over the labels that count, or None without labels.
        solution: of the solve, with ``steps``, ``residual`` and ``status`` per row; None for the explicit twin.
        state: what the head sees, (B, L, D).
        cache: with ``use_cache``, for the tokens that follow.
        states: with ``output_states``, of the embeddings and ``state``, (B, L, D) each; of the explicit twin the
            embeddings, what each block but the last returns, and ``state``.
    """

    logits: Tensor | None
    loss: Tensor | None
    solution: Solution | None
    state: Tensor
    cache: LMCache | None
    states: tuple[Tensor, ...] | None = None


class ImplicitLM(nn.Module):
    """Embeddings -> fixed point of a backbone -> logits; with an explicit backbone, the same model without a solve.

    With grad enabled ``solve`` and ``gradient`` make the state: the phantom steps' last point. Without it, the state is
    one undamped evaluation at the point that ``no_grad`` finds, of every row and chunk its own. A training recipe swaps
    ``solve`` and ``gradient`` (`deqlm.training.Phase`).

    Args:
        backbone: `Backbone`, implicit or explicit.
        vocab_size: rows V of the embedding table.
        tie: use the embedding table as the head's weight.
        head_bias: give the head a bias.
        head: False leaves the head away: the answer is ``state``, and ``tie`` and ``head_bias`` mean nothing.
        dropout: ordinary dropout of the embeddings, before the solve.
        labels: "shifted" (the label of a token is compared with the logits of the token before) or "aligned" (with its
            own).
        solve: how to solve with grad; None is plain iteration, at most 24 evaluations, rtol .05 in every token.
        gradient: how gradients are made; None is ``Phantom(4, 0.8)``.
        no_grad: how to solve without grad; None is damping .8, at most 96 evaluations, rtol .05 in every token, or
            ``solve`` beside a gradient with ``same_value``, which makes the state without grad that with grad.
        mode: `Auto`, `Simultaneous`, `Chunked`, `Sequential` or `Frontier`, by object, name or dict; see
            `deqlm.sequence.modes`.
        on_failure: "auto", "warn", "raise" or "ignore" when a row does not converge. Training by a bounded number of
            evaluations seldom converges, so "auto" warns without grad, and with grad only of rows that end DIVERGED or
            NONFINITE; all else is left to the reader of ``solution``.
        failed_grad: as for `deqlm.DEQ`.
        device: of embeddings and head.
        dtype: likewise.

    Attributes:
        last: `Solution` of the last call without its state, see `deqlm.Equilibrium`; None for the explicit twin.

    Raises:
        ValueError: an option out of range, or a pair of solver and gradient that does not fit.

    Reference:
        M. Schoene et al. (2025), Implicit language models are RNNs, ICML.

    Examples:
        >>> import deqlm
        >>> from deqlm.layers import Attention, Block
        >>> model = ImplicitLM(Backbone([Block(Attention(16, n_head=2))]), vocab_size=11)
        >>> ids = torch.randint(11, (2, 7))
        >>> model(ids, labels=ids).loss.backward()
        >>> with torch.no_grad():
        ...     first = model(ids[:, :4], use_cache=True)
        ...     rest = model(ids[:, 4:], cache=first.cache, mode=deqlm.Sequential())
        >>> rest.logits.shape, rest.solution.steps.shape
        (torch.Size([2, 3, 11]), torch.Size([2]))
    """

    @explain_options(LM_HINTS)
    def __init__(
        self,
        backbone: Backbone,
        *,
        vocab_size: int,
        tie: bool = True,
        head_bias: bool = False,
        head: bool = True,
        dropout: float = 0.0,
        labels: Labels = "shifted",
        solve: Solve | Mapping[str, Any] | None = None,
        gradient: str | Mapping[str, Any] | Gradient | None = None,
        no_grad: Solve | Mapping[str, Any] | None = None,
        mode: str | Mapping[str, Any] | Mode = "auto",
        on_failure: WhenFailed = "auto",
        failed_grad: Literal["drop", "keep", "raise"] = "drop",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        whole("vocab_size", vocab_size, 1)
        require(labels in ("shifted", "aligned"), "labels", labels, "'shifted' or 'aligned'")
        width = backbone.d_model
        self.embedding = nn.Embedding(vocab_size, width, device=device, dtype=dtype)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head: nn.Linear | None = None
        if head:
            self.head = nn.Linear(width, vocab_size, bias=head_bias, device=device, dtype=dtype)
            if tie:
                self.head.weight = self.embedding.weight
        self.labels: Labels = labels
        self.solve = _solve(solve, FREE)
        self.gradient = GRADIENTS.make(Phantom() if gradient is None else gradient)
        self.gradient.check(self.solve)
        same = getattr(self.gradient, "same_value", False)
        self.no_grad = _solve(no_grad, self.solve if same else EVALUATION)
        if same:
            rule = "the same as solve, or left away, beside a gradient with same_value"
            require(self.no_grad == self.solve, "no_grad", self.no_grad, rule)
        self.mode = MODES.make(mode)
        self.failures = LMFailures(on_failure, failed_grad)
        self.last: Solution | None = None

    @explain_options(HINTS)
    def forward(
        self,
        ids: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: LMCache | None = None,
        use_cache: bool = False,
        mode: str | Mapping[str, Any] | Mode | None = None,
        stop: GivenStop | None = None,
        solver: GivenSolver | None = None,
        gradient: GivenGradient | None = None,
        start: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        label_count: int | Tensor | None = None,
        on_failure: WhenFailed | None = None,
        output_states: bool = False,
        label_kind: Labels | None = None,
    ) -> LMOutput:
        """Return logits, and the loss if there are labels.

        Args:
            ids: tokens, (B, L), whole numbers, L >= 1.
            embeddings: in their place, (B, L, D); not read at padding.
            mask: (B, L) bool, True at real tokens; None if all are. Padding stands before the real tokens of a row, or
                behind its last one; it has the logits of a zero state and changes nothing else.
            labels: (B, L), whole numbers; -100 does not count, nor does padding.
            cache: of the tokens before these, from a call with ``use_cache``.
            use_cache: also return the cache behind the last token.
            mode: in place of the model's, for this call.
            stop: in place of that of the solve in use, for this call: a `deqlm.Stop`, or a dict of its fields.
            solver: likewise.
            gradient: in place of the model's, for this call.
            start: where the solve starts, (B, L, D), or with dimensions of 1 that are repeated, such as the state of
                the token before, (B, 1, D); None starts at zero. It changes what is spent, and the answer within the
                tolerance and one basin of attraction. Not read at padding.
            logits_to_keep: of so many last tokens alone, or of those of an index (K,); 0 is all.
            label_count: the loss is the sum over labels divided by this; None is their number, which makes the mean.
            on_failure: in place of the model's, for this call.
            output_states: also return ``states``.
            label_kind: "shifted" or "aligned" labels, in place of the model's, for this call.

        Raises:
            TypeError: what must be a tensor, a cache or a rule is none.
            RuntimeError: the call is recorded by torch.jit.trace, make_fx or torch.export, and something is solved.
            ValueError: ids or labels out of range or of another shape, no token, a cache of another batch size, a start
                of another shape, or an option that the explicit twin would ignore.
        """
        if self.backbone.implicit:
            refuse_tracing()
        given_solve = (solver, stop, gradient)
        if torch.is_inference_mode_enabled() and not isinstance(self._in_use(given_solve)[0].solver, DERIVATIVE_FREE):
            given = {"ids": ids, "embeddings": embeddings, "mask": mask, "labels": labels, "cache": cache}
            given |= {"start": start, "logits_to_keep": logits_to_keep, "label_count": label_count}
            options: dict[str, Any] = {"use_cache": use_cache, "mode": mode, "on_failure": on_failure}
            options |= {"stop": stop, "solver": solver, "gradient": gradient}
            options |= {"output_states": output_states, "label_kind": label_kind}
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(**map_tensors(_ordinary, given), **options)
        e = self._embed(ids, embeddings)
        if not isinstance(stop, Stop | Mapping | None):
            raise TypeError(f"stop must be a Stop, got {type(stop).__name__}")
        before = self._before(e, mask, cache)
        context = self.backbone.open(e, mask, offset=before.length, committed=before.committed, kept=before.kept)
        how = MODES.make(self.mode if mode is None else mode)
        if self.backbone.implicit:
            state, solution, layers = self._solved(e, context, before, how, given_solve, start, use_cache, on_failure)
            states = (e, state)
        else:
            unused = {"stop": stop, "solver": solver, "gradient": gradient, "start": start, "on_failure": on_failure}
            for name, given in unused.items():
                require(given is None, name, given, "None for an explicit model, which solves nothing")
            states, layers = self._explicit(e, context, before, how, output_states)
            state, solution = states[-1], None
        after = None if not use_cache or layers is None else before.extend(layers, e.shape[1], mask, context.kept)
        logits = self._logits(state, logits_to_keep)
        loss = label_loss(logits, labels, mask, label_count, self.labels if label_kind is None else label_kind)
        return LMOutput(logits, loss, solution, state, after, states if output_states else None)

    def fold_weight_norm(self) -> ImplicitLM:
        """Make the normalised weights plain parameters, with their values of now, and return the model.

        Calls save the normalisation, and what quantises or replaces weights finds plain ones. Optimisers have to be
        made anew, and a model that loads the weights is one of ``weight_norm=False``.

        Raises:
            RuntimeError: weights that are sharded or offloaded.

        Examples:
            >>> from deqlm.layers import Attention, Block
            >>> model = ImplicitLM(Backbone([Block(Attention(8, n_head=2))]), vocab_size=5)
            >>> type(model.fold_weight_norm().backbone.layers[0].mixer.wq)
            <class 'torch.nn.modules.linear.Linear'>
        """
        fold_weight_norm_(self)
        return self

    def _before(self, e: Tensor, mask: Tensor | None, cache: LMCache | None) -> LMCache:
        """Return the cache of earlier tokens, checked against embeddings and mask of the next ones."""
        batch, length = e.shape[:2]
        if mask is not None:
            check_mask(mask, batch, length)
        if cache is not None:
            if not isinstance(cache, LMCache):
                raise TypeError(f"cache must be the LMCache of an earlier call, got {type(cache).__name__}")
            cache.check_fits(self.backbone, batch)
        before = LMCache.empty(self.backbone, batch, e.device) if cache is None else cache
        before.check_next(mask)
        return before

    def _embed(self, ids: Tensor | None, embeddings: Tensor | None) -> Tensor:
        got = "neither" if ids is None else "both"
        require((ids is None) != (embeddings is None), "ids", got, "given, or embeddings in their place")
        if ids is not None:
            embeddings = self.embedding(tokens(ids, vocabulary(self.embedding)))
        return self.dropout(embedded(embeddings, self.backbone.d_model))

    @eagerly
    def _solved(
        self,
        e: Tensor,
        context: Context,
        before: LMCache,
        mode: Mode,
        given: tuple[GivenSolver | None, GivenStop | None, GivenGradient | None],
        start: Tensor | None,
        use_cache: bool,
        on_failure: WhenFailed | None,
    ) -> tuple[Tensor, Solution, tuple[Any, ...] | None]:
        grad = torch.is_grad_enabled()
        how, method = self._in_use(given)
        rule = per_token(how.stop)
        how = how if rule is how.stop else Solve(how.solver, rule)
        if grad:
            method.check(how)
        together = processes_in_step(self.backbone, how, method)
        # the value with grad: in one solve of all tokens, and of the gradient's steps, not of the commit
        as_with_grad = grad or getattr(method, "same_value", False)
        mode = mode.for_model(how.stop, as_with_grad)
        # without grad, a solver that takes derivatives takes them by the state
        context = context if grad else replace(context, constant=True)
        u = self.backbone.project(e, context)
        # the iterates are float32 or wider, whatever the weights are
        origin = torch.zeros_like(e, dtype=torch.promote_types(e.dtype, torch.float32))
        z0 = origin if start is None else context.keep(start_like(start, origin))
        replay = Replay(partial(chunk_forward, self.backbone), e.device, self.backbone)
        # an empty cache has no row to replace
        held = before.layers if before.length else None

        def prepare(e: Tensor, held: Any) -> tuple[Tensor, Any]:
            return self.backbone.project(e, context), held

        def whole(z: Tensor, u: Tensor, held: Any) -> Tensor:
            return replay(z, u, held, context)[0]

        def chunk(first: int, end: int) -> BackboneChunk:
            part = end - first < e.shape[1]
            return BackboneChunk(replay, u[:, first:end], context.tokens(first, end), partial=part)

        sol, done = solve_chunks(
            RowMap(Rows(z0, 1), whole, (e, held), prepare, (u, held), fixed=lambda: True),
            chunk,
            mode,
            how,
            method,
            self.failures.of_call(how, mode, on_failure),
            cache=before.layers,
            commit=use_cache or not as_with_grad,
            token_mask=context.mask if how.stop.per == "token" else None,
            owner=self,
            together=together,
        )
        replay.seal()
        self.last = summary(sol)
        return sol.z if done.y is None or as_with_grad else done.y, sol, done.cache

    def _in_use(self, given: tuple[Any, Any, Any]) -> tuple[Solve, Gradient]:
        """Return solve and gradient method of a call that was ``given`` solver, stop and gradient, or None for each."""
        return in_use((self.solve, self.gradient, self.no_grad), *given)

    def _explicit(
        self, e: Tensor, context: Context, before: LMCache, mode: Mode, output_states: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Return the states, between first and last those of all blocks if asked, and the caches."""
        parts, layers = [], before.layers
        for first, end in mode.unsolved().cuts(e.shape[1]):
            part = context.tokens(first, end)
            seen: list[Tensor] = []
            given = seen if output_states else None
            y, layers = self.backbone(e[:, first:end], None, part, layers, given)
            parts.append([*seen[:-1], y])
        return (e, *(torch.cat(part, dim=1) for part in zip(*parts, strict=True))), layers

    def _logits(self, state: Tensor, keep: int | Tensor) -> Tensor | None:
        if self.head is None:
            none = not isinstance(keep, Tensor) and keep == 0
            require(none, "logits_to_keep", keep, "0 for a model without a head, which makes none")
            return None
        seen = wanted(state, keep)
        return self.head(seen.to(getattr(self.head.weight, "dtype", seen.dtype)))


def _ordinary(t: Tensor) -> Tensor:
    """Return ``t``, or where it is a tensor of inference mode, one that is none."""
    return t.clone() if t.is_inference() else t


def _solve(given: Solve | Mapping[str, Any] | None, default: Solve) -> Solve:
    if given is None:
        return default
    return given if isinstance(given, Solve) else Solve.from_dict(given)
