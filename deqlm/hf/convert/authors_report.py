"""What became of a configuration and of the tensors of the authors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ImportReport"]


@dataclass(frozen=True)
class ImportReport:
    """Names every key of an imported configuration: used, or without effect in the authors' code.

    Attributes:
        family: "mamba2" or "llama".
        implicit: False for an explicit model.
        weights: which tensors were copied, or that there were none.
        used: key -> what it became here.
        no_effect: key -> why it changes nothing.
        stored: the values among these that the model's configuration keeps, for `deqlm.hf.export_implicit_llm`.
        notes: where the model behaves otherwise than theirs.

    Examples:
        >>> report = ImportReport("llama", False, "none given", {"d_model": "hidden_size"}, {"gamma": "unused"}, {}, ())
        >>> print(report)
        explicit llama; weights: none given
        1 keys are used:
          d_model: hidden_size
        1 keys have no effect there, nor here:
          gamma: unused
    """

    family: str
    implicit: bool
    weights: str
    used: Mapping[str, str]
    no_effect: Mapping[str, str]
    stored: Mapping[str, Any]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        kind = "implicit" if self.implicit else "explicit"
        lines = [f"{kind} {self.family}; weights: {self.weights}"]
        for title, table in (("are used", self.used), ("have no effect there, nor here", self.no_effect)):
            if table:
                lines.append(f"{len(table)} keys {title}:")
                lines += [f"  {key}: {text}" for key, text in table.items()]
        if self.notes:
            lines.append("Other than there:")
            lines += [textwrap.fill(note, 110, initial_indent="- ", subsequent_indent="  ") for note in self.notes]
        return "\n".join(lines)
