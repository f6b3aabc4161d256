"""Prompts that are being read, a part at a time and in turns, so that a short one does not wait for a long one.

A long prompt is read by the model, a chunk of its own at a time, which takes no slot. A short one is read in its slot
by the kernels of steps where there are such (reading.py), together with others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import torch

from linscale.generate.engine_config import Setup
from linscale.generate.precision import reading
from linscale.generate.reading import Part
from linscale.generate.request import Progress
from linscale.generate.slots import Slots
from linscale.generate.states import moved
from linscale.generate.text import Text
from linscale.models import LanguageModel

SHORT = 512  # tokens


class Prompts:
    """Texts none of which runs yet."""

    def __init__(self, model: LanguageModel, setup: Setup, slots: Slots) -> None:
        self._model, self._setup, self._slots = model, setup, slots
        self._long: deque[Text] = deque()
        self._short: deque[Text] = deque()
        self._turn_of_long = False
        self.read = 0
        """Tokens so far."""

    def is_short(self, text: Text) -> bool:
        """Whether a prompt is read in a slot: by its length alone, so that no text depends on what else is there."""
        return 0 < len(_rest(text)) <= SHORT and text.request.sampling is not None and self._slots.read_rows > 0

    def takes_slot(self, text: Text) -> bool:
        """Whether a text needs a slot from the beginning: a short prompt, or one that is read already."""
        return text.request.sampling is not None and (self.is_short(text) or not len(_rest(text)))

    @property
    def has_room(self) -> bool:
        """For one more prompt that takes no slot: there are never more of them than slots, each with a state."""
        return len(self._long) < self._setup.slots

    def add(self, text: Text) -> None:
        """Read a text's prompt: all of it, or all but the last token where the text is to go on."""
        if self.is_short(text):
            assert text.slot is not None
            if text.state is not None:
                self._slots.load(text.slot, text.state, text.read)
            text.in_slot = True
            self._short.append(text)
        else:
            self._long.append(text)

    def remove(self, text: Text) -> None:
        """Forget a text, if it is here."""
        for queue in (self._long, self._short):
            if text in queue:
                queue.remove(text)

    def clear(self) -> None:
        """Forget all."""
        self._long.clear()
        self._short.clear()

    def __len__(self) -> int:
        return len(self._long) + len(self._short)

    def __iter__(self) -> Iterator[Text]:
        return chain(self._long, self._short)

    def step(self) -> list[Text]:
        """Read one part, of a long prompt or of some short ones. Returns the texts whose prompts it has come to the end
        of, and those that there was no memory for, of which it says so (`Text.no_memory`)."""
        if self._short and not (self._turn_of_long and self._long):
            self._turn_of_long = True
            return self._pass()
        if not self._long:
            return []
        self._turn_of_long = False
        text = self._long.popleft()
        try:
            done = self._part(text)
        except torch.OutOfMemoryError as error:
            text.no_memory = str(error)
            return [text]
        if not done:
            self._long.append(text)
        return [text] if done else []

    def _part(self, text: Text) -> bool:
        """A chunk of a prompt; whether that was its end."""
        rest, chunk = _rest(text), self._setup.chunk
        if len(rest):
            self._chunk(text, rest[:chunk], last=text.request.sampling is None and len(rest) <= chunk)
        return len(rest) <= chunk

    @torch.no_grad()
    def _chunk(self, text: Text, tokens: np.ndarray, *, last: bool) -> None:
        device = self._model.embedding.weight.device
        with reading(self._model, self._setup.dtype):
            state = None if text.state is None else moved(text.state, device)
            x, after = self._model.read(torch.from_numpy(tokens)[None].to(device), state)
            logits = self._model.logits(x[0, -1]).float() if last else None
        text.has_read(len(tokens), after, logits)
        self._tell(text, len(tokens))

    def _pass(self) -> list[Text]:
        """As much of short prompts as is read at once, in order; those that it has come to the end of."""
        left, parts, complete = self._slots.read_rows, list[Part](), 0
        for text in self._short:
            tokens = text.unread[:-1][:left]
            if not len(tokens):
                break
            assert text.slot is not None
            parts.append(Part(text.slot, tokens, fresh=text.read == 0))
            text.has_read(len(tokens), None, None)
            left -= len(tokens)
            complete += len(text.unread) == 1
        self._slots.read(parts)
        for text, part in zip(list(islice(self._short, len(parts))), parts, strict=True):
            self._tell(text, len(part.tokens))
        return [self._short.popleft() for _ in range(complete)]

    def _tell(self, text: Text, count: int) -> None:
        self.read += count
        text.tell(Progress(text.given - len(text.unread), text.given))


def _rest(text: Text) -> np.ndarray:
    """What is left of its prompt: the last token of a text that goes on is read by its first step."""
    return text.unread if text.request.sampling is None else text.unread[:-1]
