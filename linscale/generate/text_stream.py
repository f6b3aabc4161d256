"""Tokens to text as they come: nothing is shown that a later token could still change."""

from __future__ import annotations

from collections.abc import Sequence

from linscale.data.tokenizer import Tokenizer

CONTEXT = 8  # tokens before those that are decoded, as the first of a text can read otherwise
HALF = "\ufffd"  # what bytes that are not a whole character decode to


class TextStream:
    """The text of tokens that come one by one, up to the first of the stop strings, which is left out."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        """`before` are the last tokens of the text that is continued, none where one begins."""
        self._tokenizer, self._stop = tokenizer, [ending for ending in stop if ending]
        self._tokens = list(before[-CONTEXT:])
        self._shown = tokenizer.decode(self._tokens).rstrip(HALF)
        self._held = ""  # whole characters that may begin a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with one token more; nothing once a stop string came."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        whole = text.rstrip(HALF)
        new, self._shown = whole[len(self._shown) :], max(whole, self._shown, key=len)
        if whole == text and len(self._tokens) > 4 * CONTEXT:
            self._tokens = self._tokens[-CONTEXT:]
            self._shown = self._tokenizer.decode(self._tokens)
        return self._before_stop(new)

    def end(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._tokens)
        return self._before_stop(text[len(self._shown) :]) + self._held

    def _before_stop(self, new: str) -> str:
        text = self._held + new
        places = [text.index(ending) for ending in self._stop if ending in text]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, ending) for ending in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, ending: str) -> int:
    """Characters at the end of `text` that begin `ending`."""
    return next((n for n in range(min(len(text), len(ending) - 1), 0, -1) if text.endswith(ending[:n])), 0)
