"""The plan: the runs a study file asks for and their exact price; bad study files."""

import time
from pathlib import Path

import pytest

from linscale.config import UserError
from linscale.models.count import count_parameters
from linscale.study.plan import load_study, planned_runs
from linscale.study.probe import Probe

PAPER = Path(__file__).parents[2] / "configs" / "study" / "paper.toml"
# Specification 3.5: compute to train on 300B tokens, PFLOP/s-days.
BUDGETS = {
    "llama": [1.44, 4.92, 15.9, 35.7, 87.9, 179],
    "tnl": [0.44, 1.92, 6.97, 19.7, 58.8, 136],
    "hgrn2": [0.42, 1.87, 7.10, 19.4, 58.3, 136],
    "cosformer2": [0.47, 2.00, 7.17, 20.1, 59.5, 137],
}


def test_the_papers_study_is_priced_without_a_model_and_matches_its_budgets():
    start = time.monotonic()
    runs = {run.name: run for run in planned_runs(load_study(PAPER), vocab_size=100_280, data_path="-")}
    assert time.monotonic() - start < 2
    for arch, budgets in BUDGETS.items():
        for size, budget in zip(["70M", "160M", "410M", "1B", "3B", "7B"], budgets, strict=True):
            run = runs[f"{arch}-{size}"]
            assert run.pflop_s_days == pytest.approx(budget, rel=0.02)
            assert run.config.train.steps == 76_293
            assert run.total_params == count_parameters(run.config.model).total
    variants = [name for name in runs if "1B-" in name]
    assert sorted(variants) == sorted(
        [f"{arch}-1B-{shape}" for arch in ("llama", "cosformer2") for shape in ("1792x24", "2048x18", "3072x8")]
        + [f"{arch}-1B-{context}" for arch in ("tnl", "hgrn2", "cosformer2") for context in ("2k", "4k", "16k")]
    )
    assert runs["tnl-1B-16k"].config.train.sequences == 240
    assert len(runs) == 4 * 6 + 2 * 3 + 3 * 3


def test_overrides_seeds_and_restrictions(study_file):
    text = study_file.read_text().replace('name = "tiny"', 'name = "tiny"\nseeds = [0, 1]', 1)
    text = text.replace("tokens = 64_000", 'archs = ["tnl"]\ntokens = 10240\nlr = 1e-3\nlength = 64')
    study_file.write_text(text)
    runs = {run.name: run.config for run in planned_runs(load_study(study_file), vocab_size=257, data_path="d")}
    assert sorted(runs) == sorted(
        [f"{arch}-{size}-s{seed}" for arch in ("tnl", "llama") for size in "ac" for seed in (0, 1)]
        + ["tnl-b-s0", "tnl-b-s1"]
    )
    changed = runs["tnl-b-s1"].train
    assert (changed.tokens, changed.lr, changed.length, changed.seed) == (10_240, 1e-3, 64, 1)
    assert (runs["tnl-a-s0"].train.tokens, runs["tnl-c-s0"].train.tokens) == (102_400, 12_800)
    assert runs["tnl-a-s0"].model.vocab_size == 257


def test_the_probe_prices_a_small_run_by_trying_it(study_file):
    runs = planned_runs(load_study(study_file), vocab_size=257, data_path="-")
    probe = Probe(threads=1)
    seconds = [probe.seconds(run) for run in runs]
    assert probe.tried == len(runs)
    assert all(0.01 < s < 300 for s in seconds)
    large = planned_runs(load_study(PAPER), vocab_size=100_280, data_path="-")[-1]
    assert probe.seconds(large) > 1e6  # by the matrix rate: nothing of that size is built
    assert probe.tried == len(runs)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('archs = ["tnl", "llama"]', 'archs = ["tnl", "rwkv"]', "archs.1 = 'rwkv'"),
        ('archs = ["tnl", "llama"]', "archs = []", "archs is empty"),
        ('archs = ["tnl", "llama"]', 'archs = ["tnl", "tnl"]', "archs names 'tnl' twice"),
        ("d_model = 8", "d_model = 20", "d_model = 20 is not a multiple of head_dim = 8"),
        ("d_model = 8", "d_model = 0", "d_model = 0: input should be greater than 0"),
        ("d_model = 8", 'shape = "13B"', "shape = '13B': expected one of 70M"),
        ('name = "b"', 'name = "b"\nshape = "1B"', "size 'b' needs either shape alone, or d_model and n_layers"),
        ("n_layers = 1", "", "size 'a' needs either shape alone, or d_model and n_layers"),
        ('name = "b"', 'name = "a"', "sizes names 'a' twice"),
        ("lr = 2e-2", "learning_rate = 2e-2", "unknown key 'train.learning_rate'"),
        ("batch_tokens = 256", "batch_tokens = 250", "batch_tokens = 250 must be a multiple of length = 32"),
        ("tokens = 12_800", "tokens = -5", "train.tokens = -5"),
        ("[data]", '[data]\npath = "x"', "data needs either path"),
        ('name = "tiny"', 'name = "../tiny"', "name = '../tiny'"),
    ],
)
def test_bad_study_files_are_one_clear_line(study_file, old, new, words):
    text = study_file.read_text()
    assert old in text
    study_file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_study(study_file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
