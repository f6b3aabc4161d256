"""Reading text: every format gives the same documents, cutting loses nothing, and damage is named, not passed over."""

import gzip
import json
import lzma
import os
import random
import re

import duckdb
import pytest
import zstandard

from linscale.config import UserError
from linscale.data.documents import cut, read_documents
from linscale.data.inputs import find_sources

TEXTS = ["First é\r\nline\n", "second 東京 \N{PARTY POPPER}", "  spaces\n\n\n", "x" * 5000]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


def jsonl(texts, field="text"):
    return "".join(json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(texts)).encode()


def parquet(path, texts, column="text", kind="varchar"):
    connection = duckdb.connect(":memory:")
    quoted = column.replace('"', '""')
    connection.execute(f'create table t (id integer, "{quoted}" {kind})')
    connection.executemany("insert into t values (?, ?)", list(enumerate(texts)))
    connection.execute(f"copy t to '{path}' (format parquet)")
    return path


def texts_of(*inputs, **options):
    sources, _ = find_sources([str(item) for item in inputs])
    return [document.text for source in sources for document in read_documents(source, **options)]


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_compression_gives_the_same_documents(tmp_path, compression):
    lines, text = tmp_path / f"a.jsonl{compression}", tmp_path / f"a.txt{compression}"
    lines.write_bytes(COMPRESS[compression](jsonl(TEXTS)))
    text.write_bytes(COMPRESS[compression](TEXTS[0].encode()))
    assert texts_of(lines) == TEXTS
    assert texts_of(text) == TEXTS[:1]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_concatenated_and_padded_streams(tmp_path, compression):
    """What `cat a.gz b.gz` makes is one file, larger than one read, with the padding some tools leave."""
    noise = random.Random(0).randbytes(150_000).hex()
    pack, path = COMPRESS[compression], tmp_path / f"a.txt{compression}"
    path.write_bytes(pack(noise.encode()) + pack(b"second\n") + bytes(512))
    assert texts_of(path) == [noise + "second\n"]


def test_parquet_gives_the_same_documents(tmp_path):
    assert texts_of(parquet(tmp_path / "odd [1].parquet", TEXTS)) == TEXTS
    renamed = parquet(tmp_path / "b.parquet", TEXTS * 100, column='the "text"')
    assert texts_of(renamed, text_field='the "text"') == TEXTS * 100


def test_bytes_read_reaches_the_size(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    (tmp_path / "b.txt").write_text("abc")
    parquet(tmp_path / "c.parquet", TEXTS)
    for source in find_sources([str(tmp_path)])[0]:
        counts = [document.bytes_read for document in read_documents(source)]
        assert counts == sorted(counts)
        assert counts[-1] == source.size


def test_folders_are_sorted_recursive_and_skip_hidden_files(tmp_path):
    for name in ("b/2.txt", "b/10.TXT", "a.txt", "c.v2.jsonl", ".git/x.txt", "b/.x.txt", "README.md", "b/x.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([name]) if name.endswith("jsonl") else name.encode())
    assert texts_of(tmp_path) == ["a.txt", "b/10.TXT", "b/2.txt", "c.v2.jsonl"]
    sources, left_out = find_sources([f"{tmp_path}/"])
    assert sources[0].name == f"{tmp_path}/a.txt"
    assert left_out == [f"{tmp_path}/README.md", f"{tmp_path}/b/x.csv"]


def test_builtin_corpus():
    (text,) = texts_of("builtin:tinyshakespeare")
    assert text.startswith("First Citizen:\n")
    assert len(text) == 1115394


def test_identity_follows_the_file(tmp_path):
    """A file written again is another input; a builtin text is the same in every installation."""
    path = tmp_path / "a.txt"
    path.write_text("a")
    first = find_sources([str(path), "builtin:tinyshakespeare"])[0]
    os.utime(path, ns=(1, 1))
    second = find_sources([str(path), "builtin:tinyshakespeare"])[0]
    assert first[0].identity != second[0].identity
    assert first[1].identity == ("builtin:tinyshakespeare", 1115394)


@pytest.mark.parametrize("limit", [4, 5, 16, 100, 4999])
def test_cut_is_exact(limit):
    """Pieces concatenate to the text, keep to the limit, end at line ends when they can, and ignore the chunks."""
    draw = random.Random(limit)
    lines = ["".join(draw.choices("abcdé東🎉 ", k=draw.randrange(80))) for _ in range(200)]
    data = "\n".join(lines).encode()
    pieces = list(cut([data], limit))
    assert b"".join(pieces) == data
    for piece, after in zip(pieces, [*pieces[1:], b""], strict=True):
        assert 0 < len(piece) <= limit
        piece.decode()
        if after and b"\n" in piece:
            assert piece.endswith(b"\n")
            assert len(piece) + after.find(b"\n") + 1 > limit or b"\n" not in after
    for size in (1, 7, 64):
        assert list(cut([data[start : start + size] for start in range(0, len(data), size)], limit)) == pieces


def test_cut_ends_on_bytes_that_are_not_utf8():
    assert b"".join(cut([b"\x80" * 1000], 4)) == b"\x80" * 1000


def test_document_bytes_applies_to_every_format(tmp_path):
    text = "".join(f"line {number} é\n" for number in range(500))
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.jsonl").write_bytes(jsonl([text]))
    parquet(tmp_path / "c.parquet", [text])
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(text.encode()))
    pieces = [texts_of(path, document_bytes=256) for path in sorted(tmp_path.iterdir())]
    assert pieces[0] == pieces[1] == pieces[2] == pieces[3]
    assert len(pieces[0]) > 20
    assert "".join(pieces[0]) == text


def test_small_things_that_are_no_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": ""}\n{"text": "two\\u0000"}')
    assert texts_of(path) == ["one", "two\0"]


def bad(name, data, message):
    return pytest.param(name, data, message, id=message.replace(" ", "-")[:40])


LINES = jsonl(TEXTS * 50)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        bad("a.txt", b"", "a.txt': empty file"),
        bad("a.csv", b"x", "'.csv' is not accepted; .txt and .jsonl"),
        bad("a.txt.bz2", b"x", "'.txt.bz2' is not accepted"),
        bad("a.txt", b"ok\nab\0c", "a.txt: NUL at byte 5"),
        bad("a.txt", b"x" * 3_000_000 + b"\xff", "a.txt: byte 3000000 is not UTF-8"),
        bad("a.txt", "text".encode("utf-16"), "binary or UTF-16"),
        bad("a.txt.gz", gzip.compress(b""), "a.txt.gz: no text in it"),
        bad("a.txt.gz", b"not gzip", "damaged .gz file"),
        bad("a.txt.xz", lzma.compress(LINES)[:-20], "truncated .xz file"),
        bad("a.jsonl.gz", gzip.compress(LINES)[:-20], "truncated .gz file"),
        bad("a.jsonl.zst", COMPRESS[".zst"](LINES)[:-20], "truncated .zst file"),
        bad("a.jsonl.xz", lzma.compress(LINES)[:-20], "truncated .xz file"),
        bad("a.jsonl.zst", COMPRESS[".zst"](LINES) + b"tail", "damaged .zst file"),
        bad("a.jsonl", jsonl(TEXTS) + b'{"text": "cut of', "a.jsonl line 5: not JSON"),
        bad("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        bad(
            "a.jsonl",
            b'{"text": "a"}\n\n{"body": "b", "n": 1}',
            "line 3: no string in field 'text' (found keys body, n)",
        ),
        bad("a.jsonl", b'{"text": 5}', "line 1: no string in field 'text'"),
        bad("a.jsonl", b'["a"]', "line 1: no string in field 'text' (found list)"),
        bad("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "a.jsonl line 2: byte 10 is not UTF-8"),
        bad("a.jsonl", b'{"text": "\\ud83d"}', "line 1: half a surrogate pair"),
        bad("a.jsonl", b'{"text": ""}\n', "a.jsonl: no text in it"),
        bad("a.parquet", b"PAR1 not parquet", "a.parquet: damaged Parquet file"),
    ],
)
def test_bad_input_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)):
        texts_of(tmp_path / name)
    if not message.startswith("a.txt': empty") and "accepted" not in message:
        with pytest.raises(UserError, match=re.escape(message)):
            texts_of(tmp_path / name, document_bytes=64)


def test_bad_parquet_is_named(tmp_path):
    whole = parquet(tmp_path / "a.parquet", TEXTS * 200).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"cut\.parquet: damaged"):
        texts_of(tmp_path / "cut.parquet")
    with pytest.raises(UserError, match=r"no text column 'body' \(found id INTEGER, text VARCHAR\)"):
        texts_of(tmp_path / "a.parquet", text_field="body")
    with pytest.raises(UserError, match="no text column 'text'"):
        texts_of(parquet(tmp_path / "n.parquet", [1, 2], kind="integer"))
    with pytest.raises(UserError, match="row 2: column 'text' is null"):
        texts_of(parquet(tmp_path / "null.parquet", ["a", None]))


def test_bad_paths(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_sources([str(tmp_path / "missing.txt")])
    with pytest.raises(UserError, match="no text in it; accepted are"):
        find_sources([str(tmp_path)])
    with pytest.raises(UserError, match="there are builtin:tinyshakespeare"):
        find_sources(["builtin:shakespeare"])
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="given twice"):
        find_sources([str(tmp_path), str(tmp_path / "a.txt")])


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path):
    """A .txt of 64 MB in pieces never holds more than a few reads of it."""
    import tracemalloc

    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"some line of text\n" * 60_000)
    tracemalloc.start()
    (source,), _ = find_sources([str(path)])
    total = sum(len(document.text) for document in read_documents(source, document_bytes=4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 64 * 18 * 60_000
    assert peak < 40e6
