"""Tokenizers: text to token ids and back.

Three kinds, one interface: bytes, byte-level BPE trained here, and any `tokenizer.json` of the Hugging Face
`tokenizers` library. Text is only ever text: the literal `<|endoftext|>` in a document becomes ordinary tokens,
never the end-of-text token, so no document can end itself.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from linscale.config import UserError, fingerprint
from linscale.run_folder import read_json, write_json

FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
    "<EOS_TOKEN>",
    "[EOS]",
    "<|im_end|>",
)
MARKS = (
    "linscale"  # a tokenizer.json that came with a model says {"eos": ends a text, "bos": opens one} here, and OPENS
)
OPENS = "opens"  # false: such a model reads texts as they are, without a token in front
BYTE_FORMAT = {"format": "linscale-byte-tokenizer", "version": 1}
PIECE_CHARACTERS = 16384
TEXTS_AT_ONCE = 8192  # whose encodings, many times their text, are held together
LINE_START = re.compile(r"(?<=\S)\n(?=\w)")


class Tokenizer(ABC):
    """Text to token ids in [0, vocab_size) and back; `eos_id` is the end-of-text token, which no text encodes to."""

    name: str
    vocab_size: int
    eos_id: int
    content: dict[str, Any]
    in_pieces: bool
    """Whether pieces of a text that start behind a single line end, with a word, encode to the ids of the whole."""

    @property
    def bos_id(self) -> int:
        """The token that opens a text: the end-of-text token, or another where the tokenizer came with such a model."""
        return self.eos_id

    @property
    def opening(self) -> list[int]:
        """The tokens in front of a text: `bos_id`, or none where the tokenizer came with a model that reads texts as
        they are."""
        return [self.bos_id]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id; little-endian, as shards store them."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the content: two tokenizers with equal digits encode and decode alike."""
        return fingerprint(self.content)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, an array of `dtype` each; no special tokens are added."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_batch` on all cores that there are, for many short texts."""
        return self.encode_batch(texts)

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens give nothing, bytes that are not UTF-8 give U+FFFD."""

    def same_tokens(self, other: Tokenizer) -> bool:
        """Whether both make the same ids of any text and of its end; which token opens one may differ."""
        contents = [{key: value for key, value in each.content.items() if key != MARKS} for each in (self, other)]
        return contents[0] == contents[1] and self.eos_id == other.eos_id

    def encode(self, text: str) -> list[int]:
        """The ids of one text; no special tokens are added."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_content, (self.content, self.name)

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into `folder`; `load_tokenizer` reads it back, equal in content."""
        path = Path(folder) / FILE
        write_json(path, self.content)
        return path


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of the text in UTF-8; 256 is the end-of-text token."""

    name = "byte"
    vocab_size = 257
    eos_id = 256
    content: dict[str, Any] = BYTE_FORMAT
    in_pieces = True

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(token for token in ids if token < self.eos_id).decode(errors="replace")


class SubwordTokenizer(Tokenizer):
    """A tokenizer in the Hugging Face `tokenizer.json` format.

    Its end-of-text token is the one that its MARKS name, else the first of END_OF_TEXT_NAMES in its vocabulary. If
    there is none, `<|endoftext|>` is added and the vocabulary grows by one. Truncation and padding set in the file are
    switched off.
    """

    def __init__(self, content: dict[str, Any], name: str) -> None:
        """`content` is the parsed `tokenizer.json`. Raises UserError when `tokenizers` cannot read it."""
        content = {**content, "truncation": None, "padding": None}
        vocab = self._build(content, name).get_vocab()
        marks = content.get(MARKS) or {}
        for mark, token in marks.items():
            if mark != OPENS and token not in vocab:
                raise UserError(f"tokenizer {name}: {MARKS}.{mark} = {token!r}: no token of its vocabulary")
        self._eos = marks.get("eos") or next((token for token in END_OF_TEXT_NAMES if token in vocab), END_OF_TEXT)
        content["added_tokens"] = _with_special(content.get("added_tokens") or [], self._eos, vocab)
        self._tokenizer = self._build(content, name)
        self.content = content
        vocab = self._tokenizer.get_vocab()
        self.eos_id, self.vocab_size = vocab[self._eos], max(vocab.values()) + 1
        self._bos_id = vocab[marks.get("bos") or self._eos]
        self._opens = marks.get(OPENS, True)
        self.name = f"bpe:{self.vocab_size}" if _trained_here(content) else name
        self.in_pieces = _splits_at_lines(content)

    @property
    def bos_id(self) -> int:
        return self._bos_id

    @property
    def opening(self) -> list[int]:
        return [self._bos_id] if self._opens else []

    @staticmethod
    def _build(content: dict[str, Any], name: str) -> tokenizers.Tokenizer:
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps({k: v for k, v in content.items() if k != MARKS}))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"tokenizer {name}: not in the Hugging Face tokenizer.json format: {error}") from None
        tokenizer.encode_special_tokens = True  # a special token's name in a text is text
        return tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode_text(text) for text in texts]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[start : start + TEXTS_AT_ONCE]
            whole = self._tokenizer.encode_batch_fast(
                [text[:PIECE_CHARACTERS] for text in some], add_special_tokens=False
            )
            for text, encoding in zip(some, whole, strict=True):
                ids = np.array(encoding.ids, dtype=self.dtype)
                plain = len(text) <= PIECE_CHARACTERS and not (ids == self.eos_id).any()
                found.append(ids if plain else self._encode_text(text))
        return found

    def _encode_text(self, text: str) -> np.ndarray:
        pieces = _pieces(text) if self.in_pieces else [text]
        ids = self._encode_pieces(pieces)
        if (ids == self.eos_id).any():
            # The model's own vocabulary holds the name, not only the added tokens: no piece may contain it whole.
            first, *others = text.split(self._eos)
            head, tail = self._eos[:1], self._eos[1:]
            pieces = [first, *(tail + other for other in others)]
            ids = self._encode_pieces([*(piece + head for piece in pieces[:-1]), pieces[-1]])
        if (ids == self.eos_id).any():
            raise UserError(
                f"tokenizer {self.name}: plain text encodes to its end-of-text token {self._eos!r}; "
                "use a tokenizer whose unknown token is another one"
            )
        return ids

    def _encode_pieces(self, pieces: Iterable[str]) -> np.ndarray:
        # One text a call: the batch form is the library's fast path, and a batch of one starts no threads.
        encoded = [self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in pieces]
        return np.concatenate([np.array(ids, dtype=self.dtype) for ids in encoded] or [np.empty(0, self.dtype)])

    def token_name(self, token: int) -> str:
        """The token as its vocabulary has it, such as 'Ġthe' or '</s>'; "" where it has none of this id."""
        return self._tokenizer.id_to_token(token) or ""

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text


def _with_special(added: list[dict[str, Any]], name: str, vocab: dict[str, int]) -> list[dict[str, Any]]:
    """The added tokens with `name` among them as a special token, under its id in `vocab` or the next free one."""
    token_id = vocab.get(name, max(vocab.values(), default=-1) + 1)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {"id": token_id, "content": name, **flags, "special": True}
    return sorted([*(token for token in added if token["content"] != name), special], key=lambda token: token["id"])


def _trained_here(content: dict[str, Any]) -> bool:
    """Whether this is the form `train_bpe` makes: byte-level BPE with the end-of-text token alone at id 0."""
    added = [(token["id"], token["content"]) for token in content["added_tokens"]]
    model, pre_tokenizer = content["model"].get("type"), content.get("pre_tokenizer") or {}
    return model == "BPE" and pre_tokenizer.get("type") == "ByteLevel" and added == [(0, END_OF_TEXT)]


def _splits_at_lines(content: dict[str, Any]) -> bool:
    """Whether a text may be encoded in pieces that start after a single line end: byte-level, nothing put in front."""
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    byte_level = all(step.get("type") in ("ByteLevel", "Split", "Digits") for step in steps)
    in_front = any(step.get("add_prefix_space", False) for step in steps)
    return byte_level and not in_front and (normalizer is None or normalizer.get("type") == "NFC")


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text before words that start a line. The pre-tokenizers of the GPT-2 and GPT-4 families always cut
    there too, so the ids are those of the whole text; short pieces are twice as fast and bound the memory."""
    start = 0
    while match := LINE_START.search(text, start + PIECE_CHARACTERS):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


def bpe_size(spec: str) -> int | None:
    """The SIZE of 'bpe:SIZE', None for any other spec. Raises UserError when SIZE is not a whole number >= 257."""
    if not spec.startswith("bpe:"):
        return None
    size = spec.removeprefix("bpe:")
    if not (size.isascii() and size.isdigit()) or int(size) < ByteTokenizer.vocab_size:
        raise UserError(f"tokenizer = {spec!r}: SIZE in bpe:SIZE must be a whole number of at least 257")
    return int(size)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`: every text round-trips, `<|endoftext|>` is id 0 and counts in `vocab_size`.

    The result is the same for the same texts. It is smaller than `vocab_size` when the texts run out of pairs to merge.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer=trainer)
    return SubwordTokenizer(json.loads(tokenizer.to_str()), f"bpe:{vocab_size}")


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """'byte', a `tokenizer.json` (Hugging Face's format or ours), or a folder that holds one.

    Raises UserError when there is no such file or it is not a tokenizer.
    """
    if spec == "byte":
        return ByteTokenizer()
    if bpe_size(str(spec)):
        raise UserError(
            f"tokenizer = '{spec}': is trained on a corpus by `linscale data prepare`; load its folder instead"
        )
    path = Path(spec)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"tokenizer = '{spec}': no such file; expected byte, bpe:SIZE, or the path of a tokenizer.json")
    content = read_json(path)
    if content != BYTE_FORMAT and not (isinstance(content, dict) and isinstance(content.get("model"), dict)):
        raise UserError(f"tokenizer = '{spec}': not in the Hugging Face tokenizer.json format")
    return _from_content(content, path.name)


def _from_content(content: dict[str, Any], name: str) -> Tokenizer:
    return ByteTokenizer() if content == BYTE_FORMAT else SubwordTokenizer(content, name)
