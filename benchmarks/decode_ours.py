"""Ours in decode.py: the engine by texts at once, by position in a text, and up to the first token."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from decode_setting import Setting

from linscale.generate.choice import Needs
from linscale.generate.continuation import Piece
from linscale.generate.engine import Engine
from linscale.generate.engine_config import DTYPES, EngineConfig
from linscale.generate.request import Event, Failed, Finished, Request
from linscale.generate.sampling import Sampling
from linscale.generate.snapshot import Snapshot
from linscale.generate.state_store import StateStore
from linscale.generate.states import moved
from linscale.generate.text import Text
from linscale.layers import SoftmaxAttention
from linscale.models.count import count_parameters, state_elements

ENDLESS = 10**9
ROUNDS = 5  # of timed steps, whose median counts
WARM = 16  # steps before a timing
LEAST_ROOM = 1024
Row = dict[str, Any]


class Ours:
    """A model with random weights, and the setting that it is measured in."""

    def __init__(self, arch: str, setting: Setting) -> None:
        self.arch, self.setting = arch, setting
        self.model = setting.model(arch)
        self.softmax = any(isinstance(block.mixer, SoftmaxAttention) for block in self.model.blocks)
        self.parameters = count_parameters(self.model.config).total

    def engine(self, slots: int, context: int, states: str = "float32") -> Engine:
        """With the setting's precision; memory of engines that nobody holds is given back first."""
        give_back(self.setting.device)
        dtype: Any = "bfloat16" if self.setting.dtype == torch.bfloat16 else "float32"
        config = EngineConfig(slots=slots, context=context, dtype=dtype, state_dtype=states)  # type: ignore[arg-type]
        return Engine(self.model, self.setting.tokenizer, config)

    def state_bytes(self, tokens: int, states: str = "float32") -> int:
        """What a text of so many tokens needs: keys and values have the setting's dtype, other states their own."""
        fixed = state_elements(self.model.config, 0)
        grown = state_elements(self.model.config, tokens) - fixed
        return DTYPES[states].itemsize * fixed + self.setting.dtype.itemsize * grown

    def moved_bytes(self, tokens: int, states: str) -> int:
        """What a step moves of it: keys and values are read, other states written too."""
        return self.state_bytes(tokens, states) + self.state_bytes(0, states)

    def weight_bytes(self) -> int:
        """What a step reads of weights."""
        config = self.model.config
        table = 0 if config.tie_embeddings else config.vocab_size * config.d_model
        return self.setting.dtype.itemsize * (self.parameters - table)

    @property
    def room(self) -> int:
        """Tokens that a text may get while it is timed."""
        return max(LEAST_ROOM, 4 * self.setting.steps)

    def sampling(self, draw: str, seed: int = 0, *, most: int = ENDLESS) -> Sampling:
        if draw == "greedy":
            return Sampling(temperature=0, max_tokens=most, ignore_eos=True)
        return Sampling(temperature=0.8, top_p=0.95, seed=seed, max_tokens=most, ignore_eos=True)


def give_back(device: torch.device) -> None:
    """The memory of what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def engine(bench: Ours) -> Iterator[Row]:
    """Milliseconds a step, by texts at once, precision of the states, and way of drawing."""
    setting = bench.setting
    for slots in setting.slots:
        if bench.softmax and slots not in (setting.slots[0], *setting.peer_texts):
            continue
        prompt = setting.prompt if slots == 1 else setting.short
        many = setting.device.type == "cuda" and slots >= 64 and bench.arch in ("tnl", "hgrn2")
        for states in ("float32", "bfloat16") if many else ("float32",):
            row = {"arch": bench.arch, "slots": slots, "prompt": prompt, "states": states}
            try:
                made = bench.engine(slots, max(setting.context, prompt + bench.room), states)
                snapshot = read(made, setting.text(prompt))
                for draw in ("greedy", "sampled"):
                    yield {**row, "draw": draw, **step_times(bench, made, snapshot, draw)}
            except torch.OutOfMemoryError as error:
                yield {**row, "failed": str(error).splitlines()[0]}
            made = snapshot = None  # type: ignore[assignment]


def step_times(bench: Ours, engine: Engine, snapshot: Snapshot, draw: str) -> Row:
    """A step of an engine all of whose slots write on behind `snapshot`."""
    setting, slots = bench.setting, engine.setup.slots
    most = ENDLESS if engine.limit is None else engine.limit - snapshot.length
    samplings = [bench.sampling(draw, seed, most=most) for seed in range(slots)]
    texts = fill(engine, snapshot, samplings)
    spent = sorted(per_step_s(setting, engine) for _ in range(ROUNDS))
    needs = Needs.of(samplings)
    launched = setting.seconds(lambda: [engine._slots.launch(needs) for _ in range(setting.steps)])
    memory = setting.memory_bytes
    for text in texts:
        engine.cancel(text)
    states = {dtype: name for name, dtype in DTYPES.items()}[engine.setup.state_dtype]
    bytes_moved = bench.weight_bytes() + slots * bench.moved_bytes(snapshot.length, states)
    step_s = spent[ROUNDS // 2]
    return {
        "ms": 1e3 * step_s, "tokens_per_s": slots / step_s, "noise": (spent[-1] - spent[0]) / step_s,
        "launched_ms": 1e3 * launched / setting.steps, "floor_ms": 1e3 * bytes_moved / setting.copy_bytes_per_s,
        "memory_bytes": memory,
    }  # fmt: skip


def fill(engine: Engine, snapshot: Snapshot, samplings: list[Sampling]) -> list[Text]:
    """Texts behind a snapshot in all slots, warm."""
    texts = [engine.submit(Request((), sampling, state=snapshot), failing) for sampling in samplings]
    while engine.stats().running < len(texts):
        engine.step()
    for _ in range(WARM):
        engine.step()
    return texts


def failing(event: Event) -> None:
    """Nobody listens; a text that fails ends the measurement."""
    if isinstance(event, Failed):
        raise RuntimeError(event.message)


def per_step_s(setting: Setting, engine: Engine) -> float:
    """Seconds of a step of a full engine."""

    def work() -> None:
        for _ in range(setting.steps):
            engine.step()

    before = engine.stats()
    seconds = setting.seconds(work)
    made = engine.stats().tokens_made - before.tokens_made
    if made != setting.steps * before.slots:
        raise RuntimeError(f"{made} tokens in {setting.steps} steps of {before.slots} texts: some text has ended")
    return seconds / setting.steps


def read(engine: Engine, tokens: Any, state: Snapshot | None = None) -> Snapshot:
    """The state behind more tokens."""
    events: list[Event] = []
    engine.submit(Request(tokens, None, state=state), events.append)
    while not engine.idle:
        engine.step()
    last = events[-1]
    if not isinstance(last, Finished):
        raise torch.OutOfMemoryError(str(last))
    assert last.snapshot is not None
    return last.snapshot


def length(bench: Ours) -> Iterator[Row]:
    """One text, by how long it is."""
    setting, state = bench.setting, None
    text = setting.text(setting.marks[-1])
    for mark in setting.marks:
        row = {"arch": bench.arch, "tokens": mark, "state_bytes": bench.state_bytes(mark)}
        if bench.softmax and not room_for(bench, mark):
            yield {**row, "failed": "keys and values do not fit"}
            return
        try:
            made = bench.engine(1, mark + bench.room)
            state = read(made, text[0 if state is None else state.length : mark], state)
            state = state._replace(state=moved(state.state, torch.device("cpu")))  # the slot has its own
            fill(made, state, [bench.sampling("greedy", most=bench.room)])
            spent = [per_step_s(setting, made) for _ in range(2)]
        except torch.OutOfMemoryError as error:
            yield {**row, "failed": str(error).splitlines()[0]}
            return
        noise = abs(spent[0] - spent[1]) / sum(spent)
        yield {**row, "ms": 5e2 * sum(spent), "noise": 2 * noise, "memory_bytes": setting.memory_bytes}
        made = None  # type: ignore[assignment]


def room_for(bench: Ours, tokens: int) -> bool:
    """Whether a slot of so many tokens fits, with what reading them takes."""
    if bench.setting.device.type != "cuda":
        return tokens <= 10_000  # it is a matter of patience there
    return 3 * bench.state_bytes(tokens + bench.room) < torch.cuda.mem_get_info()[0]


def prefill(bench: Ours) -> Iterator[Row]:
    """Seconds up to the first token of a prompt, the second time; and behind a state of many tokens."""
    setting = bench.setting
    for prompt in setting.prompts:
        if bench.softmax and prompt > 10_000:
            continue
        made = bench.engine(1, prompt + bench.room)
        request = Request(setting.text(prompt), bench.sampling("greedy", most=bench.room))
        first = first_token_s(setting, made, request)
        spent = min(first_token_s(setting, made, request) for _ in range(2))
        yield {"arch": bench.arch, "prompt": prompt, "first_token_s": spent, "first_call_s": first}
    if not bench.softmax:
        yield resume(bench, made)


def resume(bench: Ours, engine: Engine) -> Row:
    """From a state of as many tokens as there are marks for."""
    setting, sampling = bench.setting, bench.sampling("greedy", most=bench.room)
    state: list[Snapshot] = []
    read_s = setting.seconds(lambda: state.append(read(engine, setting.text(setting.marks[-1]))))
    spent = [first_token_s(setting, engine, Request((), sampling, state=state[0])) for _ in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(folder)
        path = store.save("state", state[0], bench.model, setting.tokenizer)
        loads = [setting.seconds(lambda: store.load("state", bench.model, setting.tokenizer)) for _ in range(3)]
        size = path.stat().st_size
    return {
        "arch": bench.arch, "state_of_tokens": setting.marks[-1], "read_s": read_s, "resume_ms": 1e3 * min(spent),
        "load_ms": 1e3 * min(loads), "file_bytes": size,
    }  # fmt: skip


def first_token_s(setting: Setting, engine: Engine, request: Request) -> float:
    events: list[Event] = []

    def work() -> None:
        text = engine.submit(request, events.append)
        while not any(isinstance(event, Piece) for event in events[-1:]):
            engine.step()
            if events and isinstance(events[-1], Failed):
                raise RuntimeError(events[-1].message)
        engine.cancel(text)

    return setting.seconds(work)
