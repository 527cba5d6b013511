"""How a saved folder names the classes that read it, for processes that have not imported the package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["AUTO_MODELS", "InstalledCode", "classes_of", "named", "others", "write_import"]

AUTO_MODELS = (AutoModel, AutoModelForCausalLM)
"""Classes of transformers that know both families."""

MODULE = "modeling_deqlm"
"""The file in a folder, and the module of the names in its ``auto_map``."""


class InstalledCode:
    """What a configuration and a model of an installed package have in common: a folder names them, and copies no code.

    transformers registers the classes that it has loaded with ``trust_remote_code=True``, and would copy the files that
    define them into every folder that is saved from then on.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Have the file that defines this class copied into saved folders, as transformers does.

        Nothing is copied of classes that the Auto classes know: their folders import them.

        Args:
            auto_class: of transformers, or its name; None is that of the base class.
        """
        if cls not in _known_classes():
            given = () if auto_class is None else (auto_class,)
            super().register_for_auto_class(*given)  # type: ignore[misc]


def classes_of(config: Any) -> dict[str, type]:
    """Return the classes that read a folder with this configuration, by the name of their Auto class.

    Empty where the Auto classes do not know the configuration, or only this program does.
    """
    kind = type(config)
    if CONFIG_MAPPING._extra_content.get(kind.model_type) is not kind:
        return {}
    models = {auto.__name__: auto._model_mapping.get(kind, None) for auto in AUTO_MODELS}
    found = {AutoConfig.__name__: kind, **{name: model for name, model in models.items() if model is not None}}
    return {} if any(each.__module__ == "__main__" for each in found.values()) else found


def named(classes: Mapping[str, type]) -> dict[str, str]:
    """Return the ``auto_map`` of `classes_of`."""
    return {auto: f"{MODULE}.{each.__name__}" for auto, each in classes.items()}


def others(auto_map: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entries of an ``auto_map`` that are not written by `named`; a hub puts the repository before them.

    Examples:
        >>> others({"AutoConfig": "someone/some--modeling_deqlm.ImplicitLlamaConfig", "AutoModel": "mine.Mine"})
        {'AutoModel': 'mine.Mine'}
    """
    return {
        auto: name
        for auto, name in (auto_map or {}).items()
        if not (isinstance(name, str) and name.rpartition("--")[2].startswith(f"{MODULE}."))
    }


def write_import(folder: Path, classes: Iterable[type]) -> None:
    """Write the file that the ``auto_map`` of a folder names: a comment, and one import per package."""
    by_place: dict[str, set[str]] = {}
    for each in classes:
        place = "deqlm.hf" if each.__module__.startswith("deqlm.hf.") else each.__module__
        by_place.setdefault(place, set()).add(each.__name__)
    lines = [f"from {place} import {', '.join(sorted(names))}" for place, names in sorted(by_place.items())]
    text = "\n".join(["# Run with trust_remote_code=True where nothing has imported the package.", *lines, ""])
    (folder / f"{MODULE}.py").write_text(text)


def _known_classes() -> set[type]:
    configs = CONFIG_MAPPING._extra_content.values()
    return {*configs, *(model for auto in AUTO_MODELS for model in auto._model_mapping._extra_content.values())}
