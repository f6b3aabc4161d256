"""Texts in slots that take their steps together: the model's step, the draw, and the token that is read next.

One step is one CUDA graph where there is a GPU: it reads each text's last token, draws the next by the rules of its
row and leaves it where the next step reads it, so that the host need not look before it launches again. A row that
draws the end-of-text token rests from then on. Shapes never change, so that no row depends on what else is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import ALL, Choice, Needs, Rows, choose
from linscale.generate.sampling import MOST_LOGPROBS, Sampling
from linscale.generate.step import DecodingStep
from linscale.models import LanguageModel, State

WARM = 2  # runs before a graph is captured: kernels are compiled and libraries have their workspaces


class Drawn(NamedTuple):
    """What every slot drew, on the host."""

    tokens: list[int]
    logprobs: list[float] | None
    best_tokens: list[list[int]] | None
    best_logprobs: list[list[float]] | None

    def of(self, slot: int) -> tuple[int, float | None, list[tuple[int, float]]]:
        """What `Continuation.add` takes."""
        if self.logprobs is None or self.best_tokens is None or self.best_logprobs is None:
            return self.tokens[slot], None, []
        best = zip(self.best_tokens[slot], self.best_logprobs[slot], strict=True)
        return self.tokens[slot], self.logprobs[slot], list(best)


class Launched:
    """A step under way."""

    def __init__(self, choice: Choice, copied: torch.cuda.Event | None) -> None:
        self._choice, self._copied = choice, copied

    def wait(self) -> Drawn:
        """What it drew. May be asked for until the step after the next is launched."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens, *rest = self._choice
        return Drawn(tokens.tolist(), *(None if x is None else x.tolist() for x in rest))


class Slots:
    """S texts. `lag` is how many steps may be launched before the first is waited for: 1 on a GPU, 0 on a CPU."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, count: int, capacity: int, *,
        dtype: torch.dtype, state_dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.step = DecodingStep(model, count, capacity, dtype=dtype, state_dtype=state_dtype)
        self.count, self.device = count, self.step.tokens.device
        self.lag = 1 if self.device.type == "cuda" else 0
        self.vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self._rows = Rows.empty(count, tokenizer.vocab_size, self.device)
        self._eos = tokenizer.eos_id
        self._ends = torch.ones(count, dtype=torch.bool, device=self.device)  # where that token ends a text
        self._kept = torch.zeros_like(self.step.logits)  # logits of the last step in which a row was active
        self._graphs: dict[tuple[Needs, bool], tuple[torch.cuda.CUDAGraph, Choice]] = {}
        self._pinned: dict[Needs, tuple[Choice, Choice]] = {}
        self._launches = 0

    def put(
        self, slot: int, token: int, state: State | None, length: int, sampling: Sampling, *,
        seen: Sequence[int] = (), draws: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        """Begin a text: `token` is read next, behind `state`, which has read `length` tokens (None: none).

        seen   tokens of the text, which a repetition penalty counts
        draws  the seed, and how many times it has drawn
        """
        self.step.put(slot, state, length)
        self.step.tokens[slot] = token
        self._rows.put(slot, sampling, seen, draws[1], seed=draws[0])
        self._ends[slot] = not sampling.ignore_eos
        self.step.active[slot] = 1

    def first(
        self, logits: Tensor, sampling: Sampling, *, seen: Sequence[int] = (), draws: tuple[int, int] = (0, 0)
    ) -> Drawn:
        """What a text draws behind logits (V,) that are known; waits for the device."""
        needs = Needs.of([sampling])
        rows = Rows.empty(1, self._rows.seen.shape[1], self.device, penalties=needs.penalty)
        rows.put(0, sampling, seen, draws[1], seed=draws[0])
        return Launched(choose(logits[None].to(self.device), rows, needs, self.vocab_size), None).wait()

    @property
    def state_bytes(self) -> int:
        """Memory of one text's state."""
        parts = [part for room in self.step.states for part in room]
        parts += [] if self.step.encoder_state is None else [self.step.encoder_state]
        return sum(part.nbytes for part in parts) // self.count

    def free(self, slot: int) -> None:
        """The text rests, and its slot may be put to other use; a step that is under way still reads its token."""
        self.step.active[slot] = 0

    def take(self, slot: int, length: int) -> State:
        """The state of a text that has read `length` tokens, a copy."""
        return self.step.take(slot, length)

    def logits(self, slot: int) -> Tensor:
        """(V,) behind the last token that a text has read in a step that was launched with `keep`; a copy."""
        return self._kept[slot].clone()

    def launch(self, samplings: Sequence[Sampling], *, keep: bool = False) -> Launched:
        """One step of all texts that do not rest, whose rules are among `samplings`."""
        needs = Needs.of(samplings)
        if self.device.type != "cuda":
            return Launched(self._run(needs, keep), None)
        needs = _few(needs)
        if (needs, keep) not in self._graphs:
            self.capture(needs, keep=keep)
        graph, choice = self._graphs[needs, keep]
        graph.replay()
        if needs not in self._pinned:
            self._pinned[needs] = _pinned(choice), _pinned(choice)
        self._launches += 1
        host = self._pinned[needs][self._launches % 2]
        for there, x in zip(host, choice, strict=True):
            if x is not None and there is not None:
                there.copy_(x, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return Launched(host, copied)

    def capture(self, needs: Needs, *, keep: bool = False) -> None:
        """Make the graph of these needs ready, where there are graphs; texts in the slots do not notice."""
        if self.device.type != "cuda":
            return
        step, rows = self.step, self._rows
        changed = (step.tokens, step.active, rows.step, rows.seen, self._kept)
        before = [x.clone() for x in changed]
        step.active.zero_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self._run(needs, keep)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            choice = self._run(needs, keep)
        self._graphs[needs, keep] = graph, choice
        for x, value in zip(changed, before, strict=True):
            x.copy_(value)

    @torch.no_grad()
    def _run(self, needs: Needs, keep: bool) -> Choice:
        step = self.step
        step.run()
        choice = choose(step.logits, self._rows, needs, self.vocab_size)
        self._rows.advance(choice.tokens, penalties=needs.penalty)
        if keep:
            self._kept.copy_(torch.where(step.active[:, None] > 0, step.logits, self._kept))
        step.tokens.copy_(choice.tokens)
        step.active.mul_(~((choice.tokens == self._eos) & self._ends))
        return choice


def _few(needs: Needs) -> Needs:
    """More than is needed, of few kinds, so that few graphs are captured."""
    ranks = next(size for size in (0, 64, 1024, ALL) if needs.ranks <= size)
    filtered = needs.penalty or needs.min_p
    logprobs = None if needs.logprobs is None else MOST_LOGPROBS
    return Needs(needs.draws, filtered, ranks, filtered and needs.draws, logprobs)


def _pinned(choice: Choice) -> Choice:
    tokens, *rest = (None if x is None else torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in choice)
    assert tokens is not None
    return Choice(tokens, *rest)
