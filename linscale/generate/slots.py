"""Texts in slots that take their steps together: the model's step, the draw, and the token that is read next.

Where there are kernels a step is one CUDA graph: it reads each text's last token, draws the next by the rules of its
row and leaves it where the next step reads it, so that the host need not look before it launches again. A row that
draws the end-of-text token rests from then on. Shapes never change, so that no row depends on what else is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import Choice, Needs, Rows, choose, logprobs
from linscale.generate.reading import Part, Reading
from linscale.generate.sampling import MOST_LOGPROBS, Sampling
from linscale.generate.steps import decoding_step
from linscale.models import LanguageModel, State

READ_ROWS = 64  # tokens of prompts that are read at once
WARM = 2  # runs before a graph is captured: kernels are compiled and libraries have their workspaces
T = TypeVar("T")
Alternatives: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Log-probabilities of what was drawn, the most probable tokens, and theirs."""


class Drawn(NamedTuple):
    """What every slot drew, on the host."""

    tokens: list[int]
    logprobs: list[float] | None = None
    best_tokens: list[list[int]] | None = None
    best_logprobs: list[list[float]] | None = None

    def of(self, slot: int) -> tuple[int, float | None, list[tuple[int, float]]]:
        """What `Continuation.add` takes."""
        if self.logprobs is None or self.best_tokens is None or self.best_logprobs is None:
            return self.tokens[slot], None, []
        best = zip(self.best_tokens[slot], self.best_logprobs[slot], strict=True)
        return self.tokens[slot], self.logprobs[slot], list(best)


Launched: TypeAlias = Callable[[], Drawn]
"""A step under way: waits for it. May be called until the step after the next is launched."""


class Slots:
    """S texts. `lag` is how many steps may be launched before the first is waited for: 1 with graphs, else 0."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, count: int, capacity: int, *,
        dtype: torch.dtype, state_dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.step = decoding_step(model, count, capacity, dtype=dtype, state_dtype=state_dtype)
        self.count, self.device = count, self.step.tokens.device
        self.vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self._rows = Rows.empty(count, tokenizer.vocab_size, self.device)
        self._eos = tokenizer.eos_id
        self._ends = torch.ones(count, dtype=torch.bool, device=self.device)  # where that token ends a text
        self._kept = torch.zeros_like(self.step.logits)  # logits of the last step in which a row was active
        graphs = self.device.type == "cuda" and self.step.captures
        self.lag = 1 if graphs else 0
        self._graphs = Graphs(self) if graphs else None
        self._reading = Reading(self.step, READ_ROWS) if Reading.possible(self.step) else None

    def load(self, slot: int, state: State | None, length: int) -> None:
        """Put a state that has read `length` tokens into a slot, which rests; None: an empty one."""
        self.step.put(slot, state, length)

    def begin(
        self, slot: int, token: int, sampling: Sampling, *, seen: Sequence[int] = (), draws: tuple[int, int] = (0, 0)
    ) -> None:
        """Have a slot take steps behind what it holds: `token` is read next.

        seen   tokens of the text, which a repetition penalty counts
        draws  the seed, and how many times it has drawn
        """
        self.step.tokens[slot] = token
        self._rows.put(slot, sampling, seen, draws[1], seed=draws[0])
        self._ends[slot] = not sampling.ignore_eos
        self.step.active[slot] = 1

    @property
    def read_rows(self) -> int:
        """The most tokens that `read` takes; 0 where it takes none."""
        return 0 if self._reading is None else self._reading.rows

    def read(self, parts: Sequence[Part]) -> None:
        """Read some tokens of texts in slots that rest, at most `read_rows` together."""
        assert self._reading is not None
        self._reading.give(parts)
        if self._graphs is None:
            self._reading.run()
        else:
            self._graphs.read(self._reading)

    def first(
        self, logits: Tensor, sampling: Sampling, *, seen: Sequence[int] = (), draws: tuple[int, int] = (0, 0)
    ) -> Drawn:
        """What a text draws behind logits (V,) that are known; waits for the device."""
        needs = Needs.of([sampling])
        rows = Rows.empty(1, self._rows.seen.shape[1], self.device, penalties=needs.penalty)
        rows.put(0, sampling, seen, draws[1], seed=draws[0])
        return on_host(choose(logits[None].to(self.device), rows, needs, self.vocab_size))

    def free(self, slot: int) -> None:
        """The text rests, and its slot may be put to other use; a step that is under way still reads its token."""
        self.step.active[slot] = 0

    def take(self, slot: int, length: int) -> State:
        """The state of a text that has read `length` tokens, a copy."""
        return self.step.take(slot, length)

    def logits(self, slot: int) -> Tensor:
        """(V,) behind the last token that a text has read in a step that was launched with `keep`; a copy."""
        return self._kept[slot].clone()

    @property
    def state_bytes(self) -> int:
        """Memory of one text's state."""
        parts = [part for room in self.step.states for part in room]
        parts += [] if self.step.encoder_state is None else [self.step.encoder_state]
        return sum(part.nbytes for part in parts) // self.count

    def make_room(self, capacity: int) -> None:
        """Room for so many tokens of each text in softmax layers. Waits for the device; graphs are captured anew."""
        self.step.make_room(capacity)
        if self._graphs is not None:
            self._graphs = Graphs(self)

    def warm_up(self) -> None:
        """Make ready what the first steps need, which otherwise they wait for."""
        if self._graphs is not None:
            for logprobs, keep in itertools.product((False, True), repeat=2):
                self._graphs.get(logprobs=logprobs, keep=keep)
            if self._reading is not None:
                self._reading.give(())
                self._graphs.read(self._reading)

    def launch(self, needs: Needs, *, keep: bool = False) -> Launched:
        """One step of all texts that do not rest; `needs` is what their rules ask for together.

        keep  `logits` will be asked for
        """
        if self._graphs is not None:
            return self._graphs.launch(logprobs=needs.logprobs is not None, keep=keep)
        drawn = on_host(self._run(needs, keep))
        return lambda: drawn

    @torch.no_grad()
    def _run(self, needs: Needs, keep: bool) -> Choice:
        step = self.step
        step.run()
        if keep:
            self.keep()
        choice = choose(step.logits, self._rows, needs, self.vocab_size)
        self._rows.advance(choice.tokens, penalties=needs.penalty)
        step.tokens.copy_(choice.tokens)
        step.active.mul_(~((choice.tokens == self._eos) & self._ends))
        return choice

    def keep(self) -> None:
        """Copy the logits of rows that do not rest."""
        self._kept.copy_(torch.where(self.step.active[:, None] > 0, self.step.logits, self._kept))


class Graphs:
    """The step and its draw as CUDA graphs, one for each kind of thing that is asked of it."""

    def __init__(self, slots: Slots) -> None:
        from linscale.ops.decode import draw

        self._slots, self._draw = slots, draw
        new: dict[str, Any] = {"dtype": torch.int64, "device": slots.device}
        self._weights = torch.zeros(slots.count, slots.vocab_size, **new)
        self._few = torch.zeros(slots.count, draw.FEW, **new)
        self._turns = torch.zeros(slots.count, **new)
        self._ring = draw.rings(slots.count, slots.device)
        self._turn = 0
        self._read: torch.cuda.CUDAGraph | None = None
        self._graphs: dict[tuple[bool, bool], tuple[torch.cuda.CUDAGraph, Alternatives | None]] = {}
        self._pinned: dict[tuple[bool, bool], list[Alternatives]] = {}

    def launch(self, *, logprobs: bool, keep: bool) -> Launched:
        """See Slots."""
        graph, alternatives = self.get(logprobs=logprobs, keep=keep)
        graph.replay()
        tokens, host = self._ring[self._turn % len(self._ring)], None
        if alternatives is not None:
            host = self._pinned[logprobs, keep][self._turn % 2]
            for there, x in zip(host, alternatives, strict=True):
                there.copy_(x, non_blocking=True)
        self._turn += 1
        done = torch.cuda.Event()
        done.record()

        def wait() -> Drawn:
            done.synchronize()
            return Drawn(tokens.tolist(), *(() if host is None else (x.tolist() for x in host)))

        return wait

    @torch.no_grad()
    def get(self, *, logprobs: bool, keep: bool) -> tuple[torch.cuda.CUDAGraph, Alternatives | None]:
        """The graph, captured where there is none yet; texts in the slots do not notice."""
        if (logprobs, keep) in self._graphs:
            return self._graphs[logprobs, keep]
        step, rows = self._slots.step, self._slots._rows
        changed = (step.tokens, step.active, rows.step, rows.seen, self._turns, self._slots._kept)
        before = [x.clone() for x in changed]
        step.active.zero_()
        graph, alternatives = _captured(lambda: self._run(logprobs, keep))
        for x, value in zip(changed, before, strict=True):
            x.copy_(value)
        self._graphs[logprobs, keep] = graph, alternatives
        if alternatives is not None:
            self._pinned[logprobs, keep] = [_pinned(alternatives), _pinned(alternatives)]
        return graph, alternatives

    def read(self, reading: Reading) -> None:
        """Read what `reading` was given. The first time it is to be nothing."""
        if self._read is None:
            self._read, _ = _captured(reading.run)
        self._read.replay()

    def _run(self, with_logprobs: bool, keep: bool) -> Alternatives | None:
        slots, step = self._slots, self._slots.step
        step.run()
        if keep:
            slots.keep()
        rules = (*slots._rows[:7],)
        self._draw.draw(
            step.logits, slots._rows.seen, rules, slots._ends, step.active, step.tokens, self._weights, self._few,
            self._ring, self._turns, slots._eos,
        )  # fmt: skip
        return logprobs(step.logits[:, : slots.vocab_size], step.tokens, MOST_LOGPROBS) if with_logprobs else None


def _captured(work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of `work`, which is run before, and what it returns in the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return graph, result


def on_host(choice: Choice) -> Drawn:
    """A choice as lists."""
    tokens, *rest = choice
    return Drawn(tokens.tolist(), *(None if x is None else x.tolist() for x in rest))


def _pinned(parts: Alternatives) -> Alternatives:
    first, second, third = (torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in parts)
    return first, second, third
