"""Texts from wherever they are, one document after another, and the tokenizers that turn them into ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

__all__ = ["ByteTokenizer", "CorpusError", "Tokenizer", "documents", "make_tokenizer"]

SUFFIXES = (".txt", ".jsonl", ".parquet")


class CorpusError(ValueError):
    """A corpus or a tokenizer that cannot be used; the message is all that a user needs."""


class Tokenizer(Protocol):
    """What makes ids of a text.

    Attributes:
        name: tells it from others.
        size: ids are below this.
        end: the id that stands behind every document.
    """

    name: str
    size: int
    end: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...


class ByteTokenizer:
    """One id per byte, and one for the end of a document: 257."""

    name, size, end = "bytes", 257, 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return list(text.encode("utf-8", errors="replace"))


class FileTokenizer:
    """A tokenizer.json of the library tokenizers.

    Args:
        path: the file, or a folder that holds it.
        end: text of the token that stands behind every document.
    """

    def __init__(self, path: Path, end: str) -> None:
        from tokenizers import Tokenizer as Library

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise CorpusError(f"tokenizer {str(path)!r} is neither 'bytes' nor a tokenizer.json nor a folder with one")
        try:
            self._library = Library.from_file(str(file))
        except Exception as error:  # of its own type
            raise CorpusError(f"{file} is no tokenizer: {error}") from error
        found = self._library.token_to_id(end)
        if found is None:
            raise CorpusError(f"{file} has no token {end!r} for the end of a document; name another one by 'end'")
        self.name, self.end = file.read_text(encoding="utf-8"), found
        self.size = self._library.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._library.encode(text, add_special_tokens=False).ids


def make_tokenizer(name: str, vocab_size: int, end: str = "<|endoftext|>") -> Tokenizer:
    """Return a tokenizer whose ids a model of ``vocab_size`` tokens has.

    Args:
        name: "bytes", or the path of a tokenizer.json or of its folder.
        vocab_size: of the model.
        end: text of the token behind a document, not used by "bytes".

    Raises:
        CorpusError: no tokenizer, or one that does not fit the model.
    """
    made: Any = ByteTokenizer() if name == "bytes" else FileTokenizer(Path(name), end)
    if made.size > vocab_size:
        raise CorpusError(
            f"tokenizer {name!r} makes ids up to {made.size - 1}, and the model's vocab_size is {vocab_size}: it does "
            "not fit; take another tokenizer, or a model of at least so many tokens"
        )
    return made


def documents(source: str | None) -> Iterator[str]:
    """Yield the documents of a source, always in the same order; empty ones are left out.

    Args:
        source: a .txt (one document), .jsonl (the field "text" of each line) or .parquet (the column "text"), a folder
            of such files, "hf:NAME" or "hf:NAME:CONFIG" (the split "train" of a data set of the Hugging Face hub,
            streamed), or None for Python's own help pages.

    Raises:
        CorpusError: there is no such source, or it cannot be read.
    """
    if source is None:
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    elif source.startswith("hf:"):
        yield from filter(None, _streamed(source))
    else:
        yield from filter(None, _files(Path(source)))


def _files(path: Path) -> Iterator[str]:
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise CorpusError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise CorpusError(f"{file} must end in one of {', '.join(SUFFIXES)}")
        try:
            yield from {".txt": _text, ".jsonl": _lines, ".parquet": _table}[file.suffix](file)
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{file} cannot be read: {error}") from error


def _text(file: Path) -> Iterator[str]:
    yield file.read_text(encoding="utf-8")


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise CorpusError(f"line {number} of {file} has no field 'text': {error!r}") from error
            if not isinstance(text, str):
                raise CorpusError(f"'text' in line {number} of {file} must be text, got {type(text).__name__}")
            yield text


def _table(file: Path) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise CorpusError(f"{file} needs the package pyarrow: pip install pyarrow") from error
    try:
        table = parquet.ParquetFile(file)
        for part in table.iter_batches(columns=["text"]):
            yield from (str(text) for text in part.column(0).to_pylist() if text is not None)
    except Exception as error:  # of its own types
        raise CorpusError(f"{file} cannot be read as parquet with a column 'text': {error}") from error


def _streamed(source: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CorpusError(f"{source} needs the package datasets: pip install datasets") from error
    _, *names = source.split(":")
    try:
        for row in load_dataset(*names, split="train", streaming=True):
            yield row["text"]
    except CorpusError:
        raise
    except Exception as error:  # of many types
        raise CorpusError(f"{source} cannot be streamed: {error}") from error
