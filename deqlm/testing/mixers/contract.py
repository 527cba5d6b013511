"""What a mixer must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from deqlm.testing.check import Named, bind, run_all
from deqlm.testing.mixers import chunks, context, padding
from deqlm.testing.mixers.inputs import Make

__all__ = ["check_mixer", "mixer_checks"]

WIDTH = 16
"""d_model of a mixer that is given as a class."""

PROMISES: tuple[Callable[[Make], None], ...] = (
    chunks.has_the_names_of_a_mixer,
    chunks.chunks_equal_the_whole,
    chunks.caches_do_not_depend_on_the_chunks,
    chunks.a_cache_is_read_and_never_written,
    chunks.rows_of_a_cache_can_be_chosen,
    chunks.later_tokens_and_other_rows_change_nothing,
    chunks.nothing_injected_is_zero_injected,
    chunks.nothing_stays_on_the_module,
    chunks.says_its_cost_and_where_input_enters,
    chunks.finite_differences_agree,
    padding.padding_changes_no_real_token,
    padding.generation_goes_on_from_padded_prompts,
    padding.nan_at_padding_reaches_no_gradient,
    context.noise_and_weights_hold_within_a_call,
    context.calls_its_layers_in_every_evaluation,
    context.weight_norm_changes_no_value,
    context.can_be_copied_pickled_and_saved,
    context.precisions_are_kept,
    context.can_be_made_on_the_meta_device,
)


def check_mixer(mixer: type[nn.Module] | Callable[..., Any]) -> None:
    """Hold a mixer to what `deqlm.layers.Mixer` promises: causal, pure, chunks equal the whole, padding is inert.

    Put it into the tests of a package that brings a mixer. It takes seconds, on the CPU. A `Block` around a mixer keeps
    the same promises and can be checked likewise.

    Args:
        mixer: a class, made as ``mixer(16)``, or a function that makes a small mixer. It is called with ``dropout=0.5``
            too; a mixer that takes no such option is not asked about noise.

    Raises:
        AssertionError: the first promise that broke: its name, what it asks, and what was seen.
        TypeError: an object in place of what makes one, or a class that needs more than a width.

    Examples:
        >>> from deqlm.layers import Attention
        >>> from deqlm.testing import check_mixer
        >>> check_mixer(lambda **more: Attention(12, n_head=2, **more))
    """
    run_all(mixer_checks(mixer))


def mixer_checks(mixer: type[nn.Module] | Callable[..., Any]) -> list[Named]:
    """Return (name, check) of everything that `check_mixer` asks, so that a test can be made of each.

    Args:
        mixer: as for `check_mixer`.

    Returns:
        pairs of a name, such as "chunks_equal_the_whole", and a function of no argument that raises AssertionError.

    Raises:
        TypeError: as `check_mixer`.

    Examples:
        >>> from deqlm.layers import Attention
        >>> from deqlm.testing import mixer_checks
        >>> dict(mixer_checks(lambda: Attention(8, n_head=2)))["chunks_equal_the_whole"]()
    """
    make = _of_class(mixer) if isinstance(mixer, type) else mixer
    if isinstance(mixer, nn.Module) or not callable(mixer):
        raise TypeError(f"mixer must be a class or a function that makes one, got an object {type(mixer).__name__}")
    label = mixer.__name__ if isinstance(mixer, type) else type(make()).__name__
    return [bind(promise, make, label, promise.__name__) for promise in PROMISES]


def _of_class(cls: type) -> Make:
    """Return what makes a mixer of a class, from its width alone."""

    def make(**more: Any) -> Any:
        return cls(WIDTH, **more)

    try:
        make()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"mixer {cls.__name__} cannot be made as {cls.__name__}({WIDTH}): {error}; give a function that makes a "
            f"small one, such as lambda **more: {cls.__name__}({WIDTH}, ..., **more)"
        ) from error
    return make
