"""The kernel that draws against `choose`, whose tokens it must find: every rule, alone and with others."""

import pytest
import torch

from linscale.generate.choice import Needs, Rows, choose
from linscale.generate.sampling import Sampling
from linscale.ops.decode.draw import draw, rings

V, WIDTH, EOS = 331, 352, 330
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0, repetition_penalty=1.7),
    Sampling(seed=1),
    Sampling(seed=2**63 - 1, temperature=0.3),
    Sampling(seed=3, top_k=1),
    Sampling(seed=4, top_k=7, temperature=2.5),
    Sampling(seed=5, top_p=0.9),
    Sampling(seed=6, top_p=0.0),
    Sampling(seed=7, top_p=0.5, temperature=4.0, top_k=40),
    Sampling(seed=8, min_p=0.2),
    Sampling(seed=9, min_p=0.01, top_p=0.97, top_k=200, repetition_penalty=0.8, temperature=1.3),
    Sampling(seed=10, top_p=1e-12, temperature=50.0),
]


def rows_and_step(device):
    rows = Rows.of(SAMPLINGS, [list(range(i, 300, 7)) for i in range(len(SAMPLINGS))], V, device)
    count = len(SAMPLINGS)
    held = {
        "ends": torch.ones(count, dtype=torch.bool, device=device),
        "active": torch.ones(count, dtype=torch.int32, device=device),
        "tokens": torch.zeros(count, dtype=torch.int64, device=device),
        "weights": torch.full((count, V), -7, device=device),
        "ring": rings(count, torch.device(device)),
        "turns": torch.zeros(count, dtype=torch.int64, device=device),
    }
    return rows, held


@pytest.mark.parametrize("kind", ["random", "ties", "peaked"])
def test_tokens_are_those_of_choose(kind, device):
    torch.manual_seed(0)
    rows, held = rows_and_step(device)
    expected_rows, _ = rows_and_step("cpu")
    needs = Needs.of(SAMPLINGS)
    for turn in range(6):
        logits = torch.randn(len(SAMPLINGS), WIDTH, device=device) * 3
        logits[:, V:] = 100.0  # a model's padding
        if kind == "ties":
            logits[:, :V] = logits[:, :V].round()
        if kind == "peaked":
            logits[:, 5 * turn : 5 * turn + 3] += 40
        expected = choose(logits.cpu(), expected_rows, needs, V).tokens
        expected_rows.advance(expected)
        draw(logits, rows.seen, rows[:7], eos=EOS, **held)
        if logits.is_cuda:
            torch.cuda.synchronize()
        assert held["tokens"].tolist() == expected.tolist()
        assert held["ring"][turn % 4].tolist() == expected.tolist()
    assert torch.equal(rows.seen.cpu(), expected_rows.seen)
    assert rows.step.tolist() == expected_rows.step.tolist() == held["turns"].tolist()


def test_the_end_of_text_lets_a_row_rest_where_it_ends_it(device):
    rows, held = rows_and_step(device)
    logits = torch.zeros(len(SAMPLINGS), WIDTH, device=device)
    logits[::2, EOS] = 60.0
    logits[1::2, 3] = 60.0
    held["ends"][0] = False
    draw(logits, rows.seen, rows[:7], eos=EOS, **held)
    if logits.is_cuda:
        torch.cuda.synchronize()
    assert held["active"].tolist() == [1, 1, *[0, 1] * 5]
    assert held["tokens"].tolist() == [EOS, 3] * 6
