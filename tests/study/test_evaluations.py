"""Evaluations are read in one version a task, CSR and SCROLLS are means of whole sets, and differences have errors."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from linscale.config import UserError
from linscale.evaluate.questions import CSR
from linscale.run_folder import RecordWriter, write_json
from linscale.study.comparison import comparisons
from linscale.study.evaluations import latest, read_evaluations
from linscale.study.suites import SCROLLS

T = TypeVar("T")
DOCS = Path(__file__).parent.parent.parent / "docs" / "reference" / "evaluate.md"


def plant(study: Path, run: str, *records: dict[str, object], size: str | None = None, params: float = 1e6) -> None:
    """A run, its architecture the first part of its name and its size the second, with records at step 10."""
    arch, _, rest = run.partition("-")
    values = {"run": run, "size": size or rest, "model": {"arch": arch}, "train": {"length": 64}}
    values |= {"params": {"non_embedding": params}, "flops_per_token": 6 * params}
    write_json(study / run / "config.json", values)
    base = {"run": run, "step": 10, "tokens": 1000, "task_version": "1", "metric": "acc", "se": 0.01, "count": 8}
    writer = RecordWriter(study / run / "evaluations.jsonl")
    writer.write(*(base | record for record in records))
    writer.close()


def only(values: Sequence[T]) -> T:
    (value,) = values
    return value


def test_values_know_their_run_and_compute_and_validation_stays_out(tmp_path: Path) -> None:
    plant(tmp_path, "tnl-a", {"task": "validation", "metric": "loss", "value": 2.0},
          {"task": "recall-mqar-4", "metric": "accuracy", "value": 0.25, "se": None},
          {"task": "recall-mqar-4", "metric": "accuracy", "value": 0.5})  # fmt: skip
    value = only(list(read_evaluations(tmp_path).values))
    assert (value.value, value.se, value.count, value.flops) == (0.5, 0.01, 8, 6e9)  # of equal keys the later counts
    assert (value.run.arch, value.run.size, value.run.length, value.suite) == ("tnl", "a", 64, "recall")


def test_nothing_evaluated_is_nothing_and_a_missing_study_is_an_error(tmp_path: Path) -> None:
    plant(tmp_path / "study", "tnl-a")
    assert read_evaluations(tmp_path / "study").values == ()
    assert read_evaluations(tmp_path / "study").left_out == ()
    with pytest.raises(UserError, match="no such folder"):
        read_evaluations(tmp_path / "none")


def test_the_version_of_most_runs_is_read_then_the_newest_and_the_other_is_named(tmp_path: Path) -> None:
    old, new = ({"task": "sciq", "value": 0.1 * n, "task_version": f"v{n}"} for n in (1, 2))
    plant(tmp_path, "llama-a", old, new)
    plant(tmp_path, "tnl-a", old, new)
    found = read_evaluations(tmp_path)
    assert {value.version for value in found.values} == {"v2"}
    assert found.left_out == ("sciq: version v1 of llama-a, tnl-a; shown is version v2",)
    plant(tmp_path, "hgrn2-a", old)
    found = read_evaluations(tmp_path)
    assert {value.version for value in found.values} == {"v1"}
    assert len(found.values) == 3
    assert found.left_out == ("sciq: version v2 of llama-a, tnl-a; shown is version v1",)


def test_versions_left_out_for_one_reason_are_one_line(tmp_path: Path) -> None:
    for run, version in (("llama-a", "v1"), ("tnl-a", "v2"), ("hgrn2-a", "v1")):
        plant(tmp_path, run, *({"task": f"recall-copy-{n}", "value": 0.1, "task_version": version} for n in range(6)))
    assert read_evaluations(tmp_path).left_out == (
        "recall-copy-0 and 5 others: version v2 of tnl-a; shown is version v1",
    )


def test_what_is_no_number_is_left_out_and_counted(tmp_path: Path) -> None:
    plant(tmp_path, "tnl-a", {"task": "piqa", "value": float("nan")}, {"task": "piqa", "metric": "b", "value": None},
          {"task": "piqa", "metric": "c", "value": 1.0, "cells": [0.5, float("inf")]},
          {"task": "other", "value": 0.5, "se": float("nan"), "count": None})  # fmt: skip
    found = read_evaluations(tmp_path)
    value = only(list(found.values))
    assert (value.task, value.se, value.count, value.suite) == ("other", None, None, "other")
    assert found.left_out == ("piqa: 3 value(s) that are no finite number",)


def csr(version: str = "1", lacking: str = "") -> list[dict[str, object]]:
    """The seven tasks with 0.0, 0.1, ... in the metric of CSR and 9 in another; standard errors of 0.7."""
    records = []
    for number, (task, metric) in enumerate(CSR.items()):
        other = "acc" if metric == "acc_norm" else "acc_norm"
        for name, value in ((metric, number / 10), (other, 9.0)):
            records.append({"task": task, "metric": name, "value": value, "se": 0.7, "task_version": version})
    return [record for record in records if record["task"] != lacking]


def test_csr_is_the_mean_of_the_seven_in_their_metrics_with_its_error(tmp_path: Path) -> None:
    plant(tmp_path, "tnl-a", *csr())
    found = read_evaluations(tmp_path)
    mean = only([value for value in found.values if value.task == "csr"])
    assert (mean.value, mean.se) == (pytest.approx(0.3), pytest.approx(0.7 / 7**0.5))
    assert (mean.metric, mean.suite, mean.step, mean.is_part) == ("mean of 7", "csr", 10, False)
    assert found.values[0] == mean
    assert [*dict.fromkeys(value.task for value in found.values)] == ["csr", *CSR]
    table = DOCS.read_text(encoding="utf-8").split("| In CSR |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|$", table, re.M)
    assert dict(rows) == CSR  # what the reference page says


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (csr(lacking="piqa"), "mean of csr: piqa not measured"),
        (csr("1-first50"), "mean of csr: arc_challenge, arc_easy, .* on the first records alone"),
    ],
)
def test_a_part_of_csr_is_not_called_csr(tmp_path: Path, records: list[dict[str, object]], reason: str) -> None:
    plant(tmp_path, "tnl-a", *records)
    found = read_evaluations(tmp_path)
    assert "csr" not in {value.task for value in found.values}
    assert re.match(reason, found.left_out[0])
    plant(tmp_path, "llama-a", *csr())  # another run with a whole set does not make one of the first run's
    assert "tnl-a" not in {value.run.name for value in read_evaluations(tmp_path).values if value.task == "csr"}


def test_scrolls_is_the_mean_of_thirteen_and_rouge_scores_of_one_task_share_their_samples(tmp_path: Path) -> None:
    records = [{"task": f"scrolls-{task}", "metric": metric, "value": 10.0 * len(metrics), "se": 1.0}
               for task, metrics in SCROLLS.items() for metric in metrics]  # fmt: skip
    plant(tmp_path, "tnl-a", *records, {"task": "qmsum-test", "metric": "rouge1", "value": 99.0})
    values = read_evaluations(tmp_path).values
    mean = only([value for value in values if value.task == "scrolls"])
    assert mean.metric == "mean of 13"
    assert mean.value == pytest.approx((9 * 30 + 4 * 10) / 13)
    assert mean.se == pytest.approx((3 * 3**2 + 4) ** 0.5 / 13)
    assert {value.suite for value in values} == {"scrolls"}


def test_the_latest_of_every_metric(tmp_path: Path) -> None:
    plant(tmp_path, "tnl-a", {"task": "sciq", "value": 0.1}, {"task": "sciq", "value": 0.3, "step": 30, "tokens": 3000},
          {"task": "sciq", "value": 0.2, "step": 20, "tokens": 2000})  # fmt: skip
    assert [value.value for value in latest(read_evaluations(tmp_path).values)] == [0.3]


def test_points_of_curves_and_rows_of_maps_are_parts(tmp_path: Path) -> None:
    plant(tmp_path, "tnl-a", {"task": "text-a", "metric": "loss_from_64", "value": 1.0},
          {"task": "text-a", "metric": "loss", "value": 1.0}, {"task": "needle-easy", "metric": "mean", "value": 0.5},
          {"task": "needle-easy", "metric": "acc_1000", "value": 0.5, "cells": [0.0, 1.0]})  # fmt: skip
    values = read_evaluations(tmp_path).values
    assert [value.metric for value in values if value.is_part] == ["loss_from_64", "acc_1000"]
    assert [value.metric for value in values if value.lower_is_better] == ["loss_from_64", "loss"]


def test_subjects_of_mmlu_have_charts_and_no_rows(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "tnl-a",
        *({"task": "mmlu", "metric": name, "value": 0.3} for name in ("acc", "acc_stem", "acc_virology")),
    )
    values = read_evaluations(tmp_path).values
    assert [value.metric for value in values if value.is_detail] == ["acc_virology"]
    assert not any(value.is_part for value in values)
    assert [row.like.metric for row in only(comparisons(values)).rows] == ["acc", "acc_stem"]


def test_differences_from_softmax_are_at_one_size_and_as_many_tokens(tmp_path: Path) -> None:
    def at(value: float, tokens: int, se: float | None = 0.03) -> dict[str, object]:
        return {"task": "sciq", "value": value, "se": se, "step": tokens // 100, "tokens": tokens}

    plant(tmp_path, "llama-b", at(0.5, 1000), at(0.6, 2000), params=2e6)
    plant(tmp_path, "tnl-b", at(0.41, 1000, 0.04), params=2e6)
    plant(tmp_path, "hgrn2-b", at(0.39, 1000, 0.04), at(0.99, 9000), params=2e6)
    plant(tmp_path, "cosformer2-b", at(0.1, 1000, None), params=2e6)
    plant(tmp_path, "tnl-a", at(0.2, 1000))
    large, small = comparisons(read_evaluations(tmp_path).values)
    assert (large.size, small.size, [*large.runs]) == ("b", "a", ["llama", "cosformer2", "hgrn2", "tnl"])
    row = only(large.rows)
    entries = {entry.arch: entry for entry in row.entries}
    assert row.like.tokens == 1000  # the last that all have, not each run's own last
    assert (entries["llama"].value, entries["llama"].difference, entries["llama"].differs) == (0.5, None, False)
    assert entries["tnl"].difference == pytest.approx(-0.09)
    assert entries["tnl"].difference_se == pytest.approx(0.05)
    assert (entries["tnl"].differs, entries["hgrn2"].differs) == (False, True)  # 1.8 and 2.2 standard errors
    assert entries["cosformer2"].difference == pytest.approx(-0.4)
    assert (entries["cosformer2"].difference_se, entries["cosformer2"].differs) == (None, False)
    assert only(only(small.rows).entries).difference is None


def test_seeds_are_averaged_and_their_spread_widens_the_error(tmp_path: Path) -> None:
    for seed, value in (("s0", 0.4), ("s1", 0.6)):
        plant(tmp_path, f"tnl-a-{seed}", {"task": "sciq", "value": value, "se": 0.1}, size="a")
    entry = only(only(only(comparisons(read_evaluations(tmp_path).values)).rows).entries)
    assert (entry.value, entry.runs) == (0.5, ("tnl-a-s0", "tnl-a-s1"))
    assert entry.se == pytest.approx((0.1**2 + 0.02 / 2) ** 0.5)  # samples are shared, seeds are two


def test_where_no_size_is_shared_checkpoints_of_equal_compute_are_compared(tmp_path: Path) -> None:
    plant(tmp_path, "llama-big", {"task": "sciq", "value": 0.5}, params=2e6)
    plant(tmp_path, "tnl-small", *({"task": "sciq", "value": n / 10, "step": n, "tokens": 1000 * n} for n in (1, 2, 3)))
    plant(tmp_path, "hgrn2-tiny", {"task": "sciq", "value": 0.9}, params=1e6)  # half the compute: not comparable
    compared = only(comparisons(read_evaluations(tmp_path).values))
    assert compared.size is None
    assert [(e.arch, e.value) for e in only(compared.rows).entries] == [("llama", 0.5), ("tnl", 0.2)]


def test_records_are_what_evaluate_writes(tmp_path: Path) -> None:
    """A half last line, as a kill leaves it, is passed over."""
    plant(tmp_path, "tnl-a", {"task": "sciq", "value": 0.1})
    with open(tmp_path / "tnl-a" / "evaluations.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"task": "piqa", "value": 0.4})[:-3])
    assert [value.task for value in read_evaluations(tmp_path).values] == ["sciq"]
