"""Normalised weights by torchdeq's names: parametrisations of torch, computed once per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from deqlm.compat.torchdeq.norm_options import NormOptions
from deqlm.compat.torchdeq.norm_weights import OldKeys, SpectralNorm, WeightNorm
from deqlm.wrap.once import once_per_call_
from deqlm_solvers.core.checks import require, suggest

__all__ = ["apply_norm", "register_norm", "register_norm_module", "remove_norm", "reset_norm"]

Target = tuple[str | Sequence[str], int | Sequence[int]]

_PLAIN: dict[type[nn.Module], Target] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight", 0)),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), ("weight", 1)),
}
_NORMS: dict[str, Any] = {"weight_norm": WeightNorm, "spectral_norm": SpectralNorm}
_TARGETS: dict[str, dict[type[nn.Module], Target]] = {name: dict(_PLAIN) for name in _NORMS}


def apply_norm(
    model: nn.Module,
    norm_type: str = "weight_norm",
    prefix_filter_out: str | Sequence[str] | None = None,
    filter_out: str | Sequence[str] | None = None,
    args: Any = None,
    **options: Any,
) -> None:
    """Normalise the weights of every layer of a registered type in ``model``.

    Each weight is a parametrisation of torch, so that copies, state dicts and optimisers see it as they should; in a
    solve it is computed once per call. State dicts of torchdeq (``weight_g``, ``weight_v``) are read.

    Args:
        model: is changed.
        norm_type: "weight_norm", "spectral_norm", "none", or a name of `register_norm`; ``args.norm_type`` goes first.
        prefix_filter_out: leave out modules whose name begins so.
        filter_out: leave out modules whose name holds one of these.
        args: options by torchdeq's names for a command line: a dict, a Namespace, or an object with attributes.
        **options: options in place of those, by either of their names; see `NormOptions`.

    Raises:
        KeyError: an unknown norm.
        TypeError: an unknown option.
        ValueError: an option outside its range.

    Examples:
        >>> layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        >>> apply_norm(layer, "weight_norm", norm_no_scale=True, norm_target_norm=0.5)
        >>> round(layer[0].weight.norm(dim=1)[0].item(), 3)
        0.5
    """
    given = NormOptions.of_args(args)
    norm_type = options.pop("norm_type", given.pop("norm_type", norm_type))
    if norm_type == "none":
        return
    norm = _norm(norm_type)
    skipped = _texts(prefix_filter_out), _texts(filter_out)
    targets = _TARGETS[norm_type]
    own = norm in (WeightNorm, SpectralNorm)
    settings = NormOptions.read(given, options) if own else None
    for name, module in list(model.named_modules()):
        kind = parametrize.type_before_parametrizations(module)
        if kind not in targets or name.startswith(skipped[0]) or any(text in name for text in skipped[1]):
            continue
        if settings is None:
            module._deq_norm = norm.apply(module, deq_args=_Args(given), **options)  # type: ignore[assignment]
        else:
            _normalise(module, norm, targets[kind], settings)
    once_per_call_(model)


def reset_norm(model: nn.Module) -> None:
    """Compute the weights of norms of one's own anew; those of this library are made once per call, by themselves."""
    for module in model.modules():
        if callable(made := getattr(module, "_deq_norm", None)):
            made(module)


def remove_norm(model: nn.Module) -> None:
    """Make every normalised weight a plain parameter of the same value.

    Examples:
        >>> layer = nn.Sequential(nn.Linear(3, 3))
        >>> apply_norm(layer)
        >>> remove_norm(layer)
        >>> sorted(layer.state_dict())
        ['0.bias', '0.weight']
    """
    for module in model.modules():
        if callable(getattr(module, "_deq_norm", None)):
            module._deq_norm.remove(module)  # type: ignore[union-attr]
            del module._deq_norm
        for name, made in list(getattr(module, "parametrizations", {}).items()):
            if isinstance(made[0], WeightNorm | SpectralNorm):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def register_norm(norm_type: str, norm_class: Any) -> None:
    """Make a normalisation known to `apply_norm` by a name.

    Args:
        norm_type: the name.
        norm_class: has ``apply(module, deq_args=, **options)``, which returns what `reset_norm` calls with the module
            and what has ``remove(module)``.

    Raises:
        ValueError: one of torchdeq's own names.
    """
    known = ("weight_norm", "spectral_norm", "none")
    require(norm_type not in known, "norm_type", norm_type, f"none of {', '.join(known)}")
    _NORMS[norm_type] = norm_class
    _TARGETS[norm_type] = dict(getattr(norm_class, "_target_modules", {}))


def register_norm_module(
    module_class: type[nn.Module], norm_type: str, names: str | Sequence[str] = "weight", dims: int | Sequence[int] = 0
) -> None:
    """Let `apply_norm` normalise layers of a class too.

    Args:
        module_class: the class, exactly.
        norm_type: "weight_norm", "spectral_norm" or a name of `register_norm`.
        names: of the parameter, or of several.
        dims: the dimension of each that is kept: one norm per index of it.

    Raises:
        KeyError: an unknown norm.

    Examples:
        >>> register_norm_module(nn.Embedding, "weight_norm")
        >>> table = nn.Embedding(4, 3)
        >>> apply_norm(table, norm_no_scale=True)
        >>> round(table.weight.norm(dim=1)[2].item(), 3)
        1.0
    """
    _norm(norm_type)
    _TARGETS[norm_type][module_class] = (names, dims)


def _norm(norm_type: str) -> Any:
    if norm_type not in _NORMS:
        raise KeyError(f"unknown norm_type {norm_type!r}: {suggest(norm_type, {*_NORMS, 'none'})}")
    return _NORMS[norm_type]


def _normalise(module: nn.Module, norm: Any, target: Target, settings: NormOptions) -> None:
    names, dims = target if settings.names is None else (settings.names, settings.dims or 0)
    names = [names] if isinstance(names, str) else list(names)
    dims = [dims] * len(names) if isinstance(dims, int) else list(dims)
    require(len(names) == len(dims), "dims", dims, f"one for each of {names}")
    for name, dim in zip(names, dims, strict=True):
        made = norm(getattr(module, name), dim, settings)
        parametrize.register_parametrization(module, name, made)
        module.register_load_state_dict_pre_hook(OldKeys(name, made))


def _texts(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


class _Args:
    """What norms of one's own read options from, as torchdeq's configuration is read."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.config = dict(given)

    def get(self, key: str, default: Any = None) -> Any:
        return self.config.get(key, default)
