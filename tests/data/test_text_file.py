"""A text file as tokens: a piece at a time, and those of the whole text."""

import gzip

import numpy as np
import pytest

from linscale.config import UserError
from linscale.data import text_file
from linscale.data.text_file import file_tokens
from linscale.data.tokenizer import load_tokenizer, train_bpe

TEXT = (
    "First line of it.\n\n  Über 日本 again,\nand\r\nmore of it; \n\tthe\n rest 🙂\nof a long\ntext\n\n" * 200
) + "end"


def tokens_of(tokenizer, path):
    pieces = list(file_tokens(tokenizer, path))
    assert [read for _, read in pieces] == sorted(read for _, read in pieces)
    assert pieces[-1][1] == path.stat().st_size
    return np.concatenate([tokens for tokens, _ in pieces]).tolist(), len(pieces)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("size", [7, 100, 1000, 1 << 20])
def test_pieces_give_the_tokens_of_the_whole(tmp_path, monkeypatch, kind, size):
    monkeypatch.setattr(text_file, "PIECE_BYTES", size)
    tokenizer = load_tokenizer("byte") if kind == "byte" else train_bpe([TEXT], 400)
    for text in (TEXT, "one line without an end", "\n\n\n", "a\nb"):
        (tmp_path / "text.md").write_bytes(text.encode())
        tokens, pieces = tokens_of(tokenizer, tmp_path / "text.md")
        assert tokens == tokenizer.encode(text)
        assert pieces > 15 or size > 1000 or text != TEXT


def test_compressed_text_is_read(tmp_path):
    tokenizer = load_tokenizer("byte")
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert tokens_of(tokenizer, tmp_path / "text.txt.gz")[0] == tokenizer.encode(TEXT)


def test_what_is_no_text_is_one_line(tmp_path):
    tokenizer = load_tokenizer("byte")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "bytes").write_bytes(b"abc\xff\xfedef")
    (tmp_path / "bad.gz").write_bytes(b"not compressed")
    for name, problem in (("none", "no such file"), ("empty", "is empty"), ("bytes", "UTF-8"), ("bad.gz", "bad.gz")):
        with pytest.raises(UserError, match=problem) as error:
            list(file_tokens(tokenizer, tmp_path / name))
        assert str(error.value).startswith(f"file {tmp_path / name}")
        assert "\n" not in str(error.value)
