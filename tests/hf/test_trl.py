"""The real trainers of TRL, on both families."""

from __future__ import annotations

import math

import pytest

from hf.tiny import FAMILIES, model

pytest.importorskip("trl", reason="needs the extra finetune")
# it calls what is deprecated in the libraries that it uses
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

COMMON = {
    **{"per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-3, "max_length": 24},
    **{"report_to": "none", "use_cpu": True, "save_strategy": "no", "bf16": False, "disable_tqdm": True},
}
TEXTS = [{"text": text} for text in ("a bad cat", "kind letters are read", "so it goes on and on", "on and off")]
ANSWERS = [{"prompt": "a cat ", "chosen": "is good", "rejected": "is bad at all"}] * 4


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    from hf.test_lm_eval import tokenizer

    sizes = {"pad_token_id": 0, "eos_token_id": 1}
    model(request.param, **sizes).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_text_is_learnt(folder, smoothing):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    options = SFTConfig(output_dir=str(folder / "out"), label_smoothing_factor=smoothing, **COMMON)
    made = SFTTrainer(str(folder / "model"), args=options, train_dataset=Dataset.from_list(TEXTS))
    first, last = losses(made)
    assert math.isfinite(last)
    assert first == pytest.approx(math.log(23), rel=0.05)


def test_preferences_are_learnt_from_a_margin_of_zero(folder):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    options = DPOConfig(output_dir=str(folder / "out"), **COMMON)
    made = DPOTrainer(str(folder / "model"), args=options, train_dataset=Dataset.from_list(ANSWERS))
    first, last = losses(made)
    # policy and reference are solved in two ways, within their tolerances
    assert first == pytest.approx(math.log(2), abs=1e-2)
    assert last < first
