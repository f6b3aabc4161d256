"""Planted laws are recovered, intervals hold the truth, and what cannot be fitted is refused by name."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from linscale.config import UserError, parse
from linscale.study.fit import FitConfig, envelope, fit_group, fit_study
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.results import Curve

QUICK = FitConfig(bootstrap=0, discard=0.01)
LOG_SPACED = np.geomspace(2e7, 6.5e9, 6)
# The paper's ladder: layers and widths, N = 12 l d^2, and LLaMA's 72 l d^2 (1 + n/(6d) + 5/(18d)) FLOPs a token.
LAYERS = np.array([6, 12, 26, 32, 35, 32])
WIDTHS = np.array([512, 768, 1024, 1536, 2560, 4096])
PAPER_SIZES = 12.0 * LAYERS * WIDTHS**2
LLAMA_FLOPS = 6 * PAPER_SIZES * (1 + 8192 / (6 * WIDTHS) + 5 / (18 * WIDTHS))


@dataclass(frozen=True)
class Planted:
    """L = E + A N^-alpha + B D^-beta, trained at f(N) = kappa N^gamma FLOPs a token."""

    a: float
    alpha: float
    b: float
    beta: float
    e: float = 0.0

    def loss(self, params: float, tokens: np.ndarray) -> np.ndarray:
        return self.e + self.a * params**-self.alpha + self.b * tokens**-self.beta

    def tokens(self, params: np.ndarray) -> np.ndarray:
        """Best tokens for N at f = 6N: alpha A N^-alpha = beta B D^-beta."""
        return (self.beta * self.b / (self.alpha * self.a) * params**self.alpha) ** (1 / self.beta)

    def optimum(self, compute: np.ndarray, kappa: float, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """L, N and D at the minimum of a N^-alpha + b (kappa N^gamma / C)^beta over N."""
        ratio = self.alpha * self.a / (gamma * self.beta * self.b) * (compute / kappa) ** self.beta
        params = ratio ** (1 / (self.alpha + gamma * self.beta))
        tokens = compute / (kappa * params**gamma)
        return self.loss(params, tokens), params, tokens

    def parameters(self, at: np.ndarray, kappa: float = 6.0, gamma: float = 1.0) -> list[float]:
        """The six parameters of the power laws through the optima at compute `at` (exact where E = 0)."""
        lines = [np.polyfit(np.log(at / PFLOP_S_DAY), np.log(y), 1) for y in self.optimum(at, kappa, gamma)]
        return [value for slope, intercept in lines for value in (float(np.exp(intercept)), float(slope))]


CHINCHILLA = Planted(406.4, 0.34, 410.7, 0.28)
PAPER_LIKE = Planted(11.5, 0.12, 60.0, 0.165)
SYMMETRIC = Planted(2e4, 0.55, 1.5e5, 0.55)
SKEWED = Planted(100.0, 0.25, 5e4, 0.5)
NAMES = ["chinchilla", "paper-like", "symmetric", "skewed"]


def ladder(
    law: Planted,
    params: Sequence[float] | np.ndarray,
    *,
    tokens: float = 3e11,
    flops: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    points: int = 40,
) -> list[Curve]:
    """One run a size on the same tokens, measured at log-spaced points from 1% of them; noise shifts a log loss."""
    curves = []
    for i, n in enumerate(np.asarray(params, dtype=float)):
        seen = np.geomspace(0.01 * tokens, tokens, points)
        rate = 6 * n if flops is None else float(flops[i])
        loss = law.loss(n, seen) * np.exp(0.0 if noise is None else noise[i])
        curves.append(Curve(f"tnl-{i}", "tnl", str(i), n, rate, seen, seen * rate, loss))
    return curves


def values(group: dict) -> list[float]:
    return [row["value"] for row in group["parameters"].values()]


def assert_recovered(found: list[float], truth: list[float], *, coefficients: float = 0.01) -> None:
    assert found[1::2] == pytest.approx(truth[1::2], rel=0.01)
    assert found[0::2] == pytest.approx(truth[0::2], rel=coefficients)


@pytest.mark.parametrize("law", [CHINCHILLA, PAPER_LIKE, SYMMETRIC, SKEWED], ids=NAMES)
@pytest.mark.parametrize("gamma", [1.0, 0.83], ids=["6N", "sublinear"])
def test_planted_power_laws_are_recovered_to_one_percent(law: Planted, gamma: float) -> None:
    kappa = 6.0 * 1e9 ** (1 - gamma)  # the same FLOPs a token at 1B; 0.83 is the slope of LLaMA's at 8K context
    group = fit_group(ladder(law, LOG_SPACED, flops=kappa * LOG_SPACED**gamma), QUICK)
    at = np.geomspace(*np.array(group["compute_range"]) * PFLOP_S_DAY, 30)
    assert_recovered(values(group), law.parameters(at, kappa, gamma))


@pytest.mark.parametrize("law", [CHINCHILLA, PAPER_LIKE, SYMMETRIC, SKEWED], ids=NAMES)
def test_uneven_sizes_are_recovered_to_one_percent(law: Planted) -> None:
    group = fit_group(ladder(law, PAPER_SIZES), QUICK)
    assert_recovered(values(group), law.parameters(np.geomspace(1e19, 1e21, 30)))


@pytest.mark.parametrize("law", [CHINCHILLA, PAPER_LIKE, SYMMETRIC, SKEWED], ids=NAMES)
def test_the_papers_llama_ladder_is_recovered_to_one_percent(law: Planted) -> None:
    """Its FLOPs per token zigzag by 4% about a curve that bends: the truth is the optimum of that family of shapes.

    Taken as they are, the zigzag would move the fit by 5 to 7%. The optimum has no closed form here: N is searched.
    """
    group = fit_group(ladder(law, PAPER_SIZES, flops=LLAMA_FLOPS), QUICK)
    at = np.geomspace(*np.array(group["compute_range"]) * PFLOP_S_DAY, 30)
    log_n = np.linspace(np.log(2e7), np.log(1e10), 20_001)
    log_f = np.polyval(np.polyfit(np.log(PAPER_SIZES), np.log(LLAMA_FLOPS), 2), log_n)
    tokens = at[:, None] / np.exp(log_f)
    loss = law.loss(np.exp(log_n), tokens)
    best = loss.argmin(1)
    truth = [loss.min(1), np.exp(log_n[best]), tokens[np.arange(len(at)), best]]
    lines = [np.polyfit(np.log(at / PFLOP_S_DAY), np.log(y), 1) for y in truth]
    assert_recovered(values(group), [v for slope, intercept in lines for v in (float(np.exp(intercept)), float(slope))])


def test_two_shapes_of_nearly_one_size_count_as_one() -> None:
    variants = np.append(PAPER_SIZES, 1.02 * PAPER_SIZES[3])  # the paper's 1B ladder has 906M and 925M
    noise = np.append(np.zeros(6), 0.002)
    group = fit_group(ladder(CHINCHILLA, variants, noise=noise), QUICK)
    assert values(group)[1::2] == pytest.approx(CHINCHILLA.parameters(np.geomspace(1e19, 1e21, 30))[1::2], rel=0.02)


def test_with_irreducible_loss_the_optimum_is_recovered_point_by_point() -> None:
    law = replace(CHINCHILLA, e=1.69)
    points = envelope(ladder(law, LOG_SPACED), QUICK)
    loss, params, tokens = law.optimum(points.compute, 6.0, 1.0)
    assert points.loss == pytest.approx(loss, rel=0.002)
    assert np.abs(np.log(points.params / params)).mean() < 0.03
    assert np.abs(np.log(points.tokens / tokens)).mean() < 0.03


def test_noisy_training_loss_with_a_warm_up_is_smoothed_and_cut() -> None:
    seen = np.linspace(3e8, 3e11, 1000)
    generator = np.random.default_rng(0)
    errors = {"fitted": [], "not smoothed": [], "not cut": []}
    for _ in range(4):
        curves = []
        for i, n in enumerate(LOG_SPACED):
            loss = CHINCHILLA.loss(n, seen) * np.exp(generator.normal(0, 0.03, 1000)) + 8 * np.exp(-seen / 6e8)
            curves.append(Curve(f"r{i}", "tnl", str(i), n, 6 * n, seen, seen * 6 * n, loss))
        for name, changes in (("fitted", {}), ("not smoothed", {"smooth": 0}), ("not cut", {"discard": 0})):
            group = fit_group(curves, FitConfig(loss="train", bootstrap=0, **changes))
            errors[name].append(values(group)[3] - 0.28 / 0.62)
    error = {name: abs(np.mean(found)) for name, found in errors.items()}
    assert error["fitted"] < 0.03
    assert error["not smoothed"] > 2 * error["fitted"]
    assert error["not cut"] > 2 * error["fitted"]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [3, 6])
def test_intervals_hold_the_truth(sizes: int) -> None:
    params = 2e7 * 3.0 ** np.arange(sizes)
    budget = 1.5 * float(CHINCHILLA.tokens(params).max())
    truth = values(fit_group(ladder(CHINCHILLA, params, tokens=budget), QUICK))
    settings = FitConfig(bootstrap=200)
    held = []
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, settings.seed_noise, sizes)
        rows = fit_group(ladder(CHINCHILLA, params, tokens=budget, noise=noise), settings)["parameters"].values()
        held.append([row["low"] <= value <= row["high"] for row, value in zip(rows, truth, strict=True)])
    assert np.mean(held, axis=0).min() > 0.85  # 52 of 60; at the nominal 0.95 fewer come once in 350


def test_repeated_seeds_measure_the_noise_and_narrow_the_interval() -> None:
    params = np.repeat(2e7 * 3.0 ** np.arange(4), 4)
    noise = np.random.default_rng(0).normal(0, 0.01, 16)
    group = fit_group(ladder(CHINCHILLA, params, noise=noise, tokens=2e11), FitConfig())
    single = fit_group(ladder(CHINCHILLA, params[::4], noise=noise[::4], tokens=2e11), FitConfig(seed_noise=0.01))
    assert group["bootstrap"]["seed_noise_source"] == "measured"
    assert group["bootstrap"]["seed_noise"] == pytest.approx(0.01, rel=0.5)
    assert group["bootstrap"]["distinct_resamples"] == 35**4
    assert group["parameters"]["l_exponent"]["se"] < 0.8 * single["parameters"]["l_exponent"]["se"]
    assert "assumed_noise" not in [warning["name"] for warning in group["warnings"]]


def test_resampling_moves_the_law_by_itself_where_a_size_has_repeats() -> None:
    """Without seed noise only the draw is left: of two repeats come the pairs 11, 12, 22, and three laws."""
    params = np.append(2e7 * 3.0 ** np.arange(4), 2e7 * 3.0)
    curves = ladder(CHINCHILLA, params, noise=np.array([0, 0, 0, 0, 0.005]), tokens=2e11)
    group = fit_group(curves, replace(QUICK, seed_noise=0, bootstrap=200))
    low, high = group["parameters"]["n_opt_exponent"]["low"], group["parameters"]["n_opt_exponent"]["high"]
    ends = [fit_group([*curves[:1], curves[i], *curves[2:4]], QUICK) for i in (1, 4)]
    assert group["bootstrap"]["distinct_resamples"] == 3
    assert [low, high] == pytest.approx(sorted(values(end)[3] for end in ends), rel=0.01)
    single = fit_group(curves[:4], replace(QUICK, seed_noise=0, bootstrap=50))["parameters"]["n_opt_exponent"]
    assert single["high"] - single["low"] < 1e-9


def test_a_shorter_repeat_adds_to_a_size_and_takes_nothing_away() -> None:
    curves = ladder(CHINCHILLA, LOG_SPACED)
    repeats = [
        replace(c, run=f"{c.run}-s1", tokens=c.tokens[:25], flops=c.flops[:25], loss=c.loss[:25]) for c in curves
    ]
    alone, joined = (fit_group(some, QUICK) for some in (curves, curves + repeats))
    assert values(joined) == pytest.approx(values(alone), rel=1e-3)
    assert joined["compute_range"] == pytest.approx(alone["compute_range"], rel=0.01)


def test_seed_noise_that_changes_sign_along_a_run_is_measured() -> None:
    curves = []
    for repeat in range(4):
        for curve in ladder(CHINCHILLA, 2e7 * 3.0 ** np.arange(4), tokens=2e11):
            sign = np.cos(np.linspace(0, 6 * np.pi, len(curve.loss))) * (-1) ** repeat
            curves.append(replace(curve, run=f"{curve.run}-{repeat}", loss=curve.loss * np.exp(0.01 * sign)))
    noise = fit_group(curves, FitConfig(bootstrap=10))["bootstrap"]["seed_noise"]
    assert noise == pytest.approx(0.01 * np.sqrt(1 / 2) * np.sqrt(4 / 3), rel=0.15)


def test_a_run_that_ends_far_above_its_lowest_loss_is_named() -> None:
    curves = ladder(CHINCHILLA, LOG_SPACED)
    curves[2] = replace(curves[2], loss=np.where(curves[2].tokens > 1e11, 9.0, curves[2].loss))
    warnings = {w["name"]: w["detail"] for w in fit_group(curves, QUICK)["warnings"]}
    assert warnings["rising_loss"] == "tnl-2"
    assert "rising_loss" not in {w["name"] for w in fit_group(ladder(CHINCHILLA, LOG_SPACED), QUICK)["warnings"]}


def test_the_fit_is_deterministic_and_blind_to_the_order_of_runs() -> None:
    curves = ladder(CHINCHILLA, LOG_SPACED, noise=np.random.default_rng(2).normal(0, 0.003, 6))
    first, again = (json.dumps(fit_study(curves, FitConfig(bootstrap=50))) for _ in range(2))
    assert first == again
    shuffled = fit_group(curves[::-1], QUICK)
    assert values(shuffled) == pytest.approx(values(fit_group(curves, QUICK)), rel=1e-9)
    assert json.loads(first)["groups"][0]["parameters"]["l_exponent"]["identified"] is True


def test_stretches_won_by_the_smallest_or_largest_size_are_dropped() -> None:
    group = fit_group(ladder(CHINCHILLA, LOG_SPACED), QUICK)
    dropped = {item["rule"]: item["count"] for item in group["dropped"]}
    assert dropped["edge"] > 0
    assert dropped["no_competitor"] > 0
    assert sum(dropped[rule] for rule in ("edge", "no_competitor", "no_minimum")) + group["points_used"] == QUICK.grid
    points = envelope(ladder(CHINCHILLA, LOG_SPACED), QUICK)
    assert points.params.min() > LOG_SPACED[0] * 1.2
    assert points.params.max() < LOG_SPACED[-1] / 1.2


def test_small_ladders_are_fitted_and_flagged() -> None:
    params = np.array([2e5, 3e5, 4.5e5])
    group = fit_group(ladder(CHINCHILLA, params, tokens=1.2 * float(CHINCHILLA.tokens(params[-1:])[0])), FitConfig())
    names = {warning["name"] for warning in group["warnings"]}
    assert {"few_sizes", "short_range", "edge_minimum", "assumed_noise", "extrapolated_coefficient"} <= names
    assert values(group)[3] == pytest.approx(0.28 / 0.62, rel=0.1)
    assert group["parameters"]["n_opt_exponent"]["low"] < group["parameters"]["n_opt_exponent"]["high"]


@pytest.mark.parametrize(
    ("curves", "reason"),
    [
        (ladder(CHINCHILLA, LOG_SPACED[:2]), "tnl: 2 size.*needs 3"),
        (ladder(CHINCHILLA, [1e6, 1e8, 1e10]), "tnl: no compute value.*overlap"),
        (ladder(CHINCHILLA, np.geomspace(1e10, 4e10, 4), tokens=1e9), "tnl: .*smallest wins at 100%.*smaller sizes"),
        (ladder(CHINCHILLA, np.geomspace(1e6, 4e6, 4), tokens=1e12), "tnl: .*largest at 100%.*larger sizes"),
    ],
    ids=["two sizes", "no overlap", "all too large", "all too small"],
)
def test_what_cannot_be_fitted_is_refused_by_name_with_a_remedy(curves: list[Curve], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        fit_group(curves, QUICK)
    with pytest.raises(UserError, match=reason):
        fit_study(curves, QUICK)


def test_one_refused_architecture_does_not_stop_the_others() -> None:
    stunted = [replace(curve, arch="hgrn2") for curve in ladder(CHINCHILLA, LOG_SPACED[:2])]
    found = fit_study([*ladder(CHINCHILLA, LOG_SPACED), *stunted], QUICK)
    assert [group["group"] for group in found["groups"]] == ["tnl"]
    assert [item["group"] for item in found["refused"]] == ["hgrn2"]
    assert found["version"] == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.slow
def test_four_architectures_with_a_thousand_replicates_take_seconds() -> None:
    curves = [replace(c, arch=arch) for arch in "abcd" for c in ladder(CHINCHILLA, LOG_SPACED)]
    started = time.perf_counter()
    fit_study(curves, FitConfig())
    assert time.perf_counter() - started < 8


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="unknown key 'smoothing'"):
        parse(FitConfig, {"smoothing": 0.1})
    with pytest.raises(UserError, match=r"discard = 1\.5"):
        parse(FitConfig, {"discard": 1.5})


@pytest.mark.slow
def test_fitting_and_reporting_load_neither_torch_nor_plotly() -> None:
    code = (
        "import sys, linscale.study.fit, linscale.study.report; "
        "print(sorted({'torch', 'plotly', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
