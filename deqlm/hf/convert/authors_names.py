"""The names of tensors in the authors' files."""

from __future__ import annotations

__all__ = ["EMBEDDING", "HEAD", "theirs"]

EMBEDDING, HEAD = "word_emb.emb.weight", "criterion.decoder.weight"

RENAMED = {"embedding.weight": EMBEDDING, "head.weight": HEAD, "head.bias": "criterion.decoder.bias"}


def theirs(name: str) -> str:
    """Return their name of an entry in the state_dict of a `deqlm.models.ImplicitLM`; those of a backbone are ours.

    Examples:
        >>> theirs("embedding.weight"), theirs("backbone.norm_f.weight")
        ('word_emb.emb.weight', 'backbone.norm_f.weight')
    """
    return RENAMED.get(name, name)
