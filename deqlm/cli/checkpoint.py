"""Directories that hold a saved model: what is read of them, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deqlm.cli.errors import UserError

if TYPE_CHECKING:
    from deqlm.hf import ImplicitConfig

__all__ = ["has_tokenizer", "hugging_face", "read_config"]

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def hugging_face() -> Any:
    """Return the module `deqlm.hf`, which is imported when a command first needs it.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        import deqlm.hf
    except ImportError as error:
        raise UserError(
            f'reading a model from a directory needs the extra hf: pip install "deqlm[hf]" ({error})'
        ) from error
    return deqlm.hf


def read_config(directory: str | Path) -> ImplicitConfig:
    """Return the configuration that a directory holds.

    Raises:
        UserError: no such directory, no config.json, a broken one, or that of another family of models.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"there is no directory {str(directory)!r}")
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{str(directory)!r} holds no config.json; model.save_pretrained(DIR) writes one")
    try:
        keys = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(keys, dict):
        raise UserError(f"{file} must hold an object, got {type(keys).__name__}")
    if "backbone_config" in keys:
        raise UserError(
            f"{file} is of the paper's authors; deqlm.hf.import_implicit_llm makes our model of it, to be saved"
        )
    family = keys.get("model_type")
    known = _families()
    if family not in known:
        raise UserError(f"{file} is of a {family!r} model; known families: {', '.join(known)}")
    try:
        return known[family].from_pretrained(folder, local_files_only=True)
    except (TypeError, ValueError, KeyError, OSError) as error:
        text = error.args[0] if error.args else error
        raise UserError(f"{file}: {text}") from error


def _families() -> dict[str, type[ImplicitConfig]]:
    hugging_face()
    from deqlm.hf.register import FAMILIES

    return {config.model_type: config for config, _ in FAMILIES}


def has_tokenizer(directory: str | Path) -> bool:
    """Say whether a tokenizer was saved beside the model."""
    return any((Path(directory) / name).is_file() for name in TOKENIZER)
