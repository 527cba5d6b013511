"""Scores by the real lm-eval: one by one, in batches, and as a direct computation has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deqlm.hf import ImplicitForCausalLM
from hf.tiny import FAMILIES, model

pytest.importorskip("lm_eval", reason="needs the extra finetune")
# it calls what is deprecated in the libraries that it uses
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

LETTERS = "abcdefghijklmnopqrst "
SPECIAL = ["<pad>", "<eos>"]
TEXTS = [
    "a bad cat",
    "kind letters are read aloud on stages",
    "so it goes on and on and on for ages in a sane tale",
    "b",
]
CHOICES = [("the cat is", [" bad", " a kind friend of all the dogs"]), ("on and", [" on", " off the rails again"])]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": [" "], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
ROWS = {
    "choice": [{"context": context, "choices": choices} for context, choices in CHOICES],
    "rolling": [{"text": text} for text in TEXTS],
    "until": [{"text": text} for text in TEXTS],
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({each: i for i, each in enumerate([*SPECIAL, *LETTERS])}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>")


def own(made: ImplicitForCausalLM, context: list[int], text: list[int]) -> float:
    """Return the log-likelihood of a text behind a context, by one forward of exactly these tokens."""
    with torch.no_grad():
        logits = made(torch.tensor([[*context, *text][:-1]])).logits[0, len(context) - 1 :]
    return logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum().item()


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path) -> Path:
    # wide enough that some solves of the untrained model do not converge
    made = model(request.param, hidden_size=32)
    made.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    for name, task in TASKS.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS[name])))
        files = {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}}
        written = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **task}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(written))
    return tmp_path


def lm(made, batch):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=made, tokenizer=tokenizer(), batch_size=batch)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def test_likelihoods_are_those_of_each_text_alone(folder):
    made = loaded(folder)
    pairs = [(context, choice) for context, choices in CHOICES for choice in choices]
    encode = tokenizer().encode
    wanted = [own(made, encode(context), encode(text)) for context, text in pairs]
    wanted_whole = [own(made, [SPECIAL.index("<eos>")], encode(text)) for text in TEXTS]
    for batch in (1, 8):
        ours = lm(made, batch)
        got = [score for score, _ in ours.loglikelihood(requests("loglikelihood", pairs))]
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-5)
        whole = ours.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in TEXTS]))
        assert whole == pytest.approx(wanted_whole, rel=1e-6, abs=1e-5)


def test_without_the_section_of_evaluation_they_are_not(folder):
    made = loaded(folder, deq=None)
    whole = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    alone, together = (lm(made, batch).loglikelihood_rolling(whole) for batch in (1, 8))
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) > 1e-3


def test_texts_are_those_of_each_prompt_alone(folder):
    made = loaded(folder)
    asked = requests("generate_until", [(text, {"until": [" "], "max_gen_toks": 6}) for text in TEXTS])
    alone, together = (lm(made, batch).generate_until(asked) for batch in (1, 8))
    assert alone == together
    ids = tokenizer()(TEXTS[0], return_tensors="pt").input_ids
    new = made.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert tokenizer().decode(new, skip_special_tokens=True).split(" ")[0] == alone[0]


def loaded(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", **{"deq": "evaluation", **options}).eval()


def test_the_command_gives_the_same_in_any_batch(folder):
    scores = []
    for batch in (1, 8):
        out = folder / f"results_{batch}"
        options = f"pretrained={folder / 'model'},trust_remote_code=True,deq=evaluation"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", options, "--device", "cpu"]
        command += ["--tasks", *TASKS, "--include_path", str(folder), "--batch_size", str(batch)]
        command += ["--output_path", str(out), "--log_samples"]
        environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for file in sorted(out.rglob("*.jsonl")) for line in file.read_text().splitlines()]
        assert len(lines) == sum(map(len, ROWS.values()))
        scores.append([answer for line in lines for answer in flat(line["filtered_resps"])])
    for alone, together in zip(*scores, strict=True):
        assert together == (pytest.approx(alone, rel=1e-6, abs=1e-5) if isinstance(alone, float) else alone)


def flat(answer):
    """Return numbers and texts of nested lists as one list."""
    if not isinstance(answer, list):
        try:
            return [float(answer)]
        except ValueError:
            return [answer]
    return [part for each in answer for part in flat(each)]
