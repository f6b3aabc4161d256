"""Haystacks: prompts as they are said to be, read once up to their needles, and each as if alone."""

import random
import re
from pathlib import Path

import pytest
import torch

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.evaluate import memory
from linscale.evaluate.haystack import Haystack, forked, read_haystack
from linscale.evaluate.memory import cache_obstacle
from linscale.evaluate.needle import MODES, Needle, needle_tasks
from linscale.generate import states
from linscale.generate.batch import continue_greedily
from linscale.generate.sample import stream
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")
SOURCE = random.Random(3)
SENTENCES = [
    " ".join(SOURCE.choices("the cat sat on a warm mat and ran far".split(), k=SOURCE.randint(2, 7)))  # noqa: SIM905
    + SOURCE.choice([".", "!", "?", ".", ' 3.14 e."', "...", " v1.0."])
    for _ in range(50)
]
TEXT = "\n\n" + " ".join(SENTENCES)
BPE = train_bpe([TEXT, "Question: Answer: is are 482-913 in from of"], 320)
HAYSTACK = Haystack(TEXT)
LENGTHS, DEPTHS = (400, 700, 1000), (0, 30, 55, 100)
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2}
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
MODE = pytest.mark.parametrize("mode", MODES)


def tiny(case, vocab_size=400):
    shape = {"vocab_size": vocab_size, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    return build_model(CONFIGS[case.split()[0]](**shape, softmax_every=CASES[case])).double().eval()


@TOKENIZERS
@MODE
def test_a_prompt_has_its_length_and_its_needle_where_a_sentence_ends(tokenizer, mode):
    task, filler = Needle(mode, HAYSTACK, LENGTHS, DEPTHS), HAYSTACK.filler(tokenizer)
    assert tokenizer.decode(filler.unit) == TEXT
    seen = set()
    for length in LENGTHS:
        for depth, prompt in zip(DEPTHS, task.prompts(filler, length), strict=True):
            tokens = filler.whole(prompt)
            fact = task.fact(length, depth)
            needle, question = task.texts(fact)
            assert (len(tokens), tokens[0]) == (length, tokenizer.eos_id)
            before, after = tokenizer.decode(tokens).split(needle)
            assert after.endswith(question)
            shown = before + after.removesuffix(question)
            assert (TEXT * 99).startswith(shown)
            assert prompt.filler == len(tokens) - 1 - len(tokenizer.encode(needle)) - len(tokenizer.encode(question))
            # No end of a sentence is nearer to the depth, counted in tokens.
            ends = [0, *filler.ends, *(filler.ends + len(filler.unit)), *(filler.ends + 2 * len(filler.unit))]
            wanted = prompt.filler * depth / 100
            nearest = min((end for end in ends if end <= prompt.filler), key=lambda end: abs(end - wanted))
            far = abs(nearest - wanted) > 0.05 * prompt.filler
            assert prompt.place == nearest or (far and abs(prompt.place - wanted) < abs(nearest - wanted))
            if before:
                assert before[-1].isspace() or after[0].isspace()
                assert far or re.search(r"[.!?]\"?\s*$", before)
            seen.add(far)
    assert False in seen


@TOKENIZERS
def test_a_short_filler_has_its_needle_between_words_near_the_depth(tokenizer):
    filler = Haystack(" One long sentence of many words that goes on and on until it ends here.").filler(tokenizer)
    for depth in range(0, 101, 10):
        prompt = filler.prompt(45, depth, " N.", " Q")
        before, after = tokenizer.decode(filler.whole(prompt)).split(" N.")
        assert not before or after[0] == " "
        assert abs(100 * prompt.place / prompt.filler - depth) < 100 * 7 / prompt.filler


@TOKENIZERS
def test_sentences_end_before_white_space_alone(tokenizer):
    filler = HAYSTACK.filler(tokenizer)
    found = {len(tokenizer.decode(filler.unit[:end])) for end in filler.ends}
    expected = {match.end() for match in re.finditer(r"[.!?](?=\s)", TEXT)}
    assert found >= expected
    assert all(re.search(r"[.!?]\"?$", TEXT[:end]) for end in found)
    with pytest.raises(UserError, match="filler: no sentence ends in it"):
        Haystack("one.two and no more")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_cell_is_its_prompt_read_alone(case, monkeypatch):
    model, filler = tiny(case), HAYSTACK.filler(BPE)
    task = Needle("easy", HAYSTACK, (120, 190), (0, 40, 50, 100))
    for length in task.lengths:
        prompts = task.prompts(filler, length)
        prompts.insert(1, prompts[2])  # two at one place
        expected = [list(stream(model, BPE, filler.whole(p), max_tokens=4, temperature=0)) for p in prompts]
        assert len({tuple(tokens) for tokens in expected}) > 1
        for piece, most in ((8192, 1 << 29), (64, 1 << 29), (7, 40_000), (8192, 1)):
            monkeypatch.setattr(states, "MOST_STATE", most)
            found = {}
            for numbers, state in forked(model, filler, prompts, length, batch_tokens=piece):
                assert most > 1 or len(numbers) == 1
                rests = [prompts[number].rest for number in numbers]
                made = continue_greedily(model, BPE, state, rests, max_tokens=4, batch_tokens=piece)
                found.update(zip(numbers, made, strict=True))
            for number, tokens in enumerate(expected):
                stop = tokens.index(BPE.eos_id) if BPE.eos_id in tokens else 4
                assert found[number] == tokens[:stop]


@torch.no_grad()
def test_the_filler_is_read_once_for_all_depths(monkeypatch):
    model, filler = tiny("tnl"), HAYSTACK.filler(BYTES)
    prompts = Needle("easy", HAYSTACK, (900,), (0, 20, 20.5, 50, 100)).prompts(filler, 900)
    read, count = model.read, []
    monkeypatch.setattr(model, "read", lambda tokens, *others: (count.append(tokens.numel()), read(tokens, *others))[1])
    batches = [numbers for numbers, _ in forked(model, filler, prompts, 900)]
    assert batches == [sorted(range(5), key=lambda number: prompts[number].place)]
    assert sum(count) == 1 + max(prompt.place for prompt in prompts)


def test_fillers_are_files_of_any_kind_in_an_order_of_the_seed(tmp_path: Path):
    (file := tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "Text {k} ends."}}\n' for k in range(9)))
    haystacks = [read_haystack(file, seed) for seed in (0, 0, 1)]
    assert haystacks[0].digest == haystacks[1].digest != haystacks[2].digest
    assert sorted(haystacks[2].text.split("\n\n")[1:]) == [f"Text {k} ends." for k in range(9)]
    assert read_haystack(Path("builtin:tinyshakespeare"), 0).text.startswith("\n\nFirst Citizen")
    with pytest.raises(UserError, match="no such file or folder"):
        read_haystack(tmp_path / "none.txt", 0)
    assert [task.name for task in needle_tasks(MODES, haystacks[0], (500,), (0,))] == ["needle-easy", "needle-standard"]


def test_memory_is_counted_before_it_is_taken():
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20
    model = tiny("llama")
    assert cache_obstacle(model, 1000) is None
    assert "set shorter lengths" in cache_obstacle(model, 10**12)
    assert cache_obstacle(tiny("hgrn2"), 10**12) is None
