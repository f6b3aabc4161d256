"""The evaluation pages show planted values with their errors, maps the right way up, and differences with theirs."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from linscale.run_folder import RecordWriter, write_json
from linscale.study.report import is_current, print_summary, summary, write_report

ARCHITECTURES = {"llama": 0.6, "tnl": 0.45, "hgrn2": 0.59}
SIZES = {"a": 1e6, "b": 4e6}
LENGTHS, DEPTHS = (1000, 1882, 4000), (0, 50, 100)
GRID = "1-f00d-lengths1000,1882,4000-depths0,50,100-seed0"
PFLOP_S_DAY = 8.64e19


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three architectures at two sizes: `b` was evaluated twice. HGRN2 at size `a` has another version of recall."""
    folder = tmp_path / "study"
    for arch, skill in ARCHITECTURES.items():
        for size, params in SIZES.items():
            write_run(folder / f"{arch}-{size}", arch, size, params, skill)
    return folder


def write_run(run: Path, arch: str, size: str, params: float, skill: float) -> None:
    values = {"run": run.name, "study": "study", "size": size, "model": {"arch": arch}, "train": {"length": 2048}}
    write_json(run / "config.json", values | {"params": {"non_embedding": params}, "flops_per_token": 6 * params})
    write_json(run / "status.json", {"state": "done", "step": 20, "steps": 20, "tokens": 2e9})
    writer = RecordWriter(run / "evaluations.jsonl")
    for step in (10, 20) if size == "b" else (20,):
        base = {"run": run.name, "step": step, "tokens": step * 1e8, "task_version": "1"}
        version = "2" if run.name == "hgrn2-a" else "1"
        writer.write(
            base | {"task": "validation", "metric": "loss", "value": 3.0},
            base | recall("accuracy", skill * step / 20, 0.03, version),
            base | recall("loss", 2.0, 0.1, version),
            *(base | text(first, 4.0 - first / 8192, 0.02) for first in (512, 1024, 2048, 4096)),
            *(base | needle(column, length) for column, length in enumerate(LENGTHS)),
            base | {"task": "needle-easy", "metric": "average", "value": 0.5, "se": 0.1, "task_version": GRID},
            base | {"task": "needle-easy", "metric": "weighted_average", "value": 0.4, "task_version": GRID},
            *([base | recall("accuracy", 1.0, 0.0, "1") | {"task": "recall-copy-4"}] if run.name == "llama-b" else []),
        )
    writer.close()


def recall(metric: str, value: float, se: float, version: str) -> dict[str, Any]:
    return {"task": "recall-mqar-4", "metric": metric, "value": value, "se": se, "count": 64, "task_version": version}


def text(first: int, value: float, se: float) -> dict[str, Any]:
    version = "1-f00d-window6000-stride6000"
    return {"task": "text-book", "metric": f"loss_from_{first}", "value": value, "se": se, "task_version": version}


def needle(column: int, length: int) -> dict[str, Any]:
    """Accuracy 1 at the surface, and down to `column` depths below it."""
    cells = [float(row <= column) for row in range(len(DEPTHS))]
    return {"task": "needle-easy", "metric": f"acc_{length}", "value": sum(cells) / 3, "se": 0.1, "cells": cells,
            "task_version": GRID}  # fmt: skip


class Page(HTMLParser):
    """Text of the page, of the table cells by row, ids, and the data of the evaluations."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.data, self._inside = "", "", ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = str(dict(attrs).get("id", tag))
        if tag == "tr":
            self.rows.append("")
        if tag in ("td", "th", "small") and self.rows:
            self.rows[-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "evaluations":
            self.data += data
        elif not self._inside:
            self.text += data
            if self.rows:
                self.rows[-1] += data

    def row(self, *words: str) -> str:
        """The first row of a table that begins with these words, with single spaces."""
        rows = [re.sub(r"\s+", " ", row).strip() for row in self.rows]
        return next(row for row in rows if row.startswith(" ".join(words)))


@pytest.fixture
def page(study: Path, tmp_path: Path) -> Page:
    return Page(write_report(study, tmp_path / "report.html"))


def test_a_metric_stands_at_its_compute_with_1_96_standard_errors(page: Page) -> None:
    suites = {suite["id"]: suite for suite in json.loads(page.data)["suites"]}
    assert [*suites] == ["recall", "needle"]  # the text's places are a curve and no metric of their own
    assert [item["metric"] for item in suites["recall"]["metrics"]] == ["accuracy", "loss"]
    copying, panel = suites["recall"]["metrics"][0]["panels"]
    assert [len(copying["groups"]), copying["title"]] == [1, "copy-4"]
    (needle,) = suites["needle"]["metrics"]  # a suite of one task: all metrics side by side
    assert [panel["metric"] for panel in needle["panels"]] == ["weighted_average", "average"]
    assert (panel["title"], panel["lower"], suites["recall"]["metrics"][1]["panels"][0]["lower"]) == (
        "mqar-4",
        False,
        True,
    )
    groups = {group["arch"]: group for group in panel["groups"]}
    small, large = groups["tnl"]["last"]  # the last checkpoint of each size
    assert (small["run"], large["run"], large["step"], large["count"]) == ("tnl-a", "tnl-b", 20, 64)
    assert (large["y"], large["error"]) == (0.45, pytest.approx(1.96 * 0.03))
    assert large["x"] == pytest.approx(6 * 4e6 * 2e9 / PFLOP_S_DAY, rel=1e-4)
    assert [point["run"] for point in groups["hgrn2"]["last"]] == ["hgrn2-b"]  # the other version is not mixed in
    (curve,) = groups["tnl"]["curves"]  # of the only run with several checkpoints
    assert (curve["run"], curve["y"]) == ("tnl-b", [0.225, 0.45])
    axes = json.loads(page.data)["axes"]
    assert axes[curve["x"]] == [pytest.approx(6 * 4e6 * step * 1e8 / PFLOP_S_DAY, rel=1e-4) for step in (10, 20)]
    assert len(axes) == 1  # of every run and task that was measured at two checkpoints
    assert groups["tnl"]["line"]["y"] == [0.45, 0.45]


def test_loss_by_position_knows_the_window_and_the_length_of_training(page: Page) -> None:
    (book,) = json.loads(page.data)["positions"]
    assert [(panel["title"], panel["lengths"]) for panel in book["panels"]] == [("b", [2048]), ("a", [2048])]
    curve = next(curve for curve in book["panels"][0]["curves"] if curve["arch"] == "tnl")
    assert (curve["first"], curve["last"]) == ([512, 1024, 2048, 4096], [1023, 2047, 4095, 6000])
    assert curve["y"] == [3.9375, 3.875, 3.75, 3.5]
    assert curve["error"] == [pytest.approx(1.96 * 0.02)] * 4
    assert page.row("text-book, tnl-b") == "text-book, tnl-b" + "".join(
        f" {y} ± 0.039" for y in ("3.938", "3.875", "3.750", "3.500")
    )


def test_a_map_has_a_row_a_depth_and_a_column_a_length(page: Page) -> None:
    (easy,) = json.loads(page.data)["needles"]
    assert [item["run"] for item in easy["panels"]] == ["hgrn2-b", "llama-b", "tnl-b", "hgrn2-a", "llama-a", "tnl-a"]
    shown = easy["panels"][0]
    assert (shown["lengths"], shown["depths"], shown["trained"], shown["step"]) == (
        [1000, 1882, 4000],
        [0, 50, 100],
        2048,
        20,
    )
    assert shown["z"] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]  # depth 0 first: everything is found there
    assert page.row("needle-easy, tnl-b") == "needle-easy, tnl-b 0.33 0.67 1.00"


def test_depths_are_those_of_the_version(study: Path, tmp_path: Path) -> None:
    for version, depths in (
        ("1-depths10,20,90-seed0", [10, 20, 90]), ("1-depths0..9x3-seed0", [0, 4, 9]), ("1", [0, 50, 100]),
    ):  # fmt: skip
        for run in study.iterdir():
            lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
            for line in lines:
                if line["task"] == "needle-easy":
                    line["task_version"] = version
            (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (easy,) = json.loads(Page(write_report(study, tmp_path / "report.html")).data)["needles"]
        assert easy["panels"][0]["depths"] == depths


def test_linear_stands_beside_softmax_with_the_difference_and_its_error(page: Page) -> None:
    assert "Linear against softmax, side by side" in page.text
    assert page.row("Task, metric") == "Task, metric LLaMA 4M parameters HGRN2 4M parameters TNL 4M parameters"
    row = page.row("recall-mqar-4 accuracy")  # of the largest size
    assert row == "recall-mqar-4 accuracy 0.600 0.590 −0.010 ± 0.042 0.450* −0.150 ± 0.042"
    assert page.row("recall-mqar-4 loss ↓") == "recall-mqar-4 loss ↓ 2.00 2.00 +0.00 ± 0.14 2.00 +0.00 ± 0.14"
    assert "2 of 10 differences do" in page.text  # TNL's accuracies; HGRN2 has none in recall at the smaller size


def test_what_is_left_out_is_on_the_page_in_the_terminal_and_in_the_data(study: Path, page: Page) -> None:
    line = "recall-mqar-4: version 2 of hgrn2-a; shown is version 1"
    assert line in page.text
    assert line in printed(study)
    assert summary(study)["evaluations"]["left_out"] == [line]


def test_the_page_stays_one_that_opens_anywhere(study: Path, page: Page, tmp_path: Path) -> None:
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 4  # plotly, two sets of data, the drawing
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    labels = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert labels <= set(ids)
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")
    holders = [a for _, a in page.tags if a.get("class") == "holder"]
    data = json.loads(page.data)
    assert len(holders) == len(data["suites"]) + len(data["positions"]) + len(data["needles"])
    again = write_report(study, tmp_path / "again.html")
    assert again.read_bytes() == (tmp_path / "report.html").read_bytes()


def test_names_in_records_stay_text(study: Path, tmp_path: Path) -> None:
    writer = RecordWriter(study / "tnl-b" / "evaluations.jsonl")
    record = {
        "step": 20,
        "tokens": 2e9,
        "task": "<b>task</b>",
        "task_version": "</script><i>",
        "metric": "<u>",
        "value": 1.0,
    }
    writer.write(record)
    writer.close()
    page = Page(write_report(study, tmp_path / "report.html"))
    assert not {"b", "u", "script/"} & {tag for tag, _ in page.tags}
    assert "<b>task</b>" in page.text
    assert "<" not in page.data


def test_without_evaluations_there_is_no_section(study: Path, tmp_path: Path) -> None:
    for run in study.iterdir():
        (run / "evaluations.jsonl").unlink()
    page = Page(write_report(study, tmp_path / "report.html"))
    assert page.data == ""
    assert "Evaluations" not in page.text
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert "Evaluations" not in printed(study)
    assert summary(study)["evaluations"] == {"values": [], "side_by_side": [], "left_out": []}


def test_one_run_alone_has_values_and_no_differences(study: Path, tmp_path: Path) -> None:
    for run in ("llama-a", "llama-b", "hgrn2-a", "hgrn2-b"):
        (study / run / "evaluations.jsonl").unlink()
    page = Page(write_report(study, tmp_path / "report.html"))
    assert "Values by size" in page.text
    assert page.row("recall-mqar-4 accuracy") == "recall-mqar-4 accuracy 0.450"
    assert "standard errors." not in printed(study)


def test_the_terminal_and_the_data_have_the_same_in_short(study: Path) -> None:
    shown = printed(study)
    assert max(map(len, shown.splitlines())) <= 80
    (row,) = [line for line in shown.splitlines() if line.startswith(" recall-mqar-4 accuracy")]
    assert row.split() == ["recall-mqar-4", "accuracy", "0.600", "0.590", "0.450*"]
    found = summary(study)["evaluations"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    values = [value for value in found["values"] if value["run"] == "tnl-b"]
    assert {(value["metric"], value["step"], value["value"]) for value in values} == {
        ("accuracy", 20, 0.45), ("loss", 20, 2.0), ("average", 20, 0.5), ("weighted_average", 20, 0.4),
    }  # fmt: skip
    entry = found["side_by_side"][0]["rows"][1]["entries"][2]
    assert (entry["arch"], entry["difference"], entry["differs"]) == ("tnl", pytest.approx(-0.15), True)


def test_a_page_is_current_until_something_is_measured(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert not is_current(out, study)
    write_report(study, out)
    assert is_current(out, study)
    writer = RecordWriter(study / "tnl-b" / "evaluations.jsonl")
    writer.write({"step": 20, "tokens": 2e9, "task": "sciq", "task_version": "1", "metric": "acc", "value": 0.5})
    writer.close()
    assert not is_current(out, study)


def printed(study: Path) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_summary(study, console)
    return console.file.getvalue()  # type: ignore[attr-defined]
