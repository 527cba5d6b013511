"""``deqlm generate``, end to end through `main`."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from deqlm.cli.main import main
from models.families import contract

hf = pytest.importorskip("deqlm.hf")


def byte_tokenizer():
    """One token per byte, as a tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def save(folder, *, tokenizer, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **options}
    if sizes.get("implicit", True):
        sizes["deq"] = {"no_grad": {"stop": {"max_iter": 5, "rtol": 0.05, "per": "token"}}}
    model = hf.ImplicitLlamaForCausalLM(hf.ImplicitLlamaConfig(vocab_size=256 if tokenizer else 13, **sizes))
    if model.config.implicit:
        contract(model.lm)
    model.save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("text"), tokenizer=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("ids"), tokenizer=False)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory):
    return save(tmp_path_factory.mktemp("explicit"), tokenizer=False, implicit=False)


def run(capsys, *argv):
    status = main(["generate", "--max-new-tokens", "4", *argv])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_text_is_continued(folder, capsys):
    status, text, err = run(capsys, "--model", folder, "--prompt", "Once")
    assert (status, err) == (0, "")
    tokenizer = byte_tokenizer()
    ids = tokenizer("Once", return_tensors="pt")["input_ids"]
    model = hf.ImplicitLlamaForCausalLM.from_pretrained(folder)
    want = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert text == tokenizer.decode(want[0]) + "\n"


def test_the_prompt_may_come_from_stdin(folder, capsys, monkeypatch):
    _, want, _ = run(capsys, "--model", folder, "--prompt", "Once")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n"))
    assert run(capsys, "--model", folder, "--prompt", "-") == (0, want, "")


def test_ids_go_in_and_out_without_a_tokenizer(plain, capsys):
    status, text, _ = run(capsys, "--model", plain, "--ids", "3 1, 4")
    assert status == 0
    ids = list(map(int, text.split()))
    assert ids[:3] == [3, 1, 4]
    assert len(ids) == 7
    assert run(capsys, "--model", plain, "--ids", "5")[0] == 0


def test_sampling_repeats_with_its_seed(plain, capsys):
    argv = ["--model", plain, "--ids", "3 1 4", "--temperature", "1.5", "--max-new-tokens", "9"]
    texts = [run(capsys, *argv, "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    # the most likely token alone is the greedy choice
    greedy = run(capsys, *argv[:4])[1]
    assert run(capsys, *argv[:4], "--temperature", "2", "--top-k", "1")[1] == greedy


def test_options_reach_the_solves(plain, capsys):
    argv = ["--model", plain, "--ids", "3 1 4", "--stats"]
    status, _, err = run(capsys, *argv, "--rtol", "1e-6", "--max-iter", "2", "--mode", "chunked:size=2")
    assert status == 0
    assert "warning: generate: the solves of 1 of 1 prompts" in err
    assert "3 + 4 tokens in" in err
    assert "prompt: 4 evaluations of f" in err
    assert "new tokens: 2.0 evaluations each, least 2, most 2" in err
    assert run(capsys, *argv, "--start", "previous", "--beams", "2")[0] == 0


def test_solves_that_do_not_converge_are_told(plain, capsys):
    argv = ["--model", plain, "--ids", "3 1 4", "--rtol", "1e-6", "--max-iter", "2"]
    status, out, err = run(capsys, *argv)
    assert status == 0
    assert len(out.split()) == 7
    assert err.startswith("warning: generate: the solves of 1 of 1 prompts and 3 of 3 tokens that were fed back")
    assert "Stop(max_iter=8, rtol=1e-06, per='token')" in err
    assert "Here Stop is --max-iter and --rtol" in err
    assert len(err.strip().splitlines()) == 1
    assert run(capsys, *argv[:4])[2] == ""


def test_an_explicit_model_generates_and_refuses_what_it_would_ignore(explicit, capsys):
    status, _, err = run(capsys, "--model", explicit, "--ids", "3 1 4", "--stats")
    assert status == 0
    assert "nothing was solved" in err
    status, out, err = run(capsys, "--model", explicit, "--ids", "3", "--rtol", "0.1", "--start", "zero")
    assert (status, out) == (2, "")
    assert "--rtol, --start:" in err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--ids", ""], "the prompt is empty"),
        (["--ids", "one"], "must be whole numbers"),
        (["--ids", "1 13"], "ids must be from 0 to 12, got '1 to 13'"),
        (["--ids", "1", "--top-k", "3"], "--top-k needs --temperature > 0"),
        (["--ids", "1", "--temperature", "-1"], "--temperature must be a number >= 0"),
        (["--ids", "1", "--beams", "0"], "--beams must be a whole number >= 1, got 0"),
        (["--ids", "1", "--max-new-tokens", "0"], "--max-new-tokens must be"),
        (["--ids", "1", "--mode", "chunked:size=0"], "size must be a whole number >= 1"),
        (["--ids", "1", "--mode", "chunkd"], "did you mean 'chunked'"),
        (["--ids", "1", "--rtol", "-1"], "rtol must be"),
        (["--ids", "1", "--device", "cpuu"], "did you mean 'cpu'"),
        (["--prompt", "Once"], "holds no tokenizer"),
        (["--ids", "1", "--prompt", "Once"], "not allowed with argument"),
        ([], "one of the arguments --prompt --ids is required"),
    ],
)
def test_mistakes_are_one_line_and_status_2(argv, text, plain, capsys):
    status, out, err = run(capsys, "--model", plain, *argv)
    assert (status, out) == (2, "")
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_an_empty_text(folder, capsys):
    status, _, err = run(capsys, "--model", folder, "--prompt", "")
    assert status == 2
    assert "the prompt is empty" in err


def test_directories_without_a_model(tmp_path, plain, capsys):
    status, _, err = run(capsys, "--model", str(tmp_path / "nowhere"), "--ids", "1")
    assert status == 2
    assert "there is no directory" in err
    hf.ImplicitLlamaConfig.from_pretrained(plain).save_pretrained(tmp_path)
    status, _, err = run(capsys, "--model", str(tmp_path), "--ids", "1")
    assert status == 2
    assert "cannot be read" in err
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not weights")
    status, _, err = run(capsys, "--model", str(tmp_path), "--ids", "1")
    assert status == 2
    assert len(err.strip().splitlines()) == 1


def test_help_teaches(capsys):
    assert main(["generate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "deqlm generate --model my_model/" in out
    assert max(map(len, out.splitlines())) <= 120
