"""Many texts at once on one model: prompts are read in chunks, and then all take their steps together, in slots.

    submit -> waiting -> a slot is free: reading, a chunk between two steps -> running, a token a step -> Finished

A running text waits for at most one chunk of one prompt before its next token. What a text is, to the last bit, depends
on its request and the engine's config: a prompt is read alone, in chunks counted from its own beginning, and steps are
of all slots, whatever is in them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import Needs
from linscale.generate.engine_config import EngineConfig, Setup
from linscale.generate.reading import Part
from linscale.generate.request import Failed, Finished, Listener, Progress, Request
from linscale.generate.slots import Launched, Slots
from linscale.generate.states import moved
from linscale.generate.text import Text
from linscale.models import LanguageModel

FEED_MOST = (
    512  # tokens of a prompt, or of what is left of it behind whole chunks, that are read by the kernels of steps
)
OUT_OF_MEMORY = "out of memory for this text; fewer slots, a shorter context or a smaller chunk leave more"
logger = logging.getLogger(__name__)


class Stats(NamedTuple):
    """What an engine does and has done."""

    slots: int
    running: int
    """Texts that take steps."""
    reading: int
    """Texts in a slot whose prompt is being read."""
    waiting: int
    """Texts without a slot."""
    state_bytes: int
    """Memory of one slot's state."""
    tokens_read: int
    """Of prompts."""
    tokens_made: int
    steps: int
    step_s: float
    """Seconds between the ends of the last two steps."""


class Engine:
    """Owned by one thread, which calls `accept`, `cancel` and `step`: see worker.py."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        """Takes a model in float32 on its device, and makes its own copy of the matrices for the steps. Where these
        are bfloat16 on a GPU, the model's own are cast to it in place, for prompts: `identify` it before."""
        self.model, self.tokenizer = model.eval(), tokenizer
        self.setup = setup = Setup.of(config or EngineConfig(), model)
        self._slots = Slots(
            model, tokenizer, setup.slots, setup.limit or 1, dtype=setup.dtype, state_dtype=setup.state_dtype
        )
        self._half = model.embedding.weight.is_cuda and setup.dtype == torch.bfloat16
        if self._half:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.weight.data = module.weight.data.to(setup.dtype)
        self._free = list(reversed(range(setup.slots)))
        self._waiting: deque[Text] = deque()
        self._reading: deque[Text] = deque()
        self._feeding: deque[Text] = deque()  # short prompts, whose slots read them by the kernels of steps
        self._fed = False  # whether the last thing read was such
        self._running: dict[int, Text] = {}
        self._asked: tuple[Needs, bool] | None = None  # what the running texts need together, while they stay the same
        self._launched: tuple[Launched, dict[int, Text]] | None = None
        self._read = self._made = self._steps = 0
        self._step_s = self._last_step = 0.0

    def warm_up(self) -> None:
        """Compile and capture what the first texts need, which otherwise they wait for."""
        self._slots.warm_up()
        if self.model.embedding.weight.is_cuda:  # kernels for a prompt, and for one behind a state
            prompt = np.zeros(3 * self.setup.chunk // 2, dtype=np.int64)
            text = Text(Request(prompt, None), lambda event: None, self.tokenizer)
            while not self._read_some(text):
                pass
            self._read -= len(prompt)

    @property
    def limit(self) -> int | None:
        """The most tokens of a text, prompt and continuation; None for a model without softmax layers."""
        return self.setup.limit

    def check(self, request: Request) -> None:
        """Raise UserError for a request that cannot be served."""
        tokens, size = np.asarray(request.tokens), self.model.config.vocab_size
        length = len(tokens) + (0 if request.state is None else request.state.length)
        if length == 0:
            raise UserError(
                "prompt: no tokens; expected at least one, such as the end-of-text token that opens a document"
            )
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            wrong = int(tokens[(tokens < 0) | (tokens >= size)][0])
            raise UserError(f"prompt: token {wrong} is not one of the model's; expected 0 to {size - 1}")
        most = 0 if request.sampling is None else request.sampling.max_tokens
        if self.limit is not None and length + most > self.limit:
            raise UserError(
                f"prompt: {length:,} tokens" + (f" and max_tokens = {most:,}" if most else "") + f" are more than the"
                f" {self.limit:,} that a text may have here; expected fewer, or a larger context"
            )
        if request.keep_tokens and request.state is not None and request.state.tokens is None:
            raise UserError("keep_tokens: the state was saved without its tokens; make it again with keep_tokens")

    def prepare(self, request: Request, listener: Listener) -> Text:
        """What `accept` takes; from any thread. Raises UserError for a request that cannot be served."""
        self.check(request)
        return Text(request, listener, self.tokenizer)

    def accept(self, text: Text) -> None:
        """Take a request; its listener is called from `step`."""
        self._waiting.append(text)

    def submit(self, request: Request, listener: Listener) -> Text:
        """`prepare` and `accept`."""
        text = self.prepare(request, listener)
        self.accept(text)
        return text

    def cancel(self, text: Text) -> None:
        """Forget a text, whose slot is free for others at once; nothing more is said of it."""
        for queue in (self._waiting, self._reading, self._feeding):
            if text in queue:
                queue.remove(text)
        self._leave(text)

    def give_up(self, message: str) -> None:
        """Fail all requests that are not over. The engine takes no more steps."""
        for text in (*self._waiting, *self._reading, *self._feeding, *self._running.values()):
            text.tell(Failed(message))
        self._waiting.clear()
        self._reading.clear()
        self._feeding.clear()
        self._running.clear()

    def stats(self) -> Stats:
        """What it does now; other threads may ask."""
        reading = len(self._reading) + len(self._feeding)
        return Stats(
            self.setup.slots, len(self._running), reading, len(self._waiting), self._slots.state_bytes,
            self._read, self._made, self._steps, self._step_s,
        )  # fmt: skip

    @property
    def idle(self) -> bool:
        """Whether `step` would have nothing to do."""
        return not (self._waiting or self._reading or self._feeding or self._running)

    def step(self) -> None:
        """Launch the next token of every running text, hand over those of the last step, read a chunk of a prompt.

        Raises what a device does when it fails: the engine is of no use then.
        """
        launched = None
        if self._running:
            if self._asked is None:
                texts = self._running.values()
                self._asked = Needs.of([text.sampling for text in texts]), any(text.request.keep for text in texts)
            needs, keep = self._asked
            launched = self._slots.launch(needs, keep=keep), dict(self._running)
        if self._slots.lag:
            launched, self._launched = self._launched, launched
        if launched is not None:
            self._hand_over(*launched)
        while self._waiting and self._free:
            text = self._waiting.popleft()
            text.slot = self._free.pop()
            self._reading.append(text)
        if self._feeding and not (self._fed and self._reading):
            self._feed()
        elif self._reading:
            self._fed = False
            text = self._reading.popleft()
            if not self._read_some(text):  # prompts take turns: a short one does not wait for a long one
                self._reading.append(text)

    def _hand_over(self, launched: Launched, texts: dict[int, Text]) -> None:
        """What a step has drawn, to the texts that were in the slots then and still are."""
        drawn = launched()
        now = time.monotonic()
        self._step_s, self._last_step, self._steps = now - self._last_step, now, self._steps + 1
        for slot, text in texts.items():
            if self._running.get(slot) is text:
                self._made += 1
                if text.add(*drawn.of(slot)):
                    self._end(text)

    def _end(self, text: Text) -> None:
        """A running text has its last token; the step under way, where there is one, reads it."""
        snapshot = None
        if text.request.keep:
            assert text.slot is not None
            settled = text.ended_by_eos or self._slots.lag == 1
            state = self._slots.take(text.slot, text.length - (0 if settled else 1))
            snapshot = text.snapshot(state, self._slots.logits(text.slot) if settled else None)
        self._leave(text)
        text.tell(Finished(snapshot, text.length))

    def _leave(self, text: Text) -> None:
        if text.slot is not None:
            if self._running.pop(text.slot, None) is not None:
                self._slots.free(text.slot)
                self._asked = None
            self._free.append(text.slot)
            text.slot = None

    def _read_some(self, text: Text) -> bool:
        """A chunk of a text's prompt, behind the last of which it runs or is finished; whether that was it."""
        try:
            rest = text.unread if text.request.sampling is None else text.unread[:-1]
            if text.request.sampling is not None and 0 < len(rest) <= FEED_MOST and self._slots.read_rows:
                assert text.slot is not None
                if text.state is not None:
                    self._slots.load(text.slot, text.state, text.read)
                self._feeding.append(text)
                return True
            if len(rest):
                self._read_chunk(text, rest[: self.setup.chunk], last=len(rest) <= self.setup.chunk)
            if len(rest) > self.setup.chunk:
                return False
            if text.request.sampling is None:
                assert text.state is not None
                self._leave(text)
                text.tell(Finished(text.snapshot(text.state, text.logits), text.length))
            else:
                self._begin(text)
        except torch.OutOfMemoryError as error:
            self._leave(text)
            logger.warning("a text of %d tokens: %s", text.length, error)
            text.tell(Failed(OUT_OF_MEMORY))
        return True

    @torch.no_grad()
    def _read_chunk(self, text: Text, tokens: np.ndarray, *, last: bool) -> None:
        device = self.model.embedding.weight.device
        with torch.autocast(device.type, torch.bfloat16) if self._half else nullcontext():
            state = None if text.state is None else moved(text.state, device)
            x, after = self.model.read(torch.from_numpy(tokens)[None].to(device), state)
            logits = self.model.logits(x[0, -1]).float() if last and text.request.sampling is None else None
        text.has_read(len(tokens), after, logits)
        self._read += len(tokens)
        text.tell(Progress(text.given - len(text.unread), text.given))

    def _feed(self) -> None:
        """As much of short prompts as is read at once, in order; those that have come to their last token run."""
        self._fed = True
        left, parts, complete = self._slots.read_rows, [], 0
        for text in self._feeding:
            tokens = text.unread[:-1][:left]
            if not len(tokens):
                break
            assert text.slot is not None
            parts.append(Part(text.slot, tokens, fresh=text.read == 0))
            text.has_read(len(tokens), None, None)
            left -= len(tokens)
            complete += len(text.unread) == 1
        self._slots.read(parts)
        self._read += self._slots.read_rows - left
        for text in list(islice(self._feeding, len(parts))):
            text.tell(Progress(text.given - len(text.unread), text.given))
        for _ in range(complete):
            text = self._feeding.popleft()
            self._start(text, int(text.unread[0]))

    def _begin(self, text: Text) -> None:
        """Have a text whose prompt is read but for its last token run, or draw from the logits that it came with."""
        assert text.slot is not None
        if len(text.unread):
            token, drawn = int(text.unread[0]), 0
        else:
            assert text.logits is not None
            first = self._slots.first(text.logits, text.sampling, seen=text.seen_tokens(), draws=text.draws)
            self._made += 1
            if text.add(*first.of(0)):
                self._finish_at_once(text)
                return
            token, drawn = first.tokens[0], 1
        self._slots.load(text.slot, text.state, text.read)
        self._start(text, token, drawn)

    def _start(self, text: Text, token: int, drawn: int = 0) -> None:
        """Have a text, whose slot holds its state, take steps: `token` is read next, `drawn` times it has drawn."""
        assert text.slot is not None
        seed, before = text.draws
        self._slots.begin(text.slot, token, text.sampling, seen=text.seen_tokens(), draws=(seed, before + drawn))
        text.state = None  # it lives in the slot now
        self._running[text.slot] = text
        self._asked = None

    def _finish_at_once(self, text: Text) -> None:
        """A text whose first token, drawn from logits that it came with, is its last."""
        snapshot = None
        if text.request.keep:
            assert text.state is not None
            snapshot = text.snapshot(text.state, text.logits if text.ended_by_eos else None)
        self._leave(text)
        text.tell(Finished(snapshot, text.length))
