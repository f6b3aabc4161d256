"""Generation: the state gives what the whole text would, and the draw follows the logits and the seed."""

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from linscale.config import UserError, parse
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.generate.batch import read_documents
from linscale.generate.sample import opened, sample, stream, write
from linscale.generate.sampling import Sampling
from linscale.generate.session import Session
from linscale.generate.snapshot import Snapshot
from linscale.models import LanguageModel, ModelConfig, build_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("byte")


def tiny(arch: str = "hgrn2", vocab_size: int = 257) -> LanguageModel:
    shape = {"arch": arch, "vocab_size": vocab_size, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    model = build_model(parse(ModelConfig, shape))
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():  # wider than at the start, so that the next token depends on the text
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


class Planted(nn.Module):
    """A model with the same logits at every position."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(logits)
        self.blocks: list[nn.Module] = []
        self.seen: list[list[int]] = []

    @property
    def embedding(self) -> Any:
        return SimpleNamespace(weight=self.row)

    def read(self, tokens: torch.Tensor, state: Any = None, cu_seqlens: Any = None) -> Any:
        self.seen.append(tokens[0].tolist())
        read = 0 if state is None else state.position
        return torch.zeros(*tokens.shape, 1), SimpleNamespace(position=read + tokens.shape[1])

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.row.expand(*x.shape[:-1], -1)


def planted(values: dict[str, float], vocab_size: int = 257) -> Any:
    """A model that draws the given characters with logits `values` and nothing else."""
    logits = torch.full((vocab_size,), -1e4)
    for character, value in values.items():
        logits[ord(character)] = value
    return Planted(logits)


@pytest.mark.parametrize("arch", ["llama", "tnl", "hgrn2", "cosformer2"])
def test_decoding_from_the_state_equals_reading_the_whole_text_again(arch: str, tokenizer: Tokenizer) -> None:
    model = tiny(arch)
    tokens = [tokenizer.eos_id, *tokenizer.encode("The cat")]
    streamed = list(stream(model, tokenizer, tokens, max_tokens=20, temperature=0))
    for expected in streamed:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1]
        assert expected == int(logits.argmax())
        tokens.append(expected)
    assert len(set(streamed)) > 1


def test_the_prompt_is_opened_by_eos_and_read_once(tokenizer: Tokenizer) -> None:
    model = planted({"x": 0.0})
    assert sample(model, tokenizer, "ab", max_tokens=3) == "xxx"
    assert model.seen == [[256, 97, 98], [120], [120]]


@pytest.mark.slow
@pytest.mark.parametrize("choice", [(1.0, None), (2.0, None), (1.0, 2), (1e-6, None)])
def test_draws_follow_temperature_and_top_k(tokenizer: Tokenizer, choice: tuple[float, int | None]) -> None:
    model, count, (temperature, top_k) = planted({"a": 2.0, "b": 1.0, "c": 0.0}), 1500, choice
    kept = torch.tensor([2.0, 1.0, 0.0])[:top_k]
    expected = (kept.double() / temperature).softmax(0).tolist() + [0.0] * (3 - len(kept))
    text = sample(model, tokenizer, "", max_tokens=count, temperature=temperature, top_k=top_k, seed=1)
    assert [text.count(letter) / count for letter in "abc"] == pytest.approx(expected, abs=0.05)


def test_the_seed_alone_decides(tokenizer: Tokenizer) -> None:
    model = tiny()
    torch.manual_seed(1)
    first = sample(model, tokenizer, "x", max_tokens=50, seed=3)
    state = torch.random.get_rng_state()
    assert sample(model, tokenizer, "x", max_tokens=50, seed=3) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sample(model, tokenizer, "x", max_tokens=50, seed=4) != first
    assert sample(model, tokenizer, "x", max_tokens=50, temperature=0) == sample(
        model, tokenizer, "x", max_tokens=50, top_k=1, seed=5
    )


def test_eos_ends_the_text_unless_told_otherwise(tokenizer: Tokenizer) -> None:
    logits = torch.full((257,), -1e4)
    logits[[65, 256]] = 0.0
    text = sample(Planted(logits), tokenizer, "", max_tokens=50, seed=2)  # type: ignore[arg-type]
    assert len(text) < 20
    assert set(text) <= {"A"}
    tokens = list(stream(Planted(logits), tokenizer, [256], max_tokens=50, seed=2))  # type: ignore[arg-type]
    assert tokens[: len(text) + 1] == [65] * len(text) + [256]
    assert len(tokens) == 50
    everything = sample(Planted(logits), tokenizer, "", max_tokens=50, seed=2, stop_at_eos=False)  # type: ignore[arg-type]
    assert everything == tokenizer.decode(tokens)


def test_a_padded_vocabulary_is_never_drawn(tokenizer: Tokenizer) -> None:
    logits = torch.full((300,), -1e4)
    logits[65], logits[280] = 0.0, 50.0
    assert sample(Planted(logits), tokenizer, "", max_tokens=20) == "A" * 20  # type: ignore[arg-type]


def test_tokens_come_one_at_a_time(tokenizer: Tokenizer) -> None:
    model = planted({"x": 0.0})
    assert list(islice(stream(model, tokenizer, [256], max_tokens=10**9), 3)) == [120] * 3
    assert len(model.seen) == 3


def test_pieces_have_text_reason_and_log_probabilities(tokenizer: Tokenizer) -> None:
    model, prompt = tiny(), [256, 97, 98]
    free = list(stream(model, tokenizer, prompt, max_tokens=30, seed=3))
    assert torch.is_grad_enabled()
    sampling = Sampling(max_tokens=30, seed=3, logprobs=2, ignore_eos=True)
    pieces = list(write(model, tokenizer, prompt, sampling))
    assert [piece.token for piece in pieces] == free
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(free)
    assert [piece.finish_reason for piece in pieces] == [None] * 29 + ["length"]
    with torch.no_grad():
        expected = model(torch.tensor([[*prompt, *free]])).logits[0, 2:-1, :257].log_softmax(1)
    found = torch.tensor([piece.logprob for piece in pieces])
    torch.testing.assert_close(found, expected.gather(1, torch.tensor(free)[:, None])[:, 0])
    best = expected.topk(2, 1)
    assert [[token for token, _ in piece.alternatives] for piece in pieces] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([[nats for _, nats in p.alternatives] for p in pieces]), best.values)


def test_a_stop_string_ends_the_text_and_is_not_shown(tokenizer: Tokenizer) -> None:
    model = planted({"a": 1.0, "b": 1.0})
    whole = sample(model, tokenizer, "", max_tokens=200, seed=5)
    pieces = list(write(model, tokenizer, [256], Sampling(max_tokens=200, seed=5, stop=("abba", "bbb"))))
    first = min(whole.index("abba"), whole.index("bbb"))
    assert "".join(piece.text for piece in pieces) == whole[:first]
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize("arch", ["llama", "hgrn2"])
def test_a_text_goes_on_from_a_state(arch: str, tokenizer: Tokenizer) -> None:
    model, tokens, sampling = tiny(arch), opened(tokenizer, "a longer text"), Sampling(max_tokens=12, seed=1)
    with torch.no_grad():
        x, state = read_documents(model, [tokens[:8]])
        snapshot = Snapshot(state, model.logits(x)[0], tuple(tokens[:8]))
    expected = [piece.token for piece in write(model, tokenizer, tokens, sampling)]
    for _ in range(2):  # the state is not changed
        session = Session(model, tokenizer, snapshot)
        session.read(tokens[8:])
        assert [piece.token for piece in session.stream(sampling)] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens = 0: expected at least 1"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": float("nan")}, "temperature = nan: input should be a finite number"),
        ({"top_k": 0}, "top_k = 0"),
        ({"seed": -1}, "seed = -1: expected 0 to"),
        ({"seed": 2**80}, "seed = .*: expected 0 to"),
        ({"prompt": "a\udcff"}, "prompt: character 1 is not valid Unicode"),
    ],
)
def test_values_out_of_range_are_refused(tokenizer: Tokenizer, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(tiny(), tokenizer, **{"prompt": "x", **changes})
    with pytest.raises(UserError, match="prompt: no tokens"):
        stream(tiny(), tokenizer, [], max_tokens=1)
