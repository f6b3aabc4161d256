"""Inputs behind URLs: the same documents as from local files, through faults, and every error with its remedy."""

import gzip
import json
import lzma
import re
import sys
from types import SimpleNamespace

import fsspec
import pytest
import zstandard

from linscale.config import UserError
from linscale.data import PrepareOptions, documents, faults, prepare, remote_file
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources
from linscale.data.sources import UnavailableInputError
from tests.lazy import lazy_or_skip

lazy_or_skip("aiohttp")

TEXTS = [f"document {number} é\n" + "word " * (number % 97) for number in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No pauses between attempts, and requests smaller than the files."""
    monkeypatch.setattr(remote_file, "WAITS_S", (0.0,) * 3)
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 30_000)
    monkeypatch.setattr(documents, "READ_BYTES", 20_000)
    monkeypatch.setattr(faults, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def memory():
    """A folder of the file system in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def texts_of(*inputs, **options):
    return [document.text for source in find_sources(inputs)[0] for document in read_documents(source, **options)]


def parquet(path, texts):
    import duckdb

    connection = duckdb.connect(":memory:")
    connection.execute("create table t as select unnest(?) as text", [texts])
    connection.execute(f"copy t to '{path}' (format parquet, row_group_size 2048)")
    return path.read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("compression", COMPRESS)
def test_http_gives_the_same_documents(host, compression, ranges):
    host.ranges, host.files[f"/a b/x.jsonl{compression}"] = ranges, COMPRESS[compression](LINES)
    assert texts_of(f"{host.url}/a b/x.jsonl{compression}?signature=secret") == TEXTS


def test_parquet_over_http(host, tmp_path):
    host.files["/x.parquet"] = data = parquet(tmp_path / "x.parquet", TEXTS)
    assert texts_of(f"{host.url}/x.parquet") == TEXTS
    host.breaks = [*range(0, 20_000, 1000)]
    with pytest.raises(UserError, match=r"x\.parquet: byte \d+: .*run the same command again to go on"):
        texts_of(f"{host.url}/x.parquet")
    host.breaks = [7, 100, 5]
    assert texts_of(f"{host.url}/x.parquet") == TEXTS
    host.breaks, host.ranges = [], False
    with pytest.raises(UserError, match=r"x\.parquet: the host serves no byte ranges, which reading Parquet needs"):
        texts_of(f"{host.url}/x.parquet")
    host.ranges, host.files["/x.parquet"] = True, data[:-100]
    with pytest.raises(UserError, match=r"x\.parquet: damaged Parquet"):
        texts_of(f"{host.url}/x.parquet")


def test_a_broken_transfer_goes_on_at_its_byte(host):
    host.files["/x.jsonl"] = LINES
    host.breaks = [10_000, 1, 0]
    assert texts_of(f"{host.url}/x.jsonl") == TEXTS
    ranges = [int(ranges.removeprefix("bytes=").split("-")[0]) for _, _, ranges in host.requests if ranges]
    assert ranges == sorted(ranges)
    host.ranges, host.breaks, host.requests = False, [len(LINES), len(LINES), 200_000, 250_000], []
    assert texts_of(f"{host.url}/x.jsonl") == TEXTS
    assert len([command for command, _, ranges in host.requests if command == "GET" and not ranges]) == 3


def test_a_fault_that_stays_names_the_byte_and_the_remedy(host):
    host.files["/x.jsonl"] = LINES
    reading = read_documents(find_sources([f"{host.url}/x.jsonl"])[0][0])
    next(reading)
    host.breaks = [0] * 100
    with pytest.raises(UserError, match=r"x\.jsonl: byte \d+: broken off .*; run the same command again to go on"):
        list(reading)
    host.breaks = []
    (source,), _ = find_sources([f"{host.url}/x.jsonl"])
    host.close()
    with pytest.raises(UserError, match="byte 0: cannot be reached"):
        list(read_documents(source))


def test_a_replaced_file_is_noticed(host):
    host.files["/x.jsonl"] = LINES
    (source,), _ = find_sources([f"{host.url}/x.jsonl"])
    reading = read_documents(source)
    next(reading)
    host.files["/x.jsonl"] = LINES.replace(b"word", b"wort")
    with pytest.raises(UserError, match="it changed while it was read"):
        list(reading)
    (again,), _ = find_sources([f"{host.url}/x.jsonl"])
    assert again.identity != source.identity
    assert again.size == source.size


def test_signatures_are_not_recorded_and_do_not_make_another_input(host, tmp_path):
    host.files["/x.jsonl"] = LINES
    options = PrepareOptions(val_fraction=0.1)
    made = prepare([f"{host.url}/x.jsonl?signature=one"], out=tmp_path / "out", options=options)
    assert made["sources"] == [
        {"name": f"{host.url}/x.jsonl", "bytes": len(LINES), "revision": made["sources"][0]["revision"]}
    ]
    assert "signature" not in json.dumps(made)
    assert prepare([f"{host.url}/x.jsonl?signature=two"], out=tmp_path / "out", options=options) == made
    host.etags = False
    one, two = (find_sources([f"{host.url}/x.jsonl?id={number}"])[0][0] for number in (1, 2))
    assert one.identity != two.identity


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"not found"),
        (403, r"access denied \(.*403.*\); log in"),
        (401, r"access denied"),
        (400, r"the host refuses \(.*400"),
        (503, r"the host fails \(.*503.*\); try again later"),
    ],
)
def test_http_errors(host, status, message):
    host.files["/x.jsonl"], host.failures = LINES, [status] * 20
    with pytest.raises(UnavailableInputError, match=f"^input '{host.url}/x.jsonl': {message}"):
        find_sources([f"{host.url}/x.jsonl"])
    host.failures = [503, 503, 502]
    assert texts_of(f"{host.url}/x.jsonl") == TEXTS


def test_other_errors_name_the_input_and_the_remedy(host, memory, monkeypatch):
    host.files |= {"/x.csv": b"x", "/empty.txt": b"", "/x.txt": b"x"}

    def refused(name, message, kind=UserError):
        with pytest.raises(kind, match=f"^input '{re.escape(name)}': {message}"):
            find_sources([name])

    refused("nosuch://bucket/x.txt", "Protocol not known: nosuch; expected a path, or a URL")
    refused(f"{host.url}/x.csv", r"suffix '\.csv' is not accepted; \.txt and \.jsonl")
    refused(f"{host.url}/empty.txt", "empty file")
    refused("http://127.0.0.1:9/x.txt", "cannot be reached", UnavailableInputError)
    refused("http://no-such-host.invalid/x.txt", "cannot be reached .*check the address", UnavailableInputError)
    refused("memory://none/x.txt", "not found", UnavailableInputError)
    host.sizes = False
    refused(f"{host.url}/x.txt", "the host does not tell its size")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    refused("gs://bucket/x.txt", r"needs the package gcsfs: pip install 'linscale\[data\]'", UnavailableInputError)
    monkeypatch.setitem(sys.modules, "adlfs", None)
    refused("abfs://bucket/x.txt", "needs the package adlfs: pip install adlfs", UnavailableInputError)
    memory.mkdir("/void")
    refused("memory://void", "no files there", UnavailableInputError)


def test_folders_and_patterns(memory, host):
    for name in ("b/2.txt", "b/10.TXT", "a.txt", ".git/x.txt", "b/.x.txt", "README.md"):
        memory.pipe(f"/corpus/{name}", name.encode())
    assert texts_of("memory://corpus") == ["a.txt", "b/10.TXT", "b/2.txt"]
    assert texts_of("memory://corpus/*.txt") == ["a.txt"]
    assert texts_of("memory://corpus/**/*.txt") == ["a.txt", "b/2.txt"]
    sources, left_out = find_sources(["memory://corpus/"])
    assert sources[0].name == "memory:///corpus/a.txt"
    assert left_out == ["memory:///corpus/README.md"]
    with pytest.raises(UserError, match="given twice"):
        find_sources(["memory://corpus", "memory://corpus/a.txt"])
    host.files |= {f"/list/{name}": name.encode() for name in ("b.txt", "a.txt", "x.md")}
    host.files["/list/"] = b'<a href="b.txt">b</a> <a href="a.txt">a</a> <a href="x.md">x</a>'
    assert texts_of(f"{host.url}/list/") == ["a.txt", "b.txt"]
    assert texts_of(f"{host.url}/list/*.txt") == ["a.txt", "b.txt"]


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert texts_of(f"file://{tmp_path}") == ["text"]
    with pytest.raises(UserError, match="given twice"):
        find_sources([f"file://{tmp_path}/a.txt", str(tmp_path / "a.txt")])


def test_identity_follows_the_file(memory):
    memory.pipe("/x.txt", b"abc")
    first = find_sources(["memory://x.txt"])[0][0]
    assert first.identity == find_sources(["memory://x.txt"])[0][0].identity
    memory.pipe("/x.txt", b"abd")
    assert first.identity != find_sources(["memory://x.txt"])[0][0].identity


@pytest.mark.slow
def test_memory_stays_bounded(memory, monkeypatch):
    import tracemalloc

    monkeypatch.undo()
    memory.pipe("/x.txt.gz", gzip.compress(b"some line of text\n" * 3_600_000, compresslevel=1))
    (source,), _ = find_sources(["memory://x.txt.gz"])
    tracemalloc.start()
    total = sum(len(document.text) for document in read_documents(source, document_bytes=4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 18 * 3_600_000
    assert peak < 40e6
