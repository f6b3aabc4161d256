"""The next token of each row: filters as transformers has them, draws as the probabilities say, rows on their own."""

import random

import pytest
import scipy
import torch

from linscale.generate import choice
from linscale.generate.choice import ALL, Needs, Rows, choose, penalised, weights
from linscale.generate.noise import GOLDEN, mix, uniform
from linscale.generate.sampling import Sampling
from tests.lazy import Lazy

theirs = Lazy("transformers.generation.logits_process")

V = 50
SETTINGS = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "top-k": {"top_k": 7},
    "top-k over V": {"top_k": 1000},
    "top-p": {"top_p": 0.6},
    "top-p 0": {"top_p": 0.0},
    "min-p": {"min_p": 0.2},
    "penalty": {"repetition_penalty": 1.5},
    "reward": {"repetition_penalty": 0.7, "top_p": 0.9},
    "all": {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    "top-k and top-p": {"top_k": 4, "top_p": 0.7, "temperature": 2.0},
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.3},
}


def oracle(logits, prompt, sampling):
    """Scores (V,) after the processors of transformers, in the order of its `generate`."""
    processors = []
    if sampling.repetition_penalty != 1:
        processors.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature not in (0, 1):
        processors.append(theirs.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(theirs.MinPLogitsWarper(sampling.min_p))
    return theirs.LogitsProcessorList(processors)(torch.tensor([prompt]), logits[None])[0]


def batch(count, seed=0):
    """Logits (count, V), prompts, and the settings of the rows, which all differ."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, V, generator=generator)
    prompts = torch.randint(V, (count, 12), generator=generator).tolist()
    options = list(SETTINGS.values())
    return logits, prompts, [Sampling(**options[row % len(options)], seed=row * 7 + seed) for row in range(count)]


def test_filters_are_those_of_transformers():
    sizes = set()
    for seed in range(40):
        logits, prompts, samplings = batch(len(SETTINGS), seed)
        rows, needs = Rows.of(samplings, prompts, V), Needs.of(samplings)
        scores = penalised(logits, rows)
        found = weights(scores, rows, needs)
        for row, sampling in enumerate(samplings):
            expected = oracle(logits[row], prompts[row], sampling)
            if sampling.temperature == 0:
                assert choose(logits, rows, needs, V).tokens[row] == expected.argmax()
                continue
            assert torch.equal(found[row] > 0, expected.isfinite()), sampling
            shares = found[row].double() / found[row].sum()
            torch.testing.assert_close(shares, expected.double().softmax(0), rtol=1e-4, atol=1e-6)
            sizes.add(int(expected.isfinite().sum()))
    assert len(sizes) > 10


def test_seen_tokens_are_those_of_prompt_and_text():
    sampling = Sampling(repetition_penalty=1.5, temperature=0)
    logits, text = torch.randn(1, V, generator=torch.Generator().manual_seed(1)), [3, 4]
    rows = Rows.of([sampling], [text], V)
    for _ in range(10):
        tokens = choose(logits, rows, Needs.of([sampling]), V).tokens
        assert tokens.tolist() == [int(oracle(logits[0], text, sampling).argmax())]
        rows.advance(tokens)
        text.append(int(tokens))
    assert rows.step.tolist() == [10]
    rows.put(0, Sampling(repetition_penalty=2), [V + 5, 1])  # a new text, one token of which is not the tokenizer's
    assert rows.seen.nonzero()[:, 1].tolist() == [1]
    assert rows.step.tolist() == [0]
    with pytest.raises(ValueError, match="penalties=False"):
        Rows.empty(1, V, penalties=False).put(0, sampling)


def test_each_row_is_what_it_is_alone():
    """In any order, beside any others, with more needs than its own, and in logits with any stride."""
    logits, prompts, samplings = batch(36)
    alone = []
    for row, sampling in enumerate(samplings):
        rows, tokens = Rows.of([sampling], [prompts[row]], V), []
        for step in range(8):
            rows.advance(choose(logits[row : row + 1].roll(step), rows, Needs.of([sampling]), V).tokens)
            tokens.append(int(choose(logits[row : row + 1], rows, Needs.of([sampling]), V).tokens))
        alone.append(tokens)
    order = random.Random(0).sample(range(36), 36)
    for chosen in (list(range(36)), order, order[:5], order[7:20]):
        some = [samplings[row] for row in chosen]
        rows = Rows.empty(len(chosen), V)
        for slot, row in enumerate(chosen):
            rows.put(slot, samplings[row], prompts[row])
        needs = Needs(True, True, ALL, True, 3) if len(chosen) < 10 else Needs.of(some)
        wide = torch.full((len(chosen), V + 13), 1e9)
        wide[:, :V] = logits[chosen]
        for step in range(8):
            turned = torch.cat([wide[:, :V].roll(step, 1), wide[:, V:]], 1)
            rows.advance(choose(turned, rows, needs, V).tokens)
            tokens = choose(wide, rows, needs, V).tokens
            assert tokens.tolist() == [alone[row][step] for row in chosen]


def test_a_row_goes_on_where_its_draws_stopped():
    logits, _, _ = batch(1)
    for sampling in (Sampling(seed=5, temperature=5), Sampling(temperature=5)):
        rows, tokens = Rows.of([sampling], [[]], V), []
        for _ in range(12):
            tokens.append(int(choose(logits, rows, Needs.of([sampling]), V).tokens))
            rows.advance(torch.tensor(tokens[-1:]))
        for step in (0, 7):
            rows.put(0, sampling, step=step)
            assert int(choose(logits, rows, Needs.of([sampling]), V).tokens) == tokens[step]
        assert len(set(tokens)) > 3


@pytest.mark.parametrize("name", ["plain", "hot", "all", "top-p"])
def test_draws_are_distributed_as_they_should_be(name):
    """Over seeds at one step, and over steps of one seed: chi-squared, which passes all but one time in a million."""
    logits = torch.randn(8, generator=torch.Generator().manual_seed(4)) * 1.5
    sampling, count = Sampling(**SETTINGS[name]), 20000
    prompt = [1, 2, 5]
    expected = oracle(logits, prompt, sampling).double().softmax(0) * count
    rows = Rows.of([sampling], [prompt], 8)
    for seeds in (True, False):
        many = Rows(*(x.expand(count, *x.shape[1:]) for x in rows))
        counter = torch.arange(count)
        many = many._replace(seed=counter) if seeds else many._replace(step=counter)
        tokens = choose(logits.expand(count, -1), many, Needs.of([sampling]), 8).tokens
        found = tokens.bincount(minlength=8)
        kept = expected > 0
        assert not found[~kept].any()
        statistic = float(((found - expected)[kept] ** 2 / expected[kept]).sum())
        assert statistic < scipy.stats.chi2.isf(1e-6, max(1, int(kept.sum()) - 1))


def test_noise_is_splitmix64():
    def reference(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = GOLDEN % 2**64
    # The first numbers of the generator from state 0, as its author's program prints them.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [reference((n + 1) * golden % 2**64) for n in range(3)] == known
    states = torch.arange(1, 4) * GOLDEN
    assert [value % 2**64 for value in mix(states).tolist()] == known
    generator = random.Random(0)
    seeds = [0, 1, 2**63 - 1, *(generator.randrange(2**63) for _ in range(50))]
    steps = [0, 2**40, *(generator.randrange(10**6) for _ in range(51))]
    expected = [
        (reference((reference((seed + golden) % 2**64) + (step + 1) * golden) % 2**64) >> 11) / 2**53
        for seed, step in zip(seeds, steps, strict=True)
    ]
    assert uniform(torch.tensor(seeds), torch.tensor(steps)).tolist() == expected


def test_neighbouring_seeds_and_steps_have_nothing_in_common():
    grid = uniform(torch.arange(300)[:, None], torch.arange(300)[None]).flatten()
    assert len(grid.unique()) == 300 * 300
    table = grid.view(300, 300)
    for other in (table.roll(1, 0), table.roll(1, 1), table.roll((1, -1), (0, 1))):
        assert abs(float(torch.corrcoef(torch.stack([grid, other.flatten()]))[0, 1])) < 0.015
    assert abs(float(grid.mean()) - 0.5) < 0.004


def test_greedy_takes_the_lowest_of_equals_of_the_tokenizer():
    logits = torch.zeros(2, 9, dtype=torch.bfloat16)
    logits[0, [3, 5]], logits[1, 8] = 1.0, 9.0
    for needs in (Needs(), Needs(draws=True, ranks=ALL)):
        rows = Rows.empty(2, 6)
        assert choose(logits, rows, needs, 6).tokens.tolist() == [3, 0]
    rows = Rows.of([Sampling(seed=seed) for seed in range(500)], [[]] * 500, 6)
    tokens = choose(logits[1:].expand(500, -1), rows, Needs(draws=True), 6).tokens
    assert tokens.unique().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tiny_and_huge_values_stay_in_range(dtype):
    logits = torch.tensor([[3e38, -3e38, 0.0], [float("-inf"), 1.0, 1.0], [float("nan"), 1.0, 1.0]], dtype=dtype)
    for temperature in (1e-300, 1.0, 1e300):
        sampling = Sampling(temperature=temperature, top_p=0.9, repetition_penalty=1.1)
        rows = Rows.of([sampling] * 3, [[1]] * 3, 3)
        tokens = choose(logits, rows, Needs.of([sampling]), 3).tokens
        assert all(0 <= token < 3 for token in tokens.tolist())
        assert tokens[0] == 0 or temperature == 1e300
        assert tokens[1] != 0


def test_log_probabilities_are_the_models_own():
    logits, prompts, samplings = batch(24)
    samplings = [Sampling(**{**SETTINGS["all"], "logprobs": row % 5, "seed": row}) for row in range(24)]
    wide = torch.cat([logits, torch.full((24, 3), 50.0)], 1)
    needs = Needs.of(samplings)
    assert needs == (True, True, 32, True, 4)
    found = choose(wide, Rows.of(samplings, prompts, V), needs, V)
    expected = logits.log_softmax(1)
    torch.testing.assert_close(found.logprobs, expected.gather(1, found.tokens[:, None])[:, 0])
    best = expected.topk(4, 1)
    torch.testing.assert_close(found.best_logprobs, best.values)
    assert torch.equal(found.best_tokens, best.indices)
    assert choose(logits[:, :2], Rows.of(samplings, prompts, 2), Needs(logprobs=20), 2).best_tokens.shape == (24, 2)
    assert choose(logits, Rows.empty(24, V), Needs(), V)[1:] == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_many_logits_are_ordered_changes_nothing(dtype, monkeypatch):
    """Also where many are equal, as in bfloat16."""
    options = [{}, {"top_k": 3}, {"top_k": 16}, {"top_p": 0.5}, {"top_p": 0.999}, {"top_k": 9, "top_p": 0.6}]
    kept = set()
    for seed, spread in enumerate((0.1, 1.0, 3.0, 8.0)):
        logits = (spread * torch.randn(6, 300, generator=torch.Generator().manual_seed(seed))).to(dtype).float()
        samplings = [Sampling(**each, temperature=1.3) for each in options]
        rows, found = Rows.of(samplings, [[]] * 6, 300), []
        for few in (1, 8, 64, 10**9):
            monkeypatch.setattr(choice, "FEW", few)
            found.append(weights(logits, rows, Needs(draws=True, ranks=ALL)))
        assert all(torch.equal(found[0], other) for other in found)
        for row in (0, 1, 2, 5):
            alone = Rows.of(samplings[row : row + 1], [[]], 300)
            needs = Needs.of(samplings[row : row + 1])
            assert needs.ranks == {0: 0, 1: 4, 2: 16, 5: 16}[row]
            assert torch.equal(weights(logits[row : row + 1], alone, needs), found[0][row : row + 1])
        kept |= set((found[0] > 0).sum(1).tolist())
    assert len(kept) > 12


def test_nothing_waits_for_the_device_and_shapes_are_fixed():
    """Tensors without values, which are not on a CPU, tell the host nothing: what a CUDA graph needs of a step."""
    size = 2 * choice.FEW
    rows, logits = Rows.empty(4, size, "meta"), torch.zeros(4, size + 3, dtype=torch.bfloat16, device="meta")
    for needs in (Needs(), Needs(draws=True), Needs(True, True, ALL, True, 5), Needs(True, True, 64, True, 5)):
        found = choose(logits, rows, needs, size)
        rows.advance(found.tokens)
        assert (found.tokens.shape, found.tokens.device.type) == ((4,), "meta")
    with pytest.raises(RuntimeError, match="meta"):
        bool(found.tokens[0] == 0)


def test_a_draw_takes_each_token_as_often_as_its_weight_says():
    found, noise = torch.tensor([[0, 2, 0, 1, 0]]).expand(6, -1), [0, 0.33, 0.34, 0.66, 0.67, 1 - 2**-53]
    assert choice._draw(found, torch.tensor(noise, dtype=torch.float64)).tolist() == [1, 1, 1, 1, 3, 3]
