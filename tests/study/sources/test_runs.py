"""Run folders as points: every checkpoint that was validated, and what else was measured on it."""

import json
from pathlib import Path

import pytest

from linscale.run_folder import RecordWriter, write_json
from linscale.study.sources.read import read_table
from linscale.study.table.checks import point_warnings
from linscale.study.table.fit import fit_points
from linscale.study.table.group import PointFit, select
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla


def run_folder(place: Path, name: str, n: float, *, schedule: str = "cosine", checkpoints: int = 4) -> Path:
    """A run of 1000 steps of 1e6 tokens whose every checkpoint is measured."""
    config = {
        "run": name, "study": place.name, "size": "s", "flops_per_token": 6.5 * n,
        "model": {"arch": "tnl", "d_model": 64, "n_layers": 2, "head_dim": 16, "d_ff": 256, "vocab_size": 1000},
        "params": {"non_embedding": n, "total": n + 64_000},
        "train": {"tokens": 1_000_500_000, "batch_tokens": 1_000_000, "seed": 3, "schedule": schedule, "length": 512},
    }  # fmt: skip
    write_json(place / name / "config.json", config)
    writer = RecordWriter(place / name / "evaluations.jsonl")
    for step in (1000 * k // checkpoints for k in range(1, checkpoints + 1)):
        at = {"run": name, "step": step, "tokens": step * 1_000_000, "se": 0.1, "count": 10}
        loss = chinchilla(n, step * 1e6, 1.7, 400, 410, 0.34, 0.28)
        for task, metric, value in (("validation", "loss", loss), ("validation", "bits_per_byte", loss / 2.5)):
            writer.write(at | {"task": task, "task_version": "v1", "metric": metric, "value": value})
        writer.write(at | {"task": "piqa", "task_version": "1", "metric": "acc", "value": 0.5 + step / 10_000})
    writer.close()
    return place / name


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for k in range(6):
        run_folder(tmp_path / "demo", f"r{k}", 1e7 * 3**k)
    return tmp_path / "demo"


def test_a_study_a_run_and_a_folder_of_studies(study, tmp_path):
    table = read_table(study)
    assert len(table.rows) == 24
    row = table.rows[3]
    assert row | {
        "run": "r0", "arch": "tnl", "size": "s", "seed": 3, "schedule": "cosine", "final": True, "params": 1e7,
        "total_params": 1e7 + 64_000, "step": 1000, "tokens": 1e9, "flops": 6.5e16, "d_model": 64, "length": 512,
        "piqa.acc": 0.6, "piqa.acc_stderr": 0.1, "bits_per_byte": row["loss"] / 2.5,
    } == row  # fmt: skip
    assert [each["final"] for each in table.rows[:4]] == [False] * 3 + [True]
    assert read_table(study / "r0").rows == table.rows[:4]
    run_folder(tmp_path / "other", "r0", 5e6)
    names = {each["run"] for each in read_table(tmp_path).rows}
    assert names == {f"demo/r{k}" for k in range(6)} | {"other/r0"}


def test_a_law_from_final_checkpoints_and_a_warning_about_the_others(study):
    settings = PointFit("power", Loss(), bootstrap=0)
    points = read_points(study, columns={}, needed=("c", "loss"))
    (warning,) = point_warnings(select(points, "all", ("highest", 0))[0])
    assert (warning["name"], warning["detail"]) == ("mixed_schedules", "row 1, row 2, row 3, row 5, row 6, 13 more")
    points = read_points(study, columns={}, needed=("c", "loss"), where="final")
    (fitted,) = fit_points(points, settings)["groups"]
    assert fitted["points_used"] == 6
    assert "mixed_schedules" not in {each["name"] for each in fitted["warnings"]}
    assert fitted["points"]["seed"] == ["3"] * 6


def test_constant_learning_rates_mix_freely(tmp_path):
    for k in range(6):
        run_folder(tmp_path / "demo", f"r{k}", 1e7 * 3**k, schedule="constant")
    points = read_points(tmp_path / "demo", columns={}, needed=("n", "d", "loss"))
    assert point_warnings(select(points, "all", ("highest", 0))[0]) == []


def test_two_protocols_of_validation_are_told(study):
    with open(study / "r1" / "evaluations.jsonl", "a", encoding="utf-8") as file:
        record = {"run": "r1", "step": 1000, "tokens": 1e9, "task": "validation", "task_version": "v2"}
        file.write(json.dumps(record | {"metric": "loss", "value": 3.0}) + "\n")
    assert "2 protocols of validation: their losses are not comparable" in read_table(study).notes
