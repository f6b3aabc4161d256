"""The page opens without a network, shows what was found and escapes what a model wrote; the table fits 80 columns."""

import hashlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from linscale.config import UserError
from linscale.run_folder import RecordWriter, read_json, write_json
from linscale.study.fit import FitConfig, fit_study
from linscale.study.laws import law_of
from linscale.study.report import print_summary, summary, write_report
from linscale.study.report.digest import short, with_interval
from linscale.study.results import read_study

HOSTILE = "</script><script>alert(1)</script> & \x1b[31mred [bold]not markup[/bold]"
DIGEST = "79542150855a52c567260e3137095dbe"  # of npm's plotly.js-cartesian-dist-min 4.1.1
ARCHITECTURES = ("cosformer2", "hgrn2", "llama", "tnl")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four architectures; hgrn2 has too few sizes to fit, and the model of llama writes hostile text."""
    folder = tmp_path / "shakespeare"
    for arch in ARCHITECTURES:
        for i, params in enumerate(np.geomspace(2e7, 6e8, 4)[: 2 if arch == "hgrn2" else 4]):
            write_run(folder / f"{arch}-{i}", arch, float(params))
    write_json(folder / "fits.json", fit_study(read_study(folder), FitConfig(bootstrap=100)))
    sample = {"run": "llama-3", "step": 12, "prompt": "ROMEO:", "continuation": HOSTILE}
    write_json(folder / "samples.json", {"llama": sample})
    return folder


def write_run(run: Path, arch: str, params: float, name: str | None = None, scale: float = 1.0) -> None:
    values = {
        "run": name or run.name,
        "study": "shakespeare",
        "size": run.name,
        "model": {"arch": arch},
        "code": "0.1.0+abc",
    }
    values |= {"params": {"non_embedding": params}, "flops_per_token": 6 * params, "data": {"fingerprint": "f00dcafe"}}
    write_json(run / "config.json", values)
    write_json(run / "status.json", {"state": "done", "step": 12, "steps": 12, "tokens": 1e11})
    writer = RecordWriter(run / "evaluations.jsonl")
    for step, tokens in enumerate(np.geomspace(scale * 1e9, scale * 1e11, 12), start=1):
        loss = 406.4 / params**0.34 + 410.7 / tokens**0.28
        record = {"run": run.name, "step": step, "tokens": tokens, "task": "validation", "task_version": "v1"}
        writer.write(
            record | {"metric": "loss", "value": loss}, record | {"metric": "bits_per_byte", "value": loss / 3}
        )
    writer.close()


class Page(HTMLParser):
    """Tags with their attributes, and text, outside of scripts and styles; the JSON of the figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.figures, self._inside = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = str(dict(attrs).get("id", tag))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "figures":
            self.figures += data
        elif not self._inside:
            self.text += data


def test_the_page_is_whole_refers_to_nothing_outside_and_is_the_same_twice(study: Path, tmp_path: Path) -> None:
    out = write_report(study, tmp_path / "new" / "report.html")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    loading = [(tag, a) for tag, a in page.tags if tag in ("link", "img", "iframe", "base") or {"src", "href"} & set(a)]
    assert loading == []
    assert "@import" not in text.split("</style>")[0]
    assert "url(" not in text.split("</style>")[0]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "Plotly" in text
    assert out.stat().st_size < 5_000_000
    assert list(out.parent.iterdir()) == [out]
    assert write_report(study, tmp_path / "again.html").read_bytes() == out.read_bytes()


def test_the_bundle_of_plotly_is_the_published_one_with_its_licence() -> None:
    folder = files("linscale.study.report")
    script = folder.joinpath("plotly-cartesian.min.js").read_bytes()
    assert script.startswith(b"/**\n* plotly.js (cartesian - minified) v4.1.1\n")
    assert hashlib.sha256(script).hexdigest().startswith(DIGEST)
    assert "MIT License" in folder.joinpath("plotly-LICENSE.txt").read_text()


def test_what_a_model_or_a_config_says_stays_text(study: Path, tmp_path: Path) -> None:
    write_run(study / "tnl-0", "tnl", 2e7, name="</script><b>run</b>")
    page = Page(write_report(study, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "alert(1)</script> & " in page.text
    assert "\x1b" not in page.text
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3  # plotly, the data, the drawing
    assert "<" not in page.figures
    curves = [mark for mark in json.loads(page.figures)["figures"][0]["marks"] if mark["kind"] == "curve"]
    assert "</script><b>run</b>" in [mark["extra"]["run"] for mark in curves]
    assert "b" not in [tag for tag, _ in page.tags]


def test_the_page_shows_laws_runs_warnings_and_where_numbers_come_from(study: Path, tmp_path: Path) -> None:
    page = Page(write_report(study, tmp_path / "report.html").read_text(encoding="utf-8"))
    exponent = summary(study)["architectures"][3]["fit"]["parameters"]["l_exponent"]
    for value in (*with_interval(exponent), "-0.0768"):  # the last one is the paper's
        assert value.replace("-", "−") in page.text
    for words in ("f00dcafe", "0.1.0+abc", "tnl-2", "few_sizes", "2 size(s)", "8.64 × 10", "ROMEO:"):
        assert words in page.text
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") >= 2
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    assert all(a.get("tabindex") == "0" for _, a in page.tags if a.get("class") == "scroll")
    assert ("html", {"lang": "en"}) in page.tags


def test_the_figures_hold_every_curve_and_only_fitted_lines(study: Path, tmp_path: Path) -> None:
    page = Page(write_report(study, tmp_path / "report.html").read_text(encoding="utf-8"))
    data = json.loads(page.figures)
    assert [group["name"] for group in data["groups"]] == ["cosFormer2", "HGRN2", "LLaMA", "TNL"]
    figures = {figure["id"]: figure["marks"] for figure in data["figures"]}
    curves = Counter(mark["group"] for mark in figures["loss"] if mark["kind"] == "curve")
    assert curves == {"cosformer2": 4, "hgrn2": 2, "llama": 4, "tnl": 4}
    for name in ("loss", "params", "tokens"):
        lines = {mark["group"]: mark for mark in figures[name] if mark["kind"] == "line"}
        bands = {mark["group"]: mark for mark in figures[name] if mark["kind"] == "band"}
        assert set(lines) == set(bands) == {"cosformer2", "llama", "tnl"}  # hgrn2 has too few sizes for a law
        for group, band in bands.items():
            at = np.exp(np.interp(np.log(band["x"]), np.log(lines[group]["x"]), np.log(lines[group]["y"])))
            assert (np.array(band["low"]) <= at * 1.001).all()
            assert (at <= np.array(band["high"]) * 1.001).all()


def test_slices_have_the_minima_of_the_envelope_and_residuals_what_the_law_leaves(study: Path, tmp_path: Path) -> None:
    page = Page(write_report(study, tmp_path / "report.html").read_text(encoding="utf-8"))
    figures = {figure["id"]: figure["marks"] for figure in json.loads(page.figures)["figures"]}
    fit = next(group for group in read_json(study / "fits.json")["groups"] if group["group"] == "tnl")
    minima = [mark for mark in figures["isoflop"] if (mark["kind"], mark["group"]) == ("minimum", "tnl")]
    assert len(minima) == 5
    envelope = {name: np.log(values) for name, values in fit["envelope"].items()}
    for mark in minima:
        at = np.log(mark["extra"]["compute_pflop_s_days"])
        for value, name in ((mark["x"][0], "params"), (mark["y"][0], "loss")):
            assert np.log(value) == pytest.approx(np.interp(at, envelope["compute"], envelope[name]), abs=2e-3)
    for mark in figures["isoflop"]:
        if mark["kind"] == "curve":  # through three measured sizes, and lowest at the minimum
            points, lowest = [
                next(
                    m
                    for m in figures["isoflop"]
                    if (m["kind"], m["group"], m["extra"]) == (k, mark["group"], mark["extra"])
                )
                for k in ("points", "minimum")
            ]
            assert {mark["x"][0], mark["x"][-1]} <= set(points["x"])
            assert min(mark["y"]) >= lowest["y"][0] * (1 - 1e-6)
    law = law_of(fit["parameters"])
    (residual,) = [mark for mark in figures["residual-loss"] if mark["group"] == "tnl"]
    expected = 100 * (np.array(fit["envelope"]["loss"]) / law.loss(np.array(fit["envelope"]["compute"])) - 1)
    assert residual["y"] == pytest.approx(expected, abs=1e-4)


def test_a_study_without_fits_still_has_a_page_and_a_table(tmp_path: Path) -> None:
    write_run(tmp_path / "study" / "tnl-0", "tnl", 1e7)
    page = Page(write_report(tmp_path / "study", tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "not fitted yet" in page.text
    assert "not fitted yet" in printed(tmp_path / "study", 80)


def test_damaged_results_and_unwritable_targets_give_one_line(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(study, tmp_path / "file" / "report.html")
    write_json(study / "fits.json", {"version": 2})
    with pytest.raises(UserError, match="version = 2"):
        summary(study)
    (study / "fits.json").write_text("{")
    with pytest.raises(UserError, match="damaged JSON"):
        write_report(study, tmp_path / "report.html")


def printed(study: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(study, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_is_complete_at_any_width(study: Path, width: int) -> None:
    text = printed(study, width)
    found = summary(study)
    base = "C" if found["reference_compute"] == 1 else "c"
    assert max(len(line) for line in text.splitlines()) <= width
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "…" not in text
    for item in found["architectures"]:
        assert item["name"] in text
        assert f"{item['bits_per_byte']:.3f} bits/B" in text
        for name, row in (item["fit"] or {"parameters": {}})["parameters"].items():
            if name.endswith("exponent"):
                value, interval = with_interval(row)
                assert f"{base}^{value}" in text
                assert interval in text
    assert "\x1b" not in text
    words = re.sub(r"\s+", " ", text)
    assert "[bold]not markup[/bold]" in words
    assert "not fitted: 2 size(s)" in words
    assert "few_sizes: exponents from fewer than five sizes are rough: cosFormer2, LLaMA, TNL (4 sizes)" in words
    assert words.count("few_sizes") == 1
    assert "assuming 0.3% seed noise" in words  # one run a size: the interval says what it rests on


def test_digits_follow_the_interval() -> None:
    assert with_interval({"value": 0.123456, "low": 0.03, "high": 0.29}) == ("0.12", "0.03 to 0.29")
    assert with_interval({"value": 2.06349, "low": 2.0131, "high": 2.0931}) == ("2.063", "2.013 to 2.093")
    assert with_interval({"value": 123.4, "low": 50.0, "high": 350.0}) == ("123", "50 to 350")
    assert with_interval({"value": -0.07, "low": None, "high": None}) == ("-0.0700", "no interval")


def test_far_from_one_pflop_s_day_laws_are_told_where_they_were_fitted(tmp_path: Path) -> None:
    for arch, scale in (("tnl", 1.0), ("llama", 2.0)):
        for i, params in enumerate(np.geomspace(2e4, 6e5, 4)):
            write_run(tmp_path / "tiny" / f"{arch}-{i}", arch, scale * params, scale=1e-3)
    curves = read_study(tmp_path / "tiny")
    write_json(tmp_path / "tiny" / "fits.json", fit_study(curves, FitConfig(bootstrap=100)))
    found = summary(tmp_path / "tiny")
    reference = found["reference_compute"]
    for item in found["architectures"]:
        low, high = item["fit"]["compute_range"]
        assert low <= reference <= high
        row, law = item["at_reference"]["loss"], law_of(item["fit"]["parameters"])
        assert row["value"] == law.loss(reference)
        assert row["low"] < row["value"] < row["high"] < 1.1 * row["low"]
    text = printed(tmp_path / "tiny", 80)
    assert f"c = C / {short(reference)} PFLOP/s-days" in text
    assert "extrapolated_coefficient" not in text  # no such coefficient is in the table; the page and fits.json say it
    page = Page(write_report(tmp_path / "tiny", tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "extrapolated_coefficient" in page.text
    assert "Coefficients at 1 PFLOP/s-day" in page.text


def test_even_numbers_too_wide_for_the_table_are_printed_whole(study: Path) -> None:
    fits = json.loads((study / "fits.json").read_text(encoding="utf-8"))
    for row in fits["groups"][0]["parameters"].values():
        row |= {"value": 1.234e-11, "low": 1.234e-111, "high": 9.876e-101, "identified": False}
    write_json(study / "fits.json", fits)
    assert "…" not in printed(study, 80)


def test_the_summary_is_plain_json(study: Path) -> None:
    found = summary(study)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    llama = next(item for item in found["architectures"] if item["group"] == "llama")
    assert llama["best_run"] == "llama-3"
    assert llama["sample"]["continuation"] == HOSTILE
