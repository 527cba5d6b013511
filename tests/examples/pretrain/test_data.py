"""Tokens: where they come from, how they are packed, and that a training that goes on sees the next ones."""

from __future__ import annotations

import itertools
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.pretrain.data import PackedStream, Shards, Windows, labels_of, prepare
from examples.pretrain.documents import ByteTokenizer, CorpusError, documents, make_tokenizer

BYTES = ByteTokenizer()


def jsonl(folder: Path, texts: list[str]) -> str:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


def test_shards_hold_documents_and_their_ends(tmp_path):
    source = jsonl(tmp_path, ["abc", "", "de", "f"])
    shards = prepare(source, BYTES, tmp_path / "shards", shard_tokens=4)
    want = [97, 98, 99, 256, 100, 101, 256, 102, 256]
    assert shards.window(0, shards.count).tolist() == want
    assert shards.window(2, 4).tolist() == want[2:6]
    assert len(list((tmp_path / "shards").glob("*.bin"))) == 3
    labels = labels_of(torch.tensor([want]), shards.end)[0].tolist()
    assert [i for i, label in enumerate(labels) if label == -100] == [4, 7]


def test_shards_are_written_once(tmp_path):
    source = jsonl(tmp_path, ["abc" * 9])
    prepare(source, BYTES, tmp_path / "shards")
    Path(source).write_text("no longer read")
    assert prepare(source, BYTES, tmp_path / "shards").count == 28
    (tmp_path / "shards/00000.bin").write_bytes(b"12")
    with pytest.raises(CorpusError, match="is damaged"):
        Shards(tmp_path / "shards")


def test_every_python_carries_a_text():
    assert len(next(documents(None))) > 100


@settings(max_examples=25, deadline=None)
@given(count=st.integers(40, 400), length=st.integers(1, 9), seed=st.integers(0, 99), parts=st.integers(1, 4))
def test_an_epoch_has_every_window_once_on_any_number_of_processes(count, length, seed, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    ids = np.arange(count, dtype="<u2")
    (folder / "00000.bin").write_bytes(ids.tobytes())
    index = {"about": {"tokenizer": "t", "end": 65535}, "dtype": "<u2", "counts": [count], "sha256": "s"}
    (folder / "index.json").write_text(json.dumps(index))
    windows = Windows(Shards(folder), length, held_out=length, seed=seed)
    epochs = [windows.train(range(e * windows.train_count, (e + 1) * windows.train_count)) for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch[:, 0].tolist()) == [length * i for i in range(windows.train_count)]
    ends = [p * windows.train_count // parts for p in range(parts + 1)]
    shared = [windows.train(range(first, end)) for first, end in pairwise(ends)]
    assert torch.equal(torch.cat(shared), epochs[0])
    assert windows.held(range(windows.held_count())).min() > epochs[0].max()


@pytest.mark.parametrize("readers", [1, 3])
def test_a_stream_goes_on_where_it_was(tmp_path, readers):
    source = jsonl(tmp_path, [f"document {n} " * (n % 7) for n in range(60)])
    seen = []
    for rank in range(readers):
        whole = [w.tolist() for w in PackedStream(source, BYTES, 8, rank=rank, processes=readers)]
        for cut in (0, 1, 5, len(whole) - 1):
            stream = PackedStream(source, BYTES, 8, rank=rank, processes=readers)
            first = [w.tolist() for w in itertools.islice(stream, cut)]
            again = PackedStream(source, BYTES, 8, rank=rank, processes=readers)
            again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
            assert first + [w.tolist() for w in again] == whole
        seen += whole
    tokens = sum(len(text) + 1 for text in documents(source))
    assert tokens - 8 * readers < 8 * len(seen) <= tokens


@pytest.mark.filterwarnings("ignore")
def test_workers_of_a_stream_go_on_too(tmp_path):
    loader = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata").StatefulDataLoader
    source = jsonl(tmp_path, [f"document {n} " * (n % 7) for n in range(40)])

    def made():
        return loader(PackedStream(source, BYTES, 8), batch_size=None, num_workers=2)

    whole = [w.tolist() for w in made()]
    first = made()
    head = [w.tolist() for w in itertools.islice(first, 9)]
    again = made()
    again.load_state_dict(first.state_dict())
    assert head + [w.tolist() for w in again] == whole


def test_parquet_is_read(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    assert list(documents(str(tmp_path))) == ["one", "two"]
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(CorpusError, match=r"b\.parquet cannot be read as parquet"):
        list(documents(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
        ("a.jsonl", b"{}\n", "line 1 of .* has no field 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2 of .* must be text, got int"),
        ("a.jsonl", b"not json\n", "line 1"),
        ("a.doc", b"x", "must end in one of"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_told(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=said):
        prepare(str(tmp_path / name), BYTES, tmp_path / "shards")
    assert not (tmp_path / "shards/index.json").exists()


def test_a_folder_without_texts_and_a_text_that_is_too_short_are_told(tmp_path):
    with pytest.raises(CorpusError, match="holds no file that ends in"):
        list(documents(str(tmp_path)))
    shards = prepare(jsonl(tmp_path, ["abc"]), BYTES, tmp_path / "shards")
    with pytest.raises(CorpusError, match=r"must hold at least 16 tokens for windows of 8 .* got 4"):
        Windows(shards, 8, held_out=8)
    with pytest.raises(CorpusError, match="another corpus"):
        prepare(jsonl(tmp_path / "shards", ["x"]), BYTES, tmp_path / "shards")


def test_a_tokenizer_that_does_not_fit_is_told(tmp_path):
    from tokenizers import Tokenizer, models

    with pytest.raises(CorpusError, match="'bytes' makes ids up to 256, and the model's vocab_size is 100"):
        make_tokenizer("bytes", 100)
    with pytest.raises(CorpusError, match=r"neither 'bytes' nor a tokenizer\.json"):
        make_tokenizer(str(tmp_path / "absent"), 300)
    made = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="<eos>"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CorpusError, match="has no token '<end>'"):
        make_tokenizer(str(tmp_path), 300, "<end>")
    assert make_tokenizer(str(tmp_path), 300, "<eos>").encode("a") == [0]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="is no tokenizer"):
        make_tokenizer(str(tmp_path), 300, "<eos>")
