"""Looped decoders of transformers, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deqlm.looped.blocks import loop
from deqlm.looped.names import GATE

__all__ = ["load_looped"]


def load_looped(folder: str | Path, **options: Any) -> Any:
    """Load a model that `deqlm.loop` looped and ``save_pretrained`` saved, with its gate and its solve.

    The files are those of the model before, with the gate beside the weights and "deqlm_loop" in config.json: whoever
    loads them without this gets the model that is not looped.

    Args:
        folder: that ``save_pretrained`` wrote.
        **options: of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        FileNotFoundError: there is no such folder or no config.json in it.
        ValueError: a model that is not looped.

    Examples:
        >>> import deqlm
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
        >>> model = deqlm.loop(LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)), layers=(1, 2))
        >>> model.save_pretrained("looped")
        >>> load_looped("looped").config.deqlm_loop["layers"]
        [1, 2]
    """
    from transformers import AutoModelForCausalLM

    about = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("deqlm_loop")
    if about is None:
        raise ValueError(f"{folder} holds a model that is not looped: its config.json has no deqlm_loop")
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    first, end = about["layers"]
    loop(model, (first, end), solver=about["solver"], stop=about["stop"], gradient=about["gradient"])
    gate = _gate(Path(folder))
    own = dict(model.named_parameters())
    (name,) = [name for name in own if name.endswith("deq.inject.gate")]
    with torch.no_grad():
        own[name].copy_(gate)
    return model


def _gate(folder: Path) -> torch.Tensor:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (no mapping)
                if key.endswith(GATE):
                    return weights.get_tensor(key)
    raise ValueError(f"{folder} holds no weight {GATE!r}: was it saved by save_pretrained?")
