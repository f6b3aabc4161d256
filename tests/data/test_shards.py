"""A prepared corpus reads back exactly what went in, across shards, and damage is found before it is read."""

import json
import os
import random
import sys

import numpy as np
import pytest

from linscale.config import UserError
from linscale.data import PrepareOptions, TokenDataset, prepare
from linscale.data.encode import split_of
from linscale.data.tokenizer import ByteTokenizer, train_bpe
from linscale.data.writer import SplitState, SplitWriter


def make_corpus(folder, documents=300, seed=0, shard_tokens=5000, **settings):
    """Documents of random words; returns the prepared dataset and the texts in order."""
    draw = random.Random(seed)
    texts = [
        f"{number} " + " ".join(draw.choices(["naïve", "tea", "東"], k=draw.randrange(40)))
        for number in range(documents)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    options = PrepareOptions(val_fraction=0.1, shard_tokens=shard_tokens, **settings)
    prepare([str(folder / "in.jsonl")], out=folder / "corpus", options=options)
    return TokenDataset.open(folder / "corpus"), texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def expected(texts, split):
    """The split from its definition: [eos] + bytes for each document, one eos at the end; and the openings."""
    tokens, starts = [], []
    for text in texts:
        if split_of(text.encode(), 0, 0.1) == split:
            starts.append(len(tokens))
            tokens += [256, *text.encode()]
    return np.array([*tokens, 256]), np.array(starts)


@pytest.mark.parametrize("split", ["train", "val"])
def test_reads_back_what_went_in(corpus, split):
    dataset, texts = corpus
    tokens, starts = expected(texts, split)
    record = dataset.manifest.splits[split]
    assert len(record.shards) > (3 if split == "train" else 0)
    assert dataset.tokens(split) == len(tokens)
    assert record.documents == len(starts)
    assert record.text_bytes == len(tokens) - len(starts) - 1
    assert dataset.bytes_per_token(split) == record.text_bytes / len(tokens)
    np.testing.assert_array_equal(dataset.read(split, 0, len(tokens)), tokens)
    np.testing.assert_array_equal(dataset.document_starts(split, 0, len(tokens)), starts)
    assert dataset.read(split, 0, 1).dtype == np.int64


def test_any_span_and_any_window_across_shards(corpus):
    dataset, texts = corpus
    tokens, starts = expected(texts, "train")
    draw = random.Random(0)
    ends = np.cumsum([shard.tokens for shard in dataset.manifest.splits["train"].shards])
    spans = [sorted(draw.choices(range(len(tokens) + 1), k=2)) for _ in range(100)]
    for start, stop in [*spans, *((end - 1, end + 1) for end in ends[:-1]), *((end, end) for end in ends)]:
        np.testing.assert_array_equal(dataset.read("train", start, stop), tokens[start:stop])
        inside = starts[(starts >= start) & (starts < stop)]
        np.testing.assert_array_equal(dataset.document_starts("train", start, stop), inside)
    for width in (1, 64, 9000):
        firsts = np.array([*draw.choices(range(len(tokens) - width + 1), k=50), 0, len(tokens) - width])
        rows = dataset.windows("train", firsts, width)
        np.testing.assert_array_equal(rows, np.stack([tokens[first : first + width] for first in firsts]))


def test_spans_outside_and_unknown_splits_are_errors(corpus):
    dataset, _ = corpus
    tokens = dataset.tokens("val")
    for start, stop in ((-1, 4), (5, 4), (0, tokens + 1)):
        with pytest.raises(UserError, match=f"it holds {tokens} tokens"):
            dataset.read("val", start, stop)
    with pytest.raises(UserError, match="split = 'test': expected one of train, val"):
        dataset.tokens("test")


def test_more_than_65536_ids_are_stored_in_four_bytes(tmp_path):
    tokenizer = train_bpe(["a"], 257)
    tokenizer.vocab_size = 2**16 + 1
    writer = SplitWriter(tmp_path, "val", tokenizer, SplitState())
    ids = np.array([1, 2**16], tokenizer.dtype)
    writer.add(ids, 5)
    record = writer.finish()
    assert tokenizer.dtype == np.dtype("<u4")
    assert record.shards[0].bin.bytes == 4 * record.tokens == 16
    assert np.fromfile(tmp_path / "val-00000.bin", "<u4").tolist() == [0, 1, 2**16, 0]
    assert ByteTokenizer().dtype == np.dtype("<u2")


def test_fingerprint_follows_the_tokens(tmp_path, corpus):
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
    assert make_corpus(tmp_path / "same", shard_tokens=5000)[0].fingerprint == corpus[0].fingerprint
    assert make_corpus(tmp_path / "other", seed=1)[0].fingerprint != corpus[0].fingerprint


@pytest.fixture
def fresh(tmp_path):
    return make_corpus(tmp_path)[0]


def test_a_flipped_bit_is_found_by_verify(fresh):
    path = fresh.folder / "train-00001.bin"
    data = bytearray(path.read_bytes())
    data[77] ^= 1
    path.write_bytes(data)
    TokenDataset.open(fresh.folder)
    with pytest.raises(UserError, match=r"train-00001\.bin: damaged .*checksum.*linscale data prepare"):
        TokenDataset.open(fresh.folder, verify=True)


@pytest.mark.parametrize("name", ["val-00000.docs", "train-00000.bin"])
def test_missing_and_short_files_are_found_on_opening(fresh, name):
    path = fresh.folder / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{name}: damaged"):
        TokenDataset.open(fresh.folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: missing"):
        TokenDataset.open(fresh.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps mapped files from being changed")
def test_a_file_that_shrinks_or_vanishes_while_mapped_is_an_error(fresh):
    fresh.read("train", 0, 100)
    os.truncate(fresh.folder / "train-00000.bin", 4096)
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged"):
        fresh.read("train", 4000, 4100)
    (fresh.folder / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: missing"):
        fresh.windows("train", np.array([0, 10]), 5)


def test_another_tokenizer_is_an_error(fresh):
    train_bpe(["a"], 257).save(fresh.folder)
    with pytest.raises(UserError, match="not the tokenizer this corpus was made with"):
        TokenDataset.open(fresh.folder).tokenizer  # noqa: B018


def test_folders_that_are_no_corpus(tmp_path, fresh):
    with pytest.raises(UserError, match="not a prepared corpus"):
        TokenDataset.open(tmp_path / "nowhere")
    manifest = fresh.folder / "manifest.json"
    whole = json.loads(manifest.read_text())
    changes = [
        ("not the manifest of a linscale corpus", {"format": "other"}),
        ("format version 2; this linscale reads version 1", {"version": 2}),
        ("unknown key 'colour'", {"colour": "red"}),
        ("'dtype'|dtype = ", {"dtype": "int8"}),
        ("contradict each other", {"dtype": "uint32"}),
    ]
    for message, change in changes:
        manifest.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=message):
            TokenDataset.open(fresh.folder)
    manifest.write_text(json.dumps(whole)[:-20])
    with pytest.raises(UserError, match="damaged JSON"):
        TokenDataset.open(fresh.folder)
