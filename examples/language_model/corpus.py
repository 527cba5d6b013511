"""Text as token ids: Python's help pages or a file, the tokenizer, and batches that depend on the step alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Corpus", "byte_tokenizer", "read_text"]


def read_text(path: Path | None = None) -> str:
    """Return a text file, or without one Python's own help pages, which every installation carries.

    Raises:
        ValueError: a file that is no UTF-8 text.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--data must be UTF-8 text, got {path}: {error}") from error


def byte_tokenizer() -> Any:
    """Return a tokenizer with one token per byte, 256 in all, which `transformers.AutoTokenizer` can load.

    Examples:
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer.decode(tokenizer("fixed point")["input_ids"]), len(tokenizer)
        ('fixed point', 256)
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@dataclass(frozen=True)
class Corpus:
    """A text as ids, its last tenth held out.

    Args:
        train: (N,) int64.
        held_out: (M,) int64.
    """

    train: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, text: str, tokenizer: Any, *, length: int) -> Corpus:
        """Tokenize ``text``, of which windows of ``length`` tokens will be asked.

        Raises:
            ValueError: a text whose held-out tenth is shorter than one window.
        """
        ids = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64)
        cut = len(ids) - len(ids) // 10
        if len(ids) - cut < length:
            raise ValueError(f"--data must hold at least {10 * length} tokens for windows of {length}, got {len(ids)}")
        return cls(ids[:cut], ids[cut:])

    def batch(self, seed: int, step: int, *, size: int, length: int) -> Tensor:
        """Return random windows of the training part, (size, length) int64: a function of ``seed`` and ``step``."""
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - length + 1, (size, 1), generator=draw)
        return self.train[starts + torch.arange(length)]

    def windows(self, *, most: int, length: int) -> Tensor:
        """Return at most ``most`` windows spread over the held-out part, (B, length) int64."""
        count = min(most, len(self.held_out) // length)
        starts = torch.linspace(0, len(self.held_out) - length, count).long()[:, None]
        return self.held_out[starts + torch.arange(length)]
