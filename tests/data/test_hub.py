"""Datasets as inputs: the documents of their files in order, configs and splits, and every error with what there is."""

import json
import os
import re
import sys

import pytest

from linscale.config import UserError
from linscale.data import PrepareOptions, documents, hub, prepare
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources
from linscale.data.sources import UnavailableInputError
from tests.lazy import lazy_or_skip

datasets = lazy_or_skip("datasets")

CARD = """---
configs:
- config_name: fr
  data_files: [{split: train, path: "fr/*.parquet"}]
- config_name: de
  data_files: [{split: train, path: "de/train-*.parquet"}, {split: validation, path: "de/validation.parquet"}]
---
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The library keeps its notes in the test's folder, and a Hub that is out of reach is not waited for."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "LOOK_UP_WAITS_S", ())


def texts(name, count):
    return [f"{name} {number} é\n" + "word " * (number % 50) for number in range(count)]


def write(path, texts, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"id": list(range(len(texts))), "text": texts, **columns}
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict(table).to_parquet(path, batch_size=100)
    else:
        compression = "gzip" if path.suffix == ".gz" else None
        datasets.Dataset.from_dict(table).to_json(path, compression=compression)


@pytest.fixture
def plain(tmp_path):
    """A folder of JSON lines: two files of train, one of them compressed, and one of test."""
    for name, suffix in (("train-0", ".jsonl.gz"), ("train-1", ".jsonl"), ("test-0", ".jsonl")):
        write(tmp_path / "plain" / "data" / f"{name}{suffix}", texts(name, 300))
    return tmp_path / "plain"


@pytest.fixture
def several(tmp_path):
    """A folder of Parquet with the configs fr (train) and de (train and validation)."""
    folder = tmp_path / "several"
    for number in range(3):
        write(folder / "fr" / f"{number}.parquet", texts(f"fr {number}", 300), extra=["x" * 100] * 300)
    for number in range(2):
        write(folder / "de" / f"train-{number}.parquet", texts(f"de {number}", 200))
    write(folder / "de" / "validation.parquet", texts("validation", 20))
    (folder / "README.md").write_text(CARD)
    return folder


def texts_of(*inputs, **options):
    return [document.text for source in find_sources(inputs)[0] for document in read_documents(source, **options)]


def test_files_splits_and_configs(plain, several, monkeypatch):
    assert texts_of(f"hf:{plain}") == texts("train-0", 300) + texts("train-1", 300)
    assert texts_of(f"hf:{plain}::test") == texts_of(f"hf:{plain}:test") == texts("test-0", 300)
    fr = [text for number in range(3) for text in texts(f"fr {number}", 300)]
    assert texts_of(f"hf:{several}:fr") == texts_of(f"hf:{several}:fr:train") == fr
    assert texts_of(f"hf:{several}:de") == texts("de 0", 200) + texts("de 1", 200)
    assert texts_of(f"hf:{several}:de:validation") == texts("validation", 20)
    monkeypatch.chdir(several.parent)
    assert texts_of("hf:./several:fr", "hf:plain:test") == fr + texts("test-0", 300)
    names = [source.name for source in find_sources(["hf:./several:fr", "hf:plain:test"])[0]]
    assert names == [
        *(f"hf:./several:fr/fr/{number}.parquet" for number in range(3)),
        "hf:plain:test/data/test-0.jsonl",
    ]


def test_columns(plain, several, tmp_path):
    write(tmp_path / "other" / "a.jsonl", texts("text", 3), body=["one", "two", None], number=[1, 2, 3])
    assert texts_of(f"hf:{several}:fr", text_field="extra") == ["x" * 100] * 900
    for folder in (plain, f"{several}:fr"):
        with pytest.raises(UserError, match=r"no column 'body' \(found id, text(, extra)?\); set text_field"):
            texts_of(f"hf:{folder}", text_field="body")
    with pytest.raises(UserError, match=r"a\.jsonl row 3: column 'body' is null; expected text"):
        texts_of(f"hf:{tmp_path}/other", text_field="body")
    with pytest.raises(UserError, match=r"a\.jsonl row 1: column 'number' is int; expected text"):
        texts_of(f"hf:{tmp_path}/other", text_field="number")


def test_long_documents_are_cut_and_bytes_are_counted(several):
    whole, cut = texts_of(f"hf:{several}:fr"), texts_of(f"hf:{several}:fr", document_bytes=64)
    assert "".join(cut) == "".join(whole)
    assert len(cut) > len(whole)
    for source in find_sources([f"hf:{several}:fr"])[0]:
        counts = [document.bytes_read for document in read_documents(source)]
        assert counts == sorted(counts)
        assert 0 < counts[-1] <= source.size


def test_only_the_column_of_the_text_is_read(several, monkeypatch):
    """Of Parquet, which is stored by columns."""
    source = find_sources([f"hf:{several}:fr"])[0][0]
    assert len(list(read_documents(source))) == 300
    assert source.split.builder.config.columns == ["text"]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "which config? There are fr, de; expected hf:NAME[@REVISION][:CONFIG][:SPLIT]"),
        (":en", "which config? There are fr, de"),
        (":en:train", "no config 'en'; there are fr, de"),
        (":de:test", "no split 'test'; there are train, validation"),
        (":de:train:x", "expected hf:NAME[@REVISION][:CONFIG][:SPLIT]"),
    ],
)
def test_errors_name_what_there_is(several, rest, message):
    with pytest.raises(UserError, match=re.escape(f"input 'hf:{several}{rest}': {message}")):
        find_sources([f"hf:{several}{rest}"])


def test_other_errors(plain, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"no split 'en'; there are train, test; nor is it a config \(there are default\)"
    ):
        find_sources([f"hf:{plain}:en"])
    with pytest.raises(UnavailableInputError, match="no such folder; a dataset on the Hub is named ORG/NAME"):
        find_sources([f"hf:{tmp_path}/none"])
    (tmp_path / "void").mkdir()
    with pytest.raises(UnavailableInputError, match=r"input 'hf:.*/void': not found .*any data files"):
        find_sources([f"hf:{tmp_path}/void"])
    (plain / "data" / "train-1.jsonl").write_text('{"text": "a"}\n{"text": broken')
    with pytest.raises(UserError, match=r"train-1\.jsonl: cannot be read \(.*JSON"):
        texts_of(f"hf:{plain}")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableInputError, match=r"input 'hf:some/thing@v1:fr': cannot be reached"):
        find_sources(["hf:some/thing@v1:fr"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnavailableInputError, match=r"needs the package datasets: pip install 'linscale\[data\]'"):
        find_sources([f"hf:{plain}"])


def test_a_dataset_that_changed_is_another_input(plain, tmp_path):
    options = PrepareOptions(val_fraction=0.1)
    made = prepare([f"hf:{plain}"], out=tmp_path / "out", options=options)
    assert [source["bytes"] for source in made["sources"]] == [
        (plain / "data" / name).stat().st_size for name in ("train-0.jsonl.gz", "train-1.jsonl")
    ]
    assert prepare([f"hf:{plain}"], out=tmp_path / "out", options=options) == made
    os.utime(plain / "data" / "train-1.jsonl", ns=(1, 1))
    with pytest.raises(UserError, match="other or changed input files"):
        prepare([f"hf:{plain}"], out=tmp_path / "out", options=options)


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path):
    """Of a file of 64 MB, one read of the library and its tables."""
    import pyarrow

    line = json.dumps({"text": "some line of text " * 500}) + "\n"
    (tmp_path / "big").mkdir()
    with open(tmp_path / "big" / "a.jsonl", "w") as file:
        for _ in range(64_000_000 // len(line)):
            file.write(line)
    before = pyarrow.total_allocated_bytes()
    peak = count = 0
    for document in documents.read_documents(find_sources([f"hf:{tmp_path}/big"])[0][0]):
        count += len(document.text)
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert count > 63_000_000
    assert peak < 40e6
