"""Some rows of what a map is given, whatever kind of tensor it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deqlm_solvers.core.kinds import is_dense

__all__ = ["first_dims", "healthy_source", "poisoned", "replaced", "some", "spared"]


def first_dims(t: Tensor, count: int) -> tuple[int, ...]:
    """Return the first ``count`` dimensions of a tensor; none where a tensor of tensors (nested) has no shape.

    Examples:
        >>> first_dims(torch.zeros(2, 3, 4), 2)
        (2, 3)
    """
    return () if t.is_nested else tuple(t.shape[:count])


def some(t: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """Return the slices ``index`` of a tensor, or the tensor itself where torch cannot cut it.

    A tensor that is not cut is taken as shared by all rows; whoever cuts compares the map with that of the whole.

    Args:
        t: dense, sparse or of any other kind.
        index: of the slices, (K,) int64.
        dim: that is cut.

    Examples:
        >>> some(torch.eye(3).to_sparse(), torch.tensor([1])).to_dense()
        tensor([[0., 1., 0.]])
    """
    try:
        index = index.to(t.device)
        if t.layout in (torch.strided, torch.sparse_coo):
            return t.index_select(dim, index)
        return t.to_sparse_coo().index_select(dim, index).to_sparse(layout=t.layout)
    except (RuntimeError, TypeError):
        return t


def healthy_source(bad: Tensor) -> Tensor:
    """Return per row which row to read: itself, or the first healthy one where ``bad`` (B,) is True."""
    index = torch.arange(bad.shape[0], device=bad.device)
    return torch.where(bad, bad.long().argmin(), index)


def replaced(t: Tensor, bad: Tensor, source: Tensor, batch_dims: int) -> Tensor | None:
    """Return a per-row tensor with another row in place of ``bad`` rows (B,), differentiably.

    None where torch cannot do it, as for most kinds of tensors that are not dense.

    Args:
        t: whose first ``batch_dims`` dimensions are those of the batch.
        bad: rows, in the order of these dimensions; not all of them.
        source: which row each row reads, (B,): itself, or one and the same healthy row where it is bad.
        batch_dims: at least 1.
    """
    bad, source = bad.to(t.device), source.to(t.device)
    try:
        if is_dense(t):
            return t.reshape(bad.shape[0], *t.shape[batch_dims:]).index_select(0, source).reshape(t.shape)
        if batch_dims > 1:
            return None
        if t.layout is torch.sparse_coo:
            return _without_entries(t, bad)
        return _without_entries(t.to_sparse_coo(), bad).to_sparse(layout=t.layout)
    except (RuntimeError, TypeError):
        return None


def poisoned(t: Tensor, bad: Tensor) -> Tensor | None:
    """Return a per-row tensor with NaN in ``bad`` rows (B,): what reaches healthy rows from there cannot hide.

    None where it cannot hold NaN.
    """
    if not (t.is_floating_point() or t.is_complex()):
        return None
    bad = bad.to(t.device)
    try:
        if is_dense(t):
            return t.reshape(bad.shape[0], -1).masked_fill(bad[:, None], torch.nan).reshape(t.shape)
        coo = t.to_sparse_coo().coalesce()
        hit = bad[coo.indices()[0]].reshape(-1, *[1] * coo.dense_dim())
        coo = _coo(coo.indices(), coo.values().masked_fill(hit, torch.nan), coo)
        return coo if t.layout is torch.sparse_coo else coo.to_sparse(layout=t.layout)
    except (RuntimeError, TypeError):
        return None


def spared(
    given: Mapping[int, Tensor],
    bad: Tensor,
    source: Tensor,
    batch_dims: int,
    apart: Callable[[int, Tensor | None], bool | None],
) -> dict[int, Tensor]:
    """Return those of the per-row tensors ``given`` that healthy rows do not share, ``bad`` rows (B,) replaced.

    Args:
        given: tensors by number.
        bad: rows.
        source: as for `replaced`.
        batch_dims: likewise.
        apart: says whether healthy rows are blind to a change of one of them; None where that cannot be told.
    """
    made = {}
    for i, t in given.items():
        other = replaced(t, bad, source, batch_dims)
        blind = apart(i, poisoned(t, bad))
        if other is not None and (apart(i, other) if blind is None else blind):
            made[i] = other
    return made


def _without_entries(t: Tensor, bad: Tensor) -> Tensor:
    """Return the same for a COO tensor; torch's own selection of its rows has no gradient to the entries."""
    t = t.coalesce()
    row, columns = t.indices()[0], t.indices()[1:]
    to_fill = bad.nonzero()[:, 0]
    kept = (~bad[row]).nonzero()[:, 0]
    copied = (row == bad.long().argmin()).nonzero()[:, 0]
    entry = torch.cat([kept, copied.repeat(len(to_fill))])
    rows = torch.cat([row[kept], to_fill.repeat_interleave(len(copied))])
    return _coo(torch.cat([rows[None], columns[:, entry]]), t.values()[entry], t)


def _coo(indices: Tensor, values: Tensor, like: Tensor) -> Tensor:
    # indices made from right ones are right, and torch warns where nobody says whether to check them
    return torch.sparse_coo_tensor(indices, values, like.shape, device=like.device, check_invariants=False)
