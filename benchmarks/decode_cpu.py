"""A LLaMA on a CPU in decode.py: ours beside the same weights, exported, in transformers."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from decode_setting import TINY, Setting

from linscale import checkpoint
from linscale.adapt.huggingface import export
from linscale.data.tokenizer import Tokenizer, load_tokenizer, train_bpe
from linscale.generate.continuation import Piece
from linscale.generate.engine import Engine
from linscale.generate.engine_config import EngineConfig
from linscale.generate.request import Event, Request
from linscale.generate.sample import write
from linscale.generate.sampling import Sampling
from linscale.models import CONFIGS, LanguageModel, build_model

SHAPE = {"vocab_size": 4096, "d_model": 384, "n_layers": 6, "head_dim": 64, "init_std": 0.05}
CORPUS = Path(checkpoint.__file__).parent.parent / "data" / "corpora" / "tinyshakespeare.txt"
THREADS, PROMPT, MADE, ROUNDS = 2, 64, 256, 3
GOAL = 5.0
Row = dict[str, Any]
Writer = Callable[[int], tuple[list[int], list[float]]]
"""Count -> that many tokens, and when each came."""


def rows(setting: Setting, *, peer: bool) -> Iterator[Row]:
    """A row a way to write; those of transformers first. All take turns, and the best of a few rounds counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, before))
    prompt, made = (8, 6) if setting.tiny else (PROMPT, MADE)
    tokenizer = load_tokenizer("byte") if setting.tiny else train_bpe([CORPUS.read_text()], SHAPE["vocab_size"])
    model = build_model(CONFIGS["llama"](**(TINY if setting.tiny else SHAPE))).eval()
    tokens = tokenizer.encode(CORPUS.read_text()[:2000])[:prompt]
    with tempfile.TemporaryDirectory() as folder:
        writers = {} if not peer else peers(model, tokenizer, tokens, Path(folder))
        writers |= ours(model, tokenizer, tokens)
        found: dict[str, list[tuple[list[int], float]]] = {name: [] for name in writers}
        for _ in range(ROUNDS):
            for name, writer in writers.items():
                written, times = writer(made)
                found[name].append((written, (len(times) - 1) / (times[-1] - times[0])))
    best = {name: max(speed for _, speed in runs) for name, runs in found.items()}
    expected = next(iter(found.values()))[0][0]
    theirs = max((best[name] for name in best if name.startswith("transformers")), default=None)
    for name, runs in found.items():
        row: Row = {"writer": name, "threads": torch.get_num_threads(), "parameters": parameters(model)}
        row |= {
            "prompt": prompt,
            "made": made,
            "tokens_per_s": best[name],
            "rounds": [round(speed, 1) for _, speed in runs],
        }
        row |= {"same_tokens": all(written == expected for written, _ in runs)}
        yield row if theirs is None else row | {"ratio": best[name] / theirs, "goal": GOAL}
    torch.set_num_threads(before)


def parameters(model: LanguageModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def ours(model: LanguageModel, tokenizer: Tokenizer, prompt: Sequence[int]) -> dict[str, Writer]:
    """The engine with one slot, and a session, greedy."""
    engine = Engine(model, tokenizer, EngineConfig(slots=1, context=1024))

    def by_engine(count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times: list[float] = []

        def listen(event: Event) -> None:
            if isinstance(event, Piece):
                tokens.append(event.token)
                times.append(time.perf_counter())

        engine.submit(Request(prompt, Sampling(max_tokens=count, temperature=0, ignore_eos=True)), listen)
        while not engine.idle:
            engine.step()
        return tokens, times

    def by_session(count: int) -> tuple[list[int], list[float]]:
        sampling = Sampling(max_tokens=count, temperature=0, ignore_eos=True)
        pairs = [(piece.token, time.perf_counter()) for piece in write(model, tokenizer, prompt, sampling)]
        return [token for token, _ in pairs], [moment for _, moment in pairs]

    return {"linscale engine": by_engine, "linscale write": by_session}


def peers(model: LanguageModel, tokenizer: Tokenizer, prompt: Sequence[int], folder: Path) -> dict[str, Writer]:
    """`generate` of transformers on the exported model, with either cache; nothing where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        print("cpu: transformers is not installed")
        return {}
    from decode_peers import Clock
    from transformers import AutoModelForCausalLM

    run = folder / "run"
    run.mkdir()
    tokenizer.save(run)
    optimizer = torch.optim.SGD(model.parameters())
    checkpoint.save(run, 0, model, optimizer, {"tokens": 0, "tokenizer": tokenizer.fingerprint})
    theirs: Any = AutoModelForCausalLM.from_pretrained(export(run, folder / "exported")).eval()
    theirs.generation_config.eos_token_id = None
    ids = torch.tensor([list(prompt)])

    def by(**options: Any) -> Writer:
        def write(count: int) -> tuple[list[int], list[float]]:
            clock = Clock()
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0,
                streamer=clock, **options,
            )  # fmt: skip
            return out[0, len(prompt) :].tolist(), clock.times[1:]

        return write

    return {"transformers dynamic": by(), "transformers static": by(cache_implementation="static")}
