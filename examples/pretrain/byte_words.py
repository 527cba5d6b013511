"""The tokenizer of bytes as transformers loads it, with the ids of `examples.pretrain.documents.ByteTokenizer`."""

from __future__ import annotations

from typing import Any

from examples.pretrain.documents import ByteTokenizer

__all__ = ["byte_words"]

END = "<|endoftext|>"


def byte_words() -> Any:
    """Return a tokenizer whose id of a byte is the byte, and 256 the end of a document.

    Examples:
        >>> byte_words()("a\\n")["input_ids"], byte_words().eos_token_id
        ([97, 10], 256)
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    library = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(END, special=True)])
    assert library.token_to_id(END) == ByteTokenizer.end
    return PreTrainedTokenizerFast(tokenizer_object=library, eos_token=END, pad_token=END)


def _letters() -> list[str]:
    """Return the letter that stands for each byte in byte-level vocabularies: itself where it can be printed."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]
