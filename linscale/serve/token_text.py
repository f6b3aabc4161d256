"""Single tokens as text and as bytes, for log-probabilities."""

from __future__ import annotations

from functools import lru_cache

from linscale.data.tokenizer import END_OF_TEXT, ByteTokenizer, SubwordTokenizer, Tokenizer
from linscale.generate.text_stream import BROKEN

BEFORE = "a"  # tokens are decoded behind it: a first token can lose the space in front of it


class TokenText:
    """What each token of a tokenizer is, by itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(BEFORE)
        self._shown = tokenizer.decode(self._before)
        self.text = lru_cache(maxsize=1 << 16)(self._text)
        """The text of a token: its name where it is a special one, U+FFFD for a part of a character."""

    def bytes_of(self, token: int) -> list[int] | None:
        """The bytes of a token; None where they are not known, of a part of a character."""
        text = self.text(token)
        if BROKEN not in text:
            return list(text.encode())
        if isinstance(self._tokenizer, ByteTokenizer):
            return [token]
        name = self._name(token)
        if len(name) == 6 and name.startswith("<0x"):
            return [int(name[3:5], 16)]
        letters = _byte_of_letter()
        return [letters[letter] for letter in name] if all(letter in letters for letter in name) else None

    def _text(self, token: int) -> str:
        text = self._tokenizer.decode([*self._before, token]).removeprefix(self._shown)
        return text or self._name(token)

    def _name(self, token: int) -> str:
        if isinstance(self._tokenizer, SubwordTokenizer):
            return self._tokenizer.token_name(token)
        return END_OF_TEXT if token == self._tokenizer.eos_id else ""


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """The bytes that byte-level tokenizers write as letters (GPT-2's bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(other)}
