"""Batches are a function of (seed, step): every window once an epoch, the same on any number of ranks."""

import itertools
import random

import numpy as np
import pytest
import torch

from linscale.config import UserError
from linscale.data import PrepareOptions, TokenDataset, prepare
from linscale.data.loader import Loader, permute, validation_batches

LENGTH = 48
FROZEN = [9, 6, 4, 7, 11, 3, 8, 1, 10, 0, 2, 5]
FROZEN_FAR = [440628642829, 898730267315, 856087401497, 520020514849]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Some 400 documents of 1 to 120 bytes, in several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    lines = "".join("x" * draw.randrange(120) + f"{number}\n" for number in range(400))
    (folder / "in.txt").write_text(lines)
    options = PrepareOptions(document_bytes=124, val_fraction=0.1, shard_tokens=4000)
    prepare([str(folder / "in.txt")], out=folder / "out", options=options)
    return TokenDataset.open(folder / "out")


def loader(dataset, **changes):
    return Loader(dataset, **({"split": "train", "length": LENGTH, "sequences": 6, "seed": 1} | changes))


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 255, 1000, 4095, 4097, 65537, 99991])
def test_permutation_is_one_to_one(size):
    for epoch in range(3):
        assert np.array_equal(np.sort(permute(np.arange(size), size, 5, epoch)), np.arange(size))


def test_permutation_depends_on_seed_and_epoch_and_is_fixed_for_ever():
    orders = [permute(np.arange(12), 12, *key).tolist() for key in ((0, 0), (0, 1), (1, 0), (10, 0))]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == FROZEN
    far = permute(np.arange(4), 10**12, 0, 0)
    assert far.tolist() == FROZEN_FAR
    assert far.tolist() == [permute(np.array([place]), 10**12, 0, 0)[0] for place in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 7, 30])
def test_permutation_is_uniform(size):
    """Over many epochs every window is equally often first, and equally often last: chi-square within 5 sigma."""
    epochs = 3000
    for place in (0, size - 1):
        firsts = [permute(np.array([place]), size, 0, epoch)[0] for epoch in range(epochs)]
        counts = np.bincount(firsts, minlength=size)
        chi_square = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
        assert chi_square < (size - 1) + 5 * np.sqrt(2 * (size - 1))


def test_permutation_leaves_no_neighbours_together():
    order = permute(np.arange(10_000), 10_000, 0, 0)
    assert (np.abs(np.diff(order)) == 1).sum() < 20
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


def test_an_epoch_has_every_window_once_and_batches_straddle_epochs(dataset):
    windows = (dataset.tokens("train") - 1) // LENGTH
    all_tokens = dataset.read("train", 0, windows * LENGTH + 1)
    wanted = sorted(all_tokens[: windows * LENGTH].reshape(windows, LENGTH).tolist())
    batches = loader(dataset)
    assert windows % 6
    rows = [row for step in range(3 * windows // 6 + 1) for row in batches.batch(step).tokens.tolist()]
    for epoch in range(3):
        assert sorted(rows[epoch * windows : (epoch + 1) * windows]) == wanted
    assert rows[:windows] != rows[windows : 2 * windows]


def test_more_sequences_than_windows(dataset):
    windows = (dataset.tokens("val") - 1) // LENGTH
    rows = loader(dataset, split="val", sequences=3 * windows).batch(0).tokens.tolist()
    assert sorted(rows[:windows]) == sorted(rows[windows : 2 * windows]) == sorted(rows[2 * windows :])


def test_targets_are_the_next_tokens(dataset):
    batch = loader(dataset).batch(3)
    assert batch.tokens.shape == batch.targets.shape == (6, LENGTH)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.cu_seqlens is None
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    corpus = dataset.read("train", 0, dataset.tokens("train"))
    for row, targets in zip(batch.tokens.numpy(), batch.targets.numpy(), strict=True):
        places = np.arange(0, len(corpus) - LENGTH, LENGTH)
        found = [place for place in places if np.array_equal(corpus[place : place + LENGTH], row)]
        assert any(np.array_equal(corpus[place + 1 : place + LENGTH + 1], targets) for place in found)


def test_a_batch_needs_only_seed_and_step(dataset):
    history = [loader(dataset).batch(step).tokens for step in range(5)]
    assert torch.equal(loader(dataset).batch(4).tokens, history[4])
    assert torch.equal(loader(TokenDataset.open(dataset.folder)).batch(2).tokens, history[2])
    assert not torch.equal(loader(dataset, seed=2).batch(4).tokens, history[4])


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_one_batch(dataset, world):
    whole = loader(dataset).batch(7)
    parts = [loader(dataset, rank=rank, world=world).batch(7) for rank in range(world)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_packed_boundaries_are_rows_and_documents(dataset):
    for step in range(20):
        rows, packed = loader(dataset).batch(step), loader(dataset, documents=True).batch(step)
        assert torch.equal(packed.tokens, rows.tokens.reshape(1, -1))
        assert torch.equal(packed.targets, rows.targets.reshape(1, -1))
        assert packed.cu_seqlens.dtype == torch.int32
        bounds = packed.cu_seqlens.tolist()
        assert (bounds[0], bounds[-1]) == (0, 6 * LENGTH)
        assert all(first < second for first, second in itertools.pairwise(bounds))
        assert set(bounds) >= set(range(0, 6 * LENGTH + 1, LENGTH))
    windows = (dataset.tokens("train") - 1) // LENGTH
    packed = next(validation_batches(dataset, "train", length=LENGTH, sequences=windows, documents=True))
    starts = dataset.document_starts("train", 0, windows * LENGTH).tolist()
    assert packed.cu_seqlens.tolist() == sorted({*starts, *range(0, windows * LENGTH + 1, LENGTH)})


def test_validation_is_sequential(dataset):
    windows = (dataset.tokens("val") - 1) // LENGTH
    batches = list(validation_batches(dataset, "val", length=LENGTH, sequences=4))
    assert [len(batch.tokens) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    tokens = torch.cat([batch.tokens for batch in batches]).reshape(-1).numpy()
    targets = torch.cat([batch.targets for batch in batches]).reshape(-1).numpy()
    np.testing.assert_array_equal(tokens, dataset.read("val", 0, windows * LENGTH))
    np.testing.assert_array_equal(targets, dataset.read("val", 1, windows * LENGTH + 1))
    few = list(validation_batches(dataset, "val", length=LENGTH, sequences=4, max_tokens=6 * LENGTH - 1))
    assert [len(batch.tokens) for batch in few] == [4, 1]
    assert torch.equal(few[0].tokens, batches[0].tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length = 0: must be at least 1"),
        ({"sequences": -1}, "sequences = -1: must be at least 1"),
        ({"sequences": 6, "world": 4}, "sequences = 6: must be a multiple of the number of ranks, 4"),
        ({"rank": 2, "world": 2}, "rank = 2: must be in 0..1"),
        ({"length": 10**6}, "length = 1000000: split 'train' of .* has [0-9]+ tokens"),
        ({"split": "test"}, "expected one of train, val"),
    ],
)
def test_bad_arguments(dataset, changes, message):
    with pytest.raises(UserError, match=message):
        loader(dataset, **changes)


def test_bad_arguments_of_batches(dataset):
    with pytest.raises(UserError, match="step = -1"):
        loader(dataset).batch(-1)
    with pytest.raises(UserError, match="max_tokens = 5: must be at least one window, 48"):
        next(validation_batches(dataset, "val", length=LENGTH, sequences=1, max_tokens=5))


def test_the_shortest_split_that_works(tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{number}\n" for number in range(100)))
    options = PrepareOptions(document_bytes=16, val_fraction=0.5)
    prepare([str(tmp_path / "in.txt")], out=tmp_path / "out", options=options)
    dataset = TokenDataset.open(tmp_path / "out")
    tokens = dataset.tokens("train")
    batch = loader(dataset, length=tokens - 1, sequences=1).batch(0)
    assert batch.tokens[0, 0] == batch.targets[0, -1] == dataset.eos_id
    with pytest.raises(UserError, match="a window takes length"):
        loader(dataset, length=tokens)


def test_a_part_of_the_text_is_drawn_and_read_again(dataset):
    def windows(unique, seed=7, steps=40):
        loader = Loader(dataset, "train", length=8, sequences=4, seed=seed, unique=unique)
        return loader, np.concatenate([loader.windows_of(step) for step in range(steps)])

    small, few = windows(8 * 12 + 5)
    assert small.windows == 12
    assert len(set(few[:12])) == 12
    assert set(few[12:24]) == set(few)
    _, more = windows(8 * 20)
    assert set(few) < set(more)
    assert few.max() > 12  # drawn, not the first ones
    assert set(windows(8 * 12, seed=8)[1]) != set(few)
    everything, _ = windows(10**9)
    assert everything.windows == everything.all_windows
