"""Arguments of transformers' calls, checked and brought into the form of `deqlm.models.ImplicitLM`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from deqlm.hf.cache import DecodeCache
from deqlm.models import LMCache
from deqlm.models.inputs import require_tensor
from deqlm_solvers import Stop
from deqlm_solvers.core.checks import explain, require

__all__ = ["check_kinds", "check_positions", "one_cache", "one_stop", "real_tokens", "refuse_unknown"]

PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments by which collators tell that texts are packed."""
UNPACKED = "give each text a row of its own, padded, with an attention_mask (packing=False, padding_free=False)"


def one_cache(past_key_values: Any, cache: Any) -> DecodeCache | None:
    """Return the cache, whichever of its two names it was given by.

    Raises:
        ValueError: both are given.
        TypeError: a cache of another kind.
    """
    require(past_key_values is None or cache is None, "cache", cache, "None where past_key_values is given")
    held = cache if past_key_values is None else past_key_values
    if held is not None and not isinstance(held, DecodeCache):
        raise TypeError(
            f"past_key_values must be a deqlm.hf.DecodeCache, got {type(held).__name__}: it holds what solves of "
            "earlier tokens left, so keys and values made elsewhere, as in prefix tuning, have no place; tune a prompt "
            "instead"
        )
    return held


def one_stop(given: Stop | Mapping[str, Any] | None) -> Stop | None:
    """Return the stopping rule of a call, given as an object or as a dict of its fields.

    Raises:
        TypeError: an unknown field.
        ValueError: anything else.

    Examples:
        >>> one_stop({"rtol": 1e-3}) == Stop(rtol=1e-3)
        True
    """
    if isinstance(given, Mapping):
        return Stop.from_dict(given)
    require(given is None or isinstance(given, Stop), "stop", given, "a Stop, or a dict of its fields")
    return given


def real_tokens(attention_mask: Tensor | None, tokens: Tensor, held: LMCache | None) -> Tensor | None:
    """Return which of ``tokens`` are real, (B, L) bool, or None where all are.

    Args:
        attention_mask: (B, P + L) of zeros and ones, of the P tokens held and of these; None where all are real.
        tokens: (B, L) or (B, L, D).
        held: what holds earlier tokens.

    Raises:
        TypeError: a mask that is no tensor.
        ValueError: a mask of another shape, with other values, without a real token in a row, or that tells another
            number of real tokens than the cache holds.

    Examples:
        >>> real_tokens(torch.tensor([[0, 1, 1]]), torch.tensor([[5, 6, 7]]), None)
        tensor([[False,  True,  True]])
    """
    if attention_mask is None:
        return None
    require_tensor("attention_mask", attention_mask)
    require(not attention_mask.is_complex(), "attention_mask", attention_mask.dtype, "bool, or of zeros and ones")
    batch, length = tokens.shape[:2]
    past = 0 if held is None else held.length
    want = (batch, past + length)
    rule = f"of shape {want}: all tokens, of which {past} are in the cache"
    require(attention_mask.shape == want, "attention_mask", tuple(attention_mask.shape), rule)
    real = attention_mask.bool()
    other = (attention_mask != 0) & (attention_mask != 1)
    count = real[:, :past].sum(1)
    known = past if held is None or held.committed is None else held.committed
    # one read of the device tells all; what is wrong is looked for where something is
    found = torch.stack((other.any(), real.all(), (~real.any(1)).any(), (count != known).any())).tolist()
    foreign, whole, lacking, differs = found
    if foreign:
        require(False, "attention_mask", attention_mask[other][:1].tolist(), "of zeros and ones")
    if whole and (held is None or held.committed is None):
        return None
    if lacking:
        empty = (~real.any(1)).nonzero().flatten().tolist()
        require(False, "attention_mask", f"zeros alone in rows {empty}", "1 at one token of each row at least")
    if differs:
        ones = torch.as_tensor(known, device=count.device).expand(batch).tolist()
        require(False, "attention_mask", count.tolist(), f"{ones} ones in the cached part")
    return real[:, past:]


def check_positions(
    position_ids: Tensor | None,
    cache_position: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    held: LMCache | None,
) -> None:
    """Raise unless positions, where they are given, are those that follow from mask and cache.

    Args:
        position_ids: (B, L) or (1, L), of real tokens.
        cache_position: (L,), of token slots.
        tokens: (B, L) or (B, L, D).
        mask: (B, L) bool, or None where all tokens are real.
        held: what holds earlier tokens.

    Raises:
        TypeError: positions that are no tensor.
        ValueError: others, such as those of several texts in one row.
    """
    for name, given in (("position_ids", position_ids), ("cache_position", cache_position)):
        if given is not None:
            require_tensor(name, given)
    batch, length = tokens.shape[:2]
    past = 0 if held is None else held.length
    if cache_position is not None:
        want = torch.arange(past, past + length, device=cache_position.device)
        if not torch.equal(cache_position, want):
            require(False, "cache_position", cache_position.tolist(), f"from {past} to {past + length - 1}")
    if position_ids is None:
        return
    shapes = {(batch, length), (1, length)}
    require(tuple(position_ids.shape) in shapes, "position_ids", tuple(position_ids.shape), f"one of {sorted(shapes)}")
    before = past if held is None or held.committed is None else held.committed[:, None]
    real = torch.ones(batch, length, dtype=torch.bool, device=position_ids.device) if mask is None else mask
    want = real.long().cumsum(1) - 1 + before
    wrong = (position_ids != want) & real
    if not bool(wrong.any()):
        return
    row, token = wrong.nonzero()[0].tolist()
    got = position_ids.expand(batch, length)[row]
    found = got[token].item()
    if token and found < got[token - 1].item():
        raise ValueError(
            f"position_ids start again at token {token} of row {row}, as those of texts that are packed into one row "
            f"do; the state of a solve would pass from text to text: {UNPACKED}"
        )
    rule = f"{want[row, token].item()} at token {token} of row {row}, as follows from attention_mask and cache"
    require(False, "position_ids", found, rule)


def check_kinds(token_type_ids: Tensor | None) -> None:
    """Raise unless token types, which tokenizers make, are all of one kind: zeros.

    Raises:
        TypeError: they are no tensor.
        ValueError: another kind.

    Examples:
        >>> check_kinds(torch.zeros(1, 3, dtype=torch.int64))
    """
    if token_type_ids is None:
        return
    require_tensor("token_type_ids", token_type_ids)
    if bool(token_type_ids.any()):
        others = token_type_ids[token_type_ids != 0]
        require(False, "token_type_ids", others[:1].tolist(), "zeros or None: a model has one kind of token")


def refuse_unknown(model: str, unknown: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise if a call was given arguments that it does not know, but for those that are None.

    Args:
        model: name of the class.
        unknown: those arguments.
        known: names of the others.

    Raises:
        ValueError: arguments of packed texts.
        TypeError: others; the message names the nearest one.
    """
    for name, value in unknown.items():
        if value is None:
            continue
        if name in PACKED:
            raise ValueError(f"{name} must be None, because texts cannot be packed into one row: {UNPACKED}")
        raise TypeError(f"{model} got an unknown argument {name!r}: {explain(name, known)}")
