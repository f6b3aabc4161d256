"""The proposed ladder: what it may be made of, that a study can fit it, and the file it becomes."""

import tomllib

import numpy as np
import pytest

from linscale.config import UserError, parse
from linscale.study.gpus import Gpu
from linscale.study.knowledge import knowledge
from linscale.study.ladder_design import FEWEST_RUNGS, design_ladder
from linscale.study.ladder_file import LadderFile, study_text
from linscale.study.plan import StudyConfig, planned_runs
from linscale.study.prospect import published
from linscale.study.recipe import recipe
from linscale.study.rungs import STEPS, Rung, exact_flops, has_envelope, possible_rungs
from linscale.study.sizing import Shape, nearest_shape

FLOPS, LENGTH, VOCAB = 1e19, 2048, 32_000
LAWS = {arch: published(arch) for arch in ("hgrn2", "tnl")}


@pytest.fixture(scope="module")
def known():
    found = {}
    for arch, law in LAWS.items():
        n, d = law.optimal(FLOPS)
        found[arch] = knowledge(law, n.value, d.value, FLOPS)
    return found


@pytest.fixture(scope="module")
def ladder(known):
    return design_ladder(known, LAWS, budget=6e17, length=LENGTH, vocab_size=VOCAB, runs=10)


def test_possible_rungs_are_apart_in_size_and_trained_long_enough(known):
    rungs = possible_rungs(known, LENGTH)
    sizes = sorted({rung.shape for rung in rungs}, key=lambda shape: shape.d_model**2 * shape.n_layers)
    assert len(sizes) > 8
    assert all(rung.recipe.steps >= STEPS for rung in rungs)
    top = float(np.exp(known["hgrn2"].centre[0]))
    assert nearest_shape("hgrn2", top).d_model >= max(shape.d_model for shape in sizes) - 64


@pytest.mark.slow
def test_the_ladder_is_within_its_budget_and_costs_what_it_says(known, ladder):
    costs = sum(exact_flops(ladder.rungs, arch, LENGTH, VOCAB) for arch in known)
    assert costs @ [rung.seeds for rung in ladder.rungs] == pytest.approx(ladder.flops)
    assert ladder.flops <= 6e17 * (1 + 1e-9)
    assert sum(rung.seeds for rung in ladder.rungs) <= 10
    assert len({rung.name for rung in ladder.rungs}) == len(ladder.rungs) >= FEWEST_RUNGS
    assert costs.tolist() == sorted(costs.tolist())
    for each in ladder.certainty.values():
        assert each.after[0] < each.now[0]
        assert each.after[1] < each.now[1]


@pytest.mark.slow
def test_a_study_could_fit_it_and_could_not_fit_two_sizes(known, ladder):
    assert not ladder.warnings
    assert all(has_envelope(known[arch], LAWS[arch], ladder.rungs, LENGTH) for arch in known)
    assert not has_envelope(known["tnl"], LAWS["tnl"], ladder.rungs[:2], LENGTH)


def test_a_budget_for_fewer_than_four_sizes_says_what_they_take(known):
    with pytest.raises(UserError, match=r"1e\+13 FLOPs do not buy 4 sizes of 300 steps or more, which take \d"):
        design_ladder(known, LAWS, budget=1e13, length=LENGTH, vocab_size=VOCAB, runs=10)


@pytest.mark.slow
def test_the_file_plans_the_same_runs_each_with_its_own_recipe_and_seeds(ladder):
    small = Rung(Shape(32, 1, 16, 96), recipe(1.3e4, 2e7, LENGTH), seeds=2)
    both = type(ladder)((small, *ladder.rungs), 1.0, 1.0, ladder.certainty, ())
    file = LadderFile("x", ["hgrn2"], {"path": "data/x"}, VOCAB, VOCAB, LENGTH, Gpu("small", 1e12, 3e9))
    text = study_text(both, file, "a comment\nof two")
    assert text.startswith("# a comment\n# of two\n")
    runs = planned_runs(parse(StudyConfig, tomllib.loads(text)), vocab_size=VOCAB, data_path="-")
    assert [run.name for run in runs[:2]] == ["hgrn2-32x1-s0", "hgrn2-32x1-s1"]
    planned = {run.name.removeprefix("hgrn2-").split("-s")[0]: run.config.train for run in runs}
    for rung in both.rungs:
        train = planned[rung.name]
        assert (train.tokens, train.batch_tokens, train.lr, train.warmup_tokens) == (
            rung.recipe.tokens,
            rung.recipe.batch_tokens,
            rung.recipe.lr,
            rung.recipe.warmup_tokens,
        )
    assert any(train.micro_batch for train in planned.values())  # 3 GB do not hold every batch at once


def test_seeds_of_a_rung_are_checked():
    with pytest.raises(UserError, match=r"seeds = \[1, 1\] of size 'a': expected one or more, all different"):
        parse(
            StudyConfig,
            {
                "name": "x",
                "sizes": [{"name": "a", "shape": "70M", "seeds": [1, 1]}],
                "data": {"path": "d"},
                "train": {"tokens": 1024, "batch_tokens": 128, "length": 128},
            },
        )
