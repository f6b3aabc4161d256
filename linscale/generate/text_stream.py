"""Tokens to text as they come: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from linscale.data.tokenizer import Tokenizer

BROKEN = "\ufffd"  # what bytes that are not UTF-8 decode to
PENDING = 3  # bytes that a character may have so far, each of which some tokenizers show as one BROKEN
MOST_WINDOW = 64  # tokens decoded at once
CONTEXT = 16  # tokens before that are tried, to tell whether the first word has a space in front


class TextStream:
    """The text of tokens, piece by piece: a piece is what no later token changes.

    All pieces together are the text of all tokens behind that of `before`, up to the first place where a stop string
    begins, once the text has one. A token may hold a part of a character, which is given when it is whole; text that
    may be the beginning of a stop string is kept until it is not.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        """`before`: tokens of the text that is continued, of which only the last are looked at."""
        self.stopped = False
        """Whether a stop string was found; later tokens give nothing."""
        self.length = 0
        """Characters known so far, given or kept back."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._kept = ""  # not given yet: may begin a stop string
        # Tokens are decoded behind some that came before: a first token can lose the space in front of it.
        self._window: list[int]  # those some, and tokens whose text is not whole yet
        self._context: int  # how many those some are
        self._context_length: int  # characters of their text
        self._known: str  # the beginning of the window's text that went to `_give`, or is the context's
        self._begin(_context(tokenizer, before))

    def add(self, token: int) -> str:
        """The text that one more token makes certain; often empty."""
        if self.stopped or token == self._tokenizer.eos_id:
            return ""
        window = [*self._window, token]
        text = self._tokenizer.decode(window)
        if not text.startswith(self._known):  # bytes after the context unmade its text: they count alone
            window, text = window[self._context :], self._tokenizer.decode(window[self._context :])
            self._known, self._context = self._known[self._context_length :], 0
        broken = len(text) - len(text.rstrip(BROKEN))
        sure = max(len(self._known), len(text) - min(PENDING, broken))
        new = text[len(self._known) : sure]
        if not broken and not new and len(window) > MOST_WINDOW:
            return ""  # special tokens without end: they are no context
        self._window, self._known = window, text[:sure]
        if not broken and new:
            self._begin(window[self._context :])
        elif len(window) > MOST_WINDOW:
            self._shorten(text)
        return self._give(new)

    def end(self) -> str:
        """The rest, where no more tokens come: what was kept back, and a character that was never completed."""
        if self.stopped:
            return ""
        given = self._give(self._tokenizer.decode(self._window)[len(self._known) :])
        rest, self._kept = self._kept, ""
        self._begin([])
        return given if self.stopped else given + rest

    def _begin(self, context: list[int]) -> None:
        """Make `context`, tokens whose text is known and whole, what the next tokens are decoded behind."""
        self._window, self._context = context, len(context)
        self._known = self._tokenizer.decode(context)
        self._context_length = len(self._known)

    def _shorten(self, text: str) -> None:
        """Drop tokens from a window of broken bytes without end, where its `text` is the sum of both parts."""
        for cut in range(len(self._window) - PENDING, max(self._context, len(self._window) - CONTEXT), -1):
            front = self._tokenizer.decode(self._window[:cut])
            if len(front) <= len(self._known) and front + self._tokenizer.decode(self._window[cut:]) == text:
                self._window, self._context, self._context_length = self._window[cut:], 0, 0
                self._known = self._known[len(front) :]
                return

    def _give(self, new: str) -> str:
        if not new:
            return ""
        self.length += len(new)
        text = self._kept + new
        first = min((text.index(ending) for ending in self._stop if ending in text), default=-1)
        if first >= 0:
            self.stopped, self._kept = True, ""
            return text[:first]
        held = max((_overlap(text, ending) for ending in self._stop), default=0)
        self._kept = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, ending: str) -> int:
    """How many characters at the end of `text` may be the beginning of `ending`."""
    return next((n for n in range(min(len(text), len(ending) - 1), 0, -1) if text.endswith(ending[:n])), 0)


def _context(tokenizer: Tokenizer, before: Sequence[int]) -> list[int]:
    """The fewest tokens at the end of `before` that are text and begin and end between characters; [] if none do."""
    for count in range(1, min(CONTEXT, len(before)) + 1):
        tokens = [int(token) for token in before[-count:]]
        text = tokenizer.decode(tokens)
        if text and BROKEN not in text:
            return tokens
    return []
