"""A slot of one text at a time, which a session and its forks take turns in: their steps, one token each.

What is in the slot is a session's while it makes tokens; another session that needs the slot has it put down first.
A step that was interrupted, wherever it was, is taken again from the same numbers: linear layers' states are copied
before it, and keys and values are only added.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import Needs
from linscale.generate.sampling import Sampling
from linscale.generate.slots import Drawn, Slots
from linscale.models import LanguageModel, State

LEAST_ROOM = 256  # tokens; a softmax layer's is doubled when a text outgrows it


class Solo:
    """`hold` puts a text into the slot, `step` reads a token of it and draws the next, `take` gives its state."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        """Nothing is made before the first text comes."""
        self._model, self._tokenizer = model, tokenizer
        self._slots: Slots | None = None
        self._owner: weakref.WeakMethod[Callable[[], None]] | None = None
        self._run: object = None
        self._length = 0  # tokens that the state in the slot has read
        self._before: list[Tensor] = []  # linear layers' states before the last step
        self._whole = True  # no step was begun and not finished

    def owned(self, put_down: Callable[[], None]) -> bool:
        """Whether the text in the slot came with this `put_down`."""
        return self._owner is not None and self._owner() == put_down

    def goes_on(self, run: object) -> bool:
        """Whether the text in the slot goes on by the rules of `run`."""
        return self._run is run

    def hold(
        self, run: object, put_down: Callable[[], None], token: int, state: State | None, length: int,
        sampling: Sampling, seen: Sequence[int], draws: tuple[int, int],
    ) -> None:  # fmt: skip
        """Take a text, see `Slots.put`. `put_down` is its session's method that takes it out, called when another text
        comes; `run` stands for the rules."""
        if self._owner is not None and (take_out := self._owner()) is not None:
            take_out()
        self.clear()
        slots = self._with_room(length + 1)
        slots.load(0, state, length)
        slots.begin(0, token, sampling, seen=seen, draws=draws)
        self._length, self._whole = length, True
        self._run, self._owner = run, weakref.WeakMethod(put_down)

    def step(self, needs: Needs) -> Drawn:
        """Read the token that was put or drawn last, and draw the next."""
        slots = self._with_room(self._length + 1)
        _copy(slots.step.memory(), self._before)
        self._whole = False
        drawn = slots.launch(needs)()
        self._length, self._whole = self._length + 1, True
        return drawn

    def take(self, length: int) -> tuple[State, Tensor | None]:
        """The text's state behind `length` tokens, a copy, and the logits there. Where the last step was interrupted,
        or its end was never heard of, they are None and the state is the one before it."""
        assert self._slots is not None
        step = self._slots.step
        if self._whole and self._length == length:
            return step.take(0, length), step.logits[0].clone()
        _copy(self._before, step.memory())
        return step.take(0, length), None

    def clear(self) -> None:
        """The text that was in the slot has left it."""
        self._run = self._owner = None

    def _with_room(self, length: int) -> Slots:
        """The slot, where softmax layers have room for so many tokens."""
        if self._slots is None:
            weight = self._model.embedding.weight
            room = max(LEAST_ROOM, 1 << length.bit_length())
            self._slots = Slots(self._model, self._tokenizer, 1, room, dtype=weight.dtype, state_dtype=torch.float32)
            self._before = [part.clone() for part in self._slots.step.memory()]
        elif self._slots.step.capacity < length:
            self._slots.make_room(1 << length.bit_length())
        return self._slots


def _copy(tensors: list[Tensor], into: list[Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(into, tensors)
