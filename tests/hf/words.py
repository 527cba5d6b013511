"""A tokenizer of one letter per token, from "a" on, for tests without files from elsewhere."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from hf.tiny import VOCAB

LETTERS = string.ascii_lowercase[:VOCAB]


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="a"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    made.decoder = Fuse()
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="a", eos_token="b", padding_side="left", model_input_names=names
    )
