"""linscale plan as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest

from linscale.cli import main
from linscale.config import load_toml
from linscale.models.count import flops_per_token, paper_flops_per_step
from linscale.study.ladder_file import study_name
from linscale.study.plan import StudyConfig, load_study, planned_runs
from linscale.study.table.surfaces import chinchilla


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """A fit of two architectures, as `linscale fit` writes it."""
    folder, random = tmp_path_factory.mktemp("fit"), np.random.default_rng(0)
    lines = ["arch,run,params,tokens,loss"]
    for arch, E in (("hgrn2", 1.7), ("tnl", 1.74)):
        for n in np.geomspace(1e7, 5e8, 5):
            for ratio in (10, 30, 90):
                loss = chinchilla(n, ratio * n, E, 400, 900, 0.34, 0.3) * np.exp(0.003 * random.normal())
                lines.append(f"{arch},{arch}-{n:.0f}-{ratio},{n:.0f},{ratio * n:.0f},{loss}")
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    path = folder / "fit.json"
    words = ["fit", str(folder / "runs.csv"), "--group", "arch", "--bootstrap", "20", "--json", str(path)]
    assert main(words) == 0
    return str(path)


def plan(capsys, *words):
    capsys.readouterr()
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_published_laws_with_both_counts_of_flops_and_a_ladder_that_a_study_accepts(tmp_path, capsys):
    out = tmp_path / "deep" / "my ladder.toml"
    words = ["--flops", "1e19", "--arch", "hgrn2,llama", "--length", "2048", "--vocab", "32000", "--out", str(out)]
    result = plan(capsys, *words)
    assert [each["arch"] for each in result["plans"]] == ["hgrn2", "llama"]
    for each in result["plans"]:
        assert each["law_flops"] == pytest.approx(1e19, rel=0.01)
        assert each["params"] == pytest.approx(each["n_opt"]["value"], rel=0.1)
        assert each["tokens"] == each["steps"] * each["batch_tokens"]
        assert each["batch_tokens"] % (8 * 2048) == 0
        assert each["loss"]["low"] is None
        assert "no_interval" in {item["name"] for item in each["warnings"]}
        assert each["memory_bytes"] < 72e9
        assert each["seconds"] == pytest.approx(each["exact_flops"] / (989.4e12 * each["mfu"] * 8))
    ladder = result["ladder"]
    mean = np.mean([each["exact_flops"] for each in result["plans"]])
    assert 0.6 * 0.05 * mean < ladder["exact_flops"] <= 0.05 * mean * (1 + 1e-9)
    for certainty in ladder["certainty"].values():
        assert certainty["basis"] == "prior"
        assert certainty["after"]["log_loss"] < 0.2 * certainty["now"]["log_loss"]
        assert certainty["after"]["log_loss"] < certainty["after_even"]["log_loss"]
    study = load_study(out)
    assert (study.name, study.archs, study.model.vocab_size) == ("my-ladder", ("hgrn2", "llama"), 32_000)
    runs = planned_runs(study, vocab_size=32_000, data_path="-")
    assert sum(run.exact_flops for run in runs) == pytest.approx(ladder["exact_flops"], rel=0.01)
    assert len(runs) == 2 * sum(rung["seeds"] for rung in ladder["rungs"])
    for run in runs:
        assert run.config.train.warmup_steps < run.config.train.steps / 4
        assert run.config.train.steps >= 300


def test_exact_and_law_flops_are_those_of_the_counts(capsys):
    (each,) = plan(capsys, "--flops", "1e20", "--arch", "llama", "--ladder-share", "0", "--gpus", "1")["plans"]
    from linscale.models import CONFIGS

    shape = {name: each[name] for name in ("d_model", "n_layers", "head_dim", "d_ff")}
    config = CONFIGS["llama"](vocab_size=100_280, **shape)
    assert each["exact_flops"] == pytest.approx(flops_per_token(config, "train", 8192) * each["tokens"])
    steps = each["tokens"] / (480 * 8192)
    assert each["law_flops"] == pytest.approx(paper_flops_per_step(config) * steps)
    assert each["total_params"] > each["params"] + 100_280 * each["d_model"] - 1


@pytest.mark.slow
def test_a_fit_gives_intervals_and_its_points_narrow_what_is_known(fit, capsys):
    result = plan(capsys, "--flops", "3e21", "--arch", "hgrn2,tnl", "--fit", fit, "--mfu", "0.4")
    assert result["flops_definition"] == "C = 6 N D"
    for each in result["plans"]:
        assert each["law_flops"] == pytest.approx(6 * each["params"] * each["tokens"]) == pytest.approx(3e21, rel=0.01)
        assert each["loss"]["low"] < each["loss"]["value"] < each["loss"]["high"]
        assert each["n_opt"]["low"] < each["n_opt"]["value"] < each["n_opt"]["high"]
        assert each["mfu"] == 0.4
        assert "extrapolated" in {item["name"] for item in each["warnings"]}
        certainty = result["ladder"]["certainty"][each["arch"]]
        assert certainty["basis"] == "points"
        assert certainty["noise"] == pytest.approx(0.003, rel=0.6)
        said = np.log(each["loss"]["high"] / each["loss"]["low"]) / 2
        assert 0.3 * said < certainty["now"]["log_loss"] < 3 * said  # the linear one beside the bootstrap's


@pytest.mark.slow
def test_tables_for_people_name_what_numbers_rest_on(fit, tmp_path, capsys):
    out = tmp_path / "ladder.toml"
    assert main(["plan", "--flops", "1e20", "--arch", "tnl", "--fit", fit, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "law FLOPs: C = 6 N D",
        "arXiv 2503.04715",
        "N_opt",
        "even ladder",
        f"study plan {out}",
        "the fit's points",
    ):
        assert words in shown
    text = out.read_text()
    assert text.startswith("# The ladder that `linscale plan` proposes before")
    assert "known" not in text.split("name =")[0]
    assert load_toml(out, StudyConfig).data.path == "data/mine"


@pytest.mark.slow
def test_a_ladder_on_text_that_is_to_be_prepared(tmp_path, capsys):
    out = tmp_path / "tiny.toml"
    words = ["--flops", "1e16", "--arch", "tnl", "--gpus", "1", "--length", "128", "--out", str(out)]
    result = plan(capsys, *words, "--data", "builtin:tinyshakespeare")
    assert result["vocab_size"] == 257
    study = load_study(out)
    assert study.data.inputs == ("builtin:tinyshakespeare",)
    assert study.model.vocab_size is None
    assert "below_range" in {item["name"] for item in result["plans"][0]["warnings"]}


@pytest.mark.slow
def test_a_prepared_corpus_gives_the_vocabulary_and_says_when_it_is_short(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(f"line {number} of a text" for number in range(400)))
    options = ["--document-bytes", "300", "--val-fraction", "0.1", "--out", str(tmp_path / "data")]
    assert main(["data", "prepare", str(tmp_path / "text.txt"), *options]) == 0
    out = tmp_path / "ladder.toml"
    words = ["--flops", "1e16", "--arch", "tnl", "--gpus", "1", "--length", "128", "--out", str(out)]
    result = plan(capsys, *words, "--data", str(tmp_path / "data"))
    assert result["vocab_size"] == load_study(out).model.vocab_size == 257
    assert load_study(out).data.path == str(tmp_path / "data")
    assert "data_repeats" in {item["name"] for item in result["ladder"]["warnings"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flops", "-1e20"], "flops = -1e+20: expected a positive number"),
        (["--flops", "nan"], "flops = nan: expected a positive number"),
        (["--flops", "1e9"], "flops = 1e+09: N_opt is too small or too large a model"),
        (["--flops", "1e40"], "flops = 1e+40: N_opt is too small or too large a model"),
        (["--flops", "1e20", "--arch", "hgrn2,rwkv"], "arch = 'rwkv': expected some of llama, tnl, hgrn2, cosformer2"),
        (["--flops", "1e20", "--arch", "recurrent_transformer"], "give a law by --fit and that share by --mfu"),
        (["--flops", "1e20", "--arch", ","], "arch = ','"),
        (["--flops", "1e20", "--gpu", "tpu"], "gpu = 'tpu': expected one of h100"),
        (["--flops", "1e20", "--gpus", "0"], "gpus = 0: expected a positive number"),
        (["--flops", "1e20", "--mfu", "1.5"], "mfu = 1.5: expected shares between 0 and 1"),
        (["--flops", "1e20", "--ladder-share", "2"], "ladder_share = 2"),
        (["--flops", "1e20", "--fit", "none.json"], "none.json: no such file"),
        (["--flops", "1e20", "--out", "ladder.json"], "out = ladder.json: is where the ladder goes, a .toml file"),
        (["--flops", "1e17", "--gpus", "4096"], "steps of"),
        (["--flops", "1e20", "--ladder-share", "1e-6"], "do not buy 4 sizes of 300 steps or more"),
        (["--flops", "3e12", "--arch", "tnl", "--gpus", "1", "--length", "64"], "ladder needs 4 sizes"),
    ],
)
def test_bad_input_is_one_line(capsys, words, message):
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_fit_without_the_architecture_is_one_line(fit, capsys):
    assert main(["plan", "--flops", "1e20", "--arch", "llama", "--fit", fit]) == 2
    assert "no group 'llama'; it has hgrn2, tnl" in capsys.readouterr().err


def test_what_does_not_fit_on_the_gpu_says_how_many_would_do(capsys):
    words = ["--flops", "1e22", "--arch", "hgrn2", "--gpu", "rtx4090", "--gpus", "2", "--ladder-share", "0"]
    (each,) = plan(capsys, *words)["plans"]
    (found,) = [item for item in each["warnings"] if item["name"] == "does_not_fit"]
    assert found["detail"].endswith("8 do") or found["detail"].endswith("16 do")


def test_names_of_studies(tmp_path):
    assert [study_name(tmp_path / name) for name in ("a b.toml", "ladder.toml", "_.toml")] == [
        "a-b",
        "ladder",
        "ladder",
    ]


@pytest.mark.slow
def test_a_recurrent_transformer_is_planned_by_a_fit_and_a_stated_share(fit, tmp_path, capsys):
    own, out = tmp_path / "fit.json", tmp_path / "ladder.toml"
    own.write_text(Path(fit).read_text().replace('"tnl"', '"recurrent_transformer"'))
    words = ["--flops", "1e19", "--arch", "recurrent_transformer", "--fit", str(own), "--mfu", "0.1", "--out", str(out)]
    (found,) = plan(capsys, *words)["plans"]
    assert found["arch"] == "recurrent_transformer"
    assert load_study(out).archs == ("recurrent_transformer",)
