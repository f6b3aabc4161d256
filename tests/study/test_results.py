"""Curves and summaries come out of run folders as they were written, whatever interrupted the writing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linscale.config import UserError
from linscale.run_folder import RecordWriter, locked, write_json
from linscale.study.results import (
    interpolated,
    read_provenance,
    read_states,
    read_study,
    read_summaries,
    smoothed,
)


def write_run(folder: Path, run: str, *, arch: str = "tnl", params: float = 1e6, **changes: Any) -> Path:
    values = {
        "run": run,
        "study": "shakespeare",
        "size": "d64",
        "model": {"arch": arch},
        "data": {"fingerprint": "f00d"},
        "params": {"non_embedding": params, "total": 2 * params},
        "flops_per_token": 6 * params,
        "device": "cpu",
        "code": "0.1.0",
    }
    write_json(folder / run / "config.json", values | changes)
    return folder / run


def evaluation(step: int, value: float, metric: str = "loss", **changes: Any) -> dict[str, Any]:
    record = {"run": "r", "step": step, "tokens": 100 * step, "flops": 6e8 * step, "task": "validation"}
    return record | {"task_version": "v1", "metric": metric, "value": value} | changes


def write_records(path: Path, *records: dict[str, Any]) -> None:
    writer = RecordWriter(path)
    writer.write(*records)
    writer.close()


def test_validation_curves_in_order_of_architecture_and_size(tmp_path: Path) -> None:
    for run, arch, params in (("b", "tnl", 2e6), ("a", "tnl", 1e6), ("c", "hgrn2", 5e6)):
        folder = write_run(tmp_path, run, arch=arch, params=params)
        write_records(folder / "evaluations.jsonl", evaluation(2, 3.0), evaluation(1, 4.0))
    curves = read_study(tmp_path)
    assert [curve.run for curve in curves] == ["c", "a", "b"]
    first = curves[0]
    assert first.tokens.tolist() == [100, 200]
    assert first.loss.tolist() == [4.0, 3.0]
    assert first.flops.tolist() == [100 * 3e7, 200 * 3e7]


def test_only_the_latest_finite_loss_of_the_asked_kind_counts(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    write_records(
        folder / "evaluations.jsonl",
        evaluation(1, 9.0),
        evaluation(1, 4.0),  # written again after a resume
        evaluation(1, 1.2, "bits_per_byte"),
        evaluation(2, 0.3, task="needle"),
        evaluation(3, float("nan")),
        evaluation(4, 3.0),
    )
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write('{"run": "a", "step": 5, "tokens": 500, "task": "valid')  # killed here
    step = {"run": "a", "step": 1, "tokens": 50, "flops": 1.0}
    write_records(
        folder / "metrics.jsonl", step | {"metric": "loss", "value": 5.5}, step | {"metric": "grad_norm", "value": 0.1}
    )
    assert read_study(tmp_path)[0].loss.tolist() == [4.0, 3.0]
    assert read_study(tmp_path, loss="train")[0].loss.tolist() == [5.5]


def test_folders_that_are_not_runs_are_left_alone(tmp_path: Path) -> None:
    write_records(write_run(tmp_path, "a") / "evaluations.jsonl", evaluation(1, 4.0))
    write_run(tmp_path, "not-measured")
    write_json(tmp_path / "plan" / "config.json", {"name": "something else"})
    (tmp_path / "notes").mkdir()
    (tmp_path / "fits.json").write_text("{}")
    assert [curve.run for curve in read_study(tmp_path)] == ["a"]
    assert [summary.run for summary in read_summaries(tmp_path)] == ["a", "not-measured"]


def test_summaries_hold_the_last_checkpoint_and_the_median_speed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    bits = [evaluation(step, value, "bits_per_byte") for step, value in ((2, 2.0), (1, 3.0))]
    write_records(folder / "evaluations.jsonl", evaluation(2, 3.5), evaluation(1, 4.0), *bits)
    speed = [{"step": i, "metric": "tokens_per_s", "value": v} for i, v in enumerate((1.0, 100.0, 110.0, 120.0, 900.0))]
    write_records(folder / "metrics.jsonl", *speed)
    write_json(folder / "status.json", {"state": "done", "step": 2, "steps": 2, "tokens": 200})
    (summary,) = read_summaries(tmp_path)
    assert (summary.state, summary.step, summary.tokens, summary.tokens_per_s) == ("done", 2, 200, 110)
    assert (summary.validation_loss, summary.bits_per_byte) == (3.5, 2.0)


def test_a_run_that_has_not_started_is_still_listed(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    (summary,) = read_summaries(tmp_path)
    assert (summary.state, summary.tokens, summary.validation_loss, summary.tokens_per_s) == (
        "not started",
        0,
        None,
        None,
    )


def test_provenance_shows_every_version_that_took_part(tmp_path: Path) -> None:
    for run, code in (("a", "0.1.0"), ("b", "0.1.0"), ("c", "0.2.0")):
        write_records(write_run(tmp_path, run, code=code) / "evaluations.jsonl", evaluation(1, 4.0))
    origin = read_provenance(tmp_path)
    assert (origin.study, origin.code, origin.data) == ("shakespeare", ("0.1.0", "0.2.0"), ("f00d",))
    assert origin.protocol == ("v1",)


def test_bad_studies_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_study(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no runs"):
        read_study(tmp_path)
    folder = write_run(tmp_path, "a")
    with pytest.raises(UserError, match="no run has a validation loss yet"):
        read_study(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", values | {"flops_per_token": 0})
    with pytest.raises(UserError, match=r"config.json: 'flops_per_token' = 0 is missing or not a positive number"):
        read_study(tmp_path)
    (folder / "config.json").write_text('{"run": ')
    with pytest.raises(UserError, match="damaged JSON"):
        read_study(tmp_path)


def test_smoothing_keeps_lines_and_constants_and_averages_noise() -> None:
    tokens = np.cumsum(np.ones(500))
    assert smoothed(tokens, 3 * tokens, 0.05) == pytest.approx(3 * tokens)
    noise = np.random.default_rng(0).normal(0, 1, 500)
    assert smoothed(tokens, noise, 0.1)[50:-50].std() < 0.25
    assert smoothed(tokens, noise, 0.0) == pytest.approx(noise)


def test_interpolation_is_exact_for_parabolas_and_silent_outside() -> None:
    x = np.array([0.0, 1.0, 2.5, 3.0, 5.0])
    at = np.array([-1.0, 1.0, 1.7, 2.9, 6.0])
    values = interpolated(x, x**2 - 2 * x, at)
    assert np.isnan(values[[0, 4]]).all()
    assert values[1:4] == pytest.approx(at[1:4] ** 2 - 2 * at[1:4])


def test_states_of_runs_in_studies_and_beside_them_running_first(tmp_path: Path) -> None:
    status = {"step": 4, "steps": 8, "loss": 5.0, "tokens_per_s": 100.0, "mfu": 0.25, "eta_s": 60.0, "skipped": 2}
    old = write_run(tmp_path / "ladder", "old")
    write_json(old / "status.json", {**status, "state": "done", "step": 8, "updated": 10.0, "eta_s": 0.0})
    write_records(old / "evaluations.jsonl", evaluation(8, 3.0), evaluation(4, 4.0))
    killed = write_run(tmp_path, "killed", study=None)
    write_json(killed / "status.json", {**status, "state": "running", "updated": 20.0})
    failed = write_run(tmp_path, "failed", study=None)
    write_json(failed / "status.json", {"state": "failed", "step": 0, "updated": 15.0, "error": "no luck"})
    write_run(tmp_path / "ladder", "planned")
    (tmp_path / "notes").mkdir()
    write_json(tmp_path / "damaged" / "config.json", [])
    live = write_run(tmp_path, "live", study=None)
    write_json(live / "status.json", {**status, "state": "running", "updated": 5.0})
    with locked(live):
        states = read_states(tmp_path)
    assert [(state.run, state.state) for state in states] == [
        ("live", "running"), ("killed", "stopped"), ("failed", "failed"), ("old", "done"), ("planned", "not started"),
    ]  # fmt: skip
    first, second, third, fourth, _ = states
    assert (first.step, first.steps, first.loss, first.mfu, first.eta_s, first.skipped) == (4, 8, 5.0, 0.25, 60.0, 2)
    assert second.eta_s is None
    assert third.error == "no luck"
    assert (fourth.folder, fourth.study, fourth.validation_loss) == (str(old), "shakespeare", 3.0)
    assert [state.run for state in read_states(old)] == ["old"]
    with pytest.raises(UserError, match="no such folder; expected a folder of runs"):
        read_states(tmp_path / "none")
