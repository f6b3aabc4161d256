"""The memory of a rank: what is shared out, what is not, and how many ranks a batch can be split over."""

import itertools

import pytest

from linscale.models import CONFIGS, build_model, preset
from linscale.models.count import count_parameters
from linscale.study.memory import RANKS, STATE_BYTES, rank_memory
from linscale.train.config import TrainConfig


def recipe(**changes):
    batch = {"tokens": 480 * 8192, "batch_tokens": 480 * 8192, "length": 8192, "micro_batch": 1}
    return TrainConfig(**batch | changes)


@pytest.mark.parametrize("arch", CONFIGS)
def test_a_7b_model_for_1_to_1024_gpus(arch):
    config = preset(arch, "7B")
    found = {ranks: rank_memory(config, recipe(activation_checkpointing="full"), ranks) for ranks in RANKS}
    sizes = [size for size, _ in found.values()]
    assert all(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[0] > STATE_BYTES * count_parameters(config).total > 100e9
    assert sizes[3] < 80e9 < sizes[0]
    pieces = {ranks: pieces for ranks, (_, pieces) in found.items()}
    assert pieces[32] == 1  # 480 sequences, 15 each
    assert (pieces[64], pieces[1024]) == (2, 32)
    assert all(480 % (ranks // count) == 0 for ranks, count in pieces.items())


def test_what_a_batch_cannot_be_split_over():
    config = CONFIGS["tnl"](d_model=128, n_layers=2)
    odd = recipe(tokens=3 * 7, batch_tokens=3 * 7, length=7, validation_tokens=7)
    assert [rank_memory(config, odd, ranks) is None for ranks in (1, 2, 3, 7, 21)] == [False, True, False, False, False]


def test_what_training_refuses_is_not_proposed():
    config = CONFIGS["tnl"](d_model=128, n_layers=2)
    batch = {"tokens": 12 * 32, "batch_tokens": 12 * 32, "length": 32, "validation_tokens": 32}
    packed = recipe(**batch, documents=True)  # never cut between ranks
    assert [rank_memory(config, packed, ranks) is None for ranks in (1, 12, 24)] == [False, False, True]
    assert rank_memory(config, recipe(**batch), 24)[1] == 2
    fours = recipe(**batch | {"micro_batch": 4})
    assert [rank_memory(config, fours, ranks)[1] for ranks in (1, 2, 3)] == [1, 2, 1]  # 6 sequences are not fours
    pairs = recipe(**batch, sequence_parallel=2)
    assert [rank_memory(config, pairs, ranks) is None for ranks in (1, 2)] == [True, False]


@pytest.mark.parametrize("arch", CONFIGS)
def test_less_is_kept_where_more_is_computed_again(arch):
    config = preset(arch, "1B")
    modes = ("none", "cheap", "full")
    sizes = [rank_memory(config, recipe(activation_checkpointing=mode), 8)[0] for mode in modes]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(("arch", "measured_gib"), [("tnl", 40.1), ("cosformer2", 43.6), ("llama", 33.8)])
def test_it_is_what_an_h100_needed(arch, measured_gib):
    """16 x 2048, 374 M parameters: benchmarks/results, 2026-11-26."""
    shape = {"vocab_size": 32_000, "d_model": 1024, "n_layers": 24, "head_dim": 128, "tie_embeddings": False}
    batch = {"tokens": 32_768, "batch_tokens": 32_768, "length": 2048, "validation_tokens": 2048}
    size, _ = rank_memory(CONFIGS[arch](**shape), TrainConfig(**batch), 1)
    assert size / 2**30 == pytest.approx(measured_gib, rel=0.1)


def test_a_model_of_7b_takes_no_memory_to_begin_with():
    import torch

    with torch.device("meta"):
        model = build_model(preset("hgrn2", "7B"))
    assert all(parameter.is_meta for parameter in model.parameters())
