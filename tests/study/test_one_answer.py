"""One question, one answer: plan, the page of a fit and predict say the same of the same file, interval and all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linscale.cli import main
from linscale.study.laws import PAPER_LAWS, PFLOP_S_DAY
from linscale.study.report.fit_figures import fit_figures
from linscale.study.table.surfaces import chinchilla
from tests.quick import quick

BUDGET = 2e20
RATIOS = np.geomspace(0.2, 5, 7)
LAWS = {
    "chinchilla": (),
    "gamma": (),
    "overtrain": (),
    "chinchilla, FLOPs of a column": ("--columns", "c=flops"),
    "chinchilla, FLOPs of a definition": ("--columns", "c=paper"),
    "isoflop": ("--columns", "c=budget_flops"),
    "envelope": ("--columns", "c=budget_flops"),
}


COLUMNS = "arch,run,params,tokens,loss,flops,budget_flops,d_model,n_layers,length,n_heads,d_ff"


def write_table(path: Path, *, curves: bool) -> Path:
    """Sizes at six budgets of 6 N D, or curves of eight sizes; a count of FLOPs that grows slower with N; shapes."""
    random, lines = np.random.default_rng(0), [COLUMNS]
    if curves:
        grid = [(n, d) for n in np.geomspace(1e7, 3e8, 8) for d in np.geomspace(2, 300, 25) * n]
    else:
        sizes = [(c, 0.1 * np.sqrt(c / 6) * ratio) for c in np.geomspace(1e18, 1e20, 6) for ratio in RATIOS]
        grid = [(n, c / 6 / n) for c, n in sizes]
    for n, d in grid:
        loss = chinchilla(n, d, 1.7, 400.0, 900.0, 0.34, 0.3) * np.exp((0 if curves else 0.003) * random.normal())
        layers = max(round((n / 12 / 64**2) ** (1 / 3)), 1)
        run = f"tnl-{n:.4g}" + ("" if curves else f"-{d:.4g}")
        shape = f"{64 * layers},{layers},2048,{layers},{160 * layers}"
        lines.append(f"tnl,{run},{n},{d},{loss},{60 * n**0.9 * d},{6 * n * d},{shape}")
    path.write_text("\n".join(lines) + "\n")
    return path


def study_fit(path: Path) -> Path:
    """A study's fits.json: a band in the place of resamples."""
    log_c, law = np.linspace(-4, 0, 25), PAPER_LAWS["tnl"]
    band: dict[str, Any] = {"compute": np.exp(log_c).tolist()}
    for name in ("loss", "params", "tokens"):
        line = np.array([getattr(law, name)(c) for c in band["compute"]])
        half = np.sqrt(0.01**2 + (0.004 * (log_c + 1)) ** 2)
        band |= {f"{name}_low": (line * np.exp(-half)).tolist(), f"{name}_high": (line * np.exp(half)).tolist()}
    group = {
        "group": "tnl", "law": "envelope", "compute_range": [np.exp(-4.0), 1.0], "band": band, "warnings": [],
        "parameters": {name: {"value": value} for name, value in vars(law).items()},
    }  # fmt: skip
    path.write_text(json.dumps({"version": 1, "units": {}, "groups": [group], "refused": []}))
    return path


QUICK = ("chinchilla", "isoflop", "study")


@pytest.fixture(scope="module", params=quick([*LAWS, "study"], *QUICK))
def fit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    if request.param == "study":
        return study_fit(folder / "fits.json")
    table, out = write_table(folder / "runs.csv", curves=request.param == "envelope"), folder / "fit.json"
    words = ["fit", str(table), "--law", request.param.split(",")[0], "--group", "arch", *LAWS[request.param]]
    assert main([*words, "--bootstrap", "60", "--json", str(out)]) == 0
    return out


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def ends(each: dict[str, Any]) -> tuple[float, ...]:
    assert each["low"] < each["high"]
    return each["value"], each["low"], each["high"]


def test_plan_says_what_predict_says(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--flops", str(BUDGET), "--arch", "tnl", "--fit", str(fit), "--ladder-share", "0", "--length", "2048")
    (plan,) = ask(capsys, "plan", *words)["plans"]
    (answer,) = ask(capsys, "predict", str(fit), "--flops", str(BUDGET))["predictions"]
    assert ends(plan["n_opt"]) == ends(answer["n_opt"])
    assert ends(plan["d_opt"]) == ends(answer["d_opt"])
    where = ("--flops", repr(plan["law_flops"]))
    if plan["law"] not in ("envelope", "isoflop"):
        where = ("--params", repr(plan["params"]), "--tokens", repr(plan["tokens"]))
    (answer,) = ask(capsys, "predict", str(fit), *where)["predictions"]
    assert ends(plan["loss"]) == ends(answer["loss"])


def test_the_page_draws_what_predict_says(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {figure.id: figure for figure in fit_figures(json.loads(fit.read_text())["groups"], "log")}
    for figure, key in (("loss-compute", "loss"), ("n-opt", "n_opt"), ("d-opt", "d_opt")):
        drawn = {mark.kind: mark for mark in figures[figure].marks if mark.kind in ("line", "band")}
        for at in (0, 20, -1):
            flops = drawn["line"].x[at] * PFLOP_S_DAY
            (answer,) = ask(capsys, "predict", str(fit), "--flops", repr(flops))["predictions"]
            shown = (drawn["line"].y[at], drawn["band"].low[at], drawn["band"].high[at])
            assert shown == pytest.approx(ends(answer[key]), rel=2e-5)  # numbers of a page are rounded


def test_n_opt_of_the_fit_itself_is_what_predict_says(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Coefficients are values at 1 PFLOP/s-day; intervals of a law without E, whose resamples are all there."""
    (group,) = json.loads(fit.read_text())["groups"]
    table = group["parameters"] | group.get("derived", {})
    (answer,) = ask(capsys, "predict", str(fit), "--flops", repr(PFLOP_S_DAY))["predictions"]
    for role in ("n_opt", "d_opt"):
        row = table[f"{role}_coefficient"]
        assert answer[role]["value"] == pytest.approx(row["value"], rel=1e-6)
        if group.get("derived"):
            assert ends(answer[role])[1:] == pytest.approx((row["low"], row["high"]), rel=1e-5)
