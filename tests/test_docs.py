"""The reference pages are true: every field, default, key and warning is in them, and their queries run."""

import ast
import dataclasses
import inspect
import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from linscale.cli.compare import compare as compare_command
from linscale.cli.fit import fit as fit_command
from linscale.cli.predict import predict as predict_command
from linscale.config import parse, to_dict
from linscale.data.build_sets import ESSAYS
from linscale.data.copying import CopyingConfig
from linscale.data.hub_sets import HUB_SETS
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.sets import SETS
from linscale.evaluate.questions import CSR, FORMS
from linscale.evaluate.scrolls import FORMS as SCROLLS
from linscale.models import CONFIGS, SIZES, LinearMixer, Recurrence
from linscale.run_folder import read_json, read_records
from linscale.study import fit
from linscale.study.fit import FitConfig, fit_study
from linscale.study.plan import ModelOptions, SampleConfig, SizeConfig, StudyConfig, StudyData
from linscale.study.prediction import multiplier
from linscale.study.prediction.answer import Question
from linscale.study.prediction.compute_law import paper_groups
from linscale.study.prediction.contest import contest
from linscale.study.prediction.fit_file import PARAMETERS as PREDICTED_LAWS
from linscale.study.prediction.fit_file import groups_of
from linscale.study.prediction.forecast import forecast_all
from linscale.study.prediction.multiplier import At
from linscale.study.query import query as ask
from linscale.study.results import Curve
from linscale.study.table import fit as table_laws
from linscale.study.table.fit import TABLE_LAWS, fit_points
from linscale.study.table.group import PointFit
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss
from linscale.train.config import RunConfig, TrainConfig
from linscale.train.curriculum import Curriculum
from linscale.train.recipe import Recipe, StageConfig
from linscale.train.teacher_config import TeacherConfig
from linscale.train.trainer import train

PAGES = Path(__file__).parent.parent / "docs" / "reference"
SECTIONS = [
    ("Study file", StudyConfig),
    ("`[[sizes]]`", SizeConfig),
    ("`[data]`", StudyData),
    ("`data.options`", PrepareOptions),
    ("`[train]`", TrainConfig),
    ("`[model]` of a study file", ModelOptions),
    ("`[fit]`", FitConfig),
    ("`[sample]`", SampleConfig),
    ("Train file", RunConfig),
    *(("`[model]` of a train file", config) for config in CONFIGS.values()),
    ("`[model.recurrence]`", Recurrence),
    ("`[model.linear]`", LinearMixer),
    ("`[data.task]`", CopyingConfig),
    ("`[train.curriculum]`", Curriculum),
    ("`[train.teacher]`", TeacherConfig),
    ("Recipe file", Recipe),
    ("`[[stages]]`", StageConfig),
]


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def table(text: str, heading: str) -> dict[str, list[str]]:
    """First cell -> other cells, of the first table in a section."""
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.S | re.M)
    assert section, heading
    rows = [line.strip("| ").split(" | ") for line in section[1].splitlines() if line.startswith("| `")]
    return {name.strip("`"): [cell.strip() for cell in cells] for name, *cells in rows}


def default(field: dataclasses.Field[Any]) -> Any:
    """How the page puts a field's default: what TOML holds, or a word for what it cannot."""
    if field.default_factory is not dataclasses.MISSING:
        return "its defaults"
    if field.default is dataclasses.MISSING or field.name == "arch":
        return "required"
    if field.default is None:
        return "unset"
    if dataclasses.is_dataclass(field.default):
        return "its defaults"
    return "all four" if field.name == "archs" else to_dict(field.default)


@pytest.mark.parametrize(("heading", "config"), SECTIONS, ids=lambda value: getattr(value, "__name__", None))
def test_every_field_of_a_study_file_and_a_train_file(heading: str, config: Any) -> None:
    written = table(page("study.md"), heading)
    fields = {field.name: default(field) for field in dataclasses.fields(config)}
    if heading == "`[model]` of a train file":
        for name in {"recurrence", "linear", "softmax_layers"} - set(fields):
            del written[name]  # of one architecture alone
    assert set(written) == set(fields)
    for name, value in fields.items():
        cell = written[name][0].strip("`")
        if cell not in ("required", "unset", "its defaults", "all four"):
            cell = json.loads(re.sub(r"(?<=\d) (?=\d)", "", cell))
        assert cell == value, name
    if config is SizeConfig:
        assert re.findall(r"`([^`]+)`", written["shape"][1]) == list(SIZES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/demo/tiny, four steps on a prepared text, and the text's corpus in `data`."""
    folder = tmp_path_factory.mktemp("docs")
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat"], k=3000)
    (folder / "text.txt").write_text("\n".join(" ".join(words[k : k + 8]) for k in range(0, len(words), 8)))
    options = PrepareOptions(document_bytes=300, val_fraction=0.1)
    prepare([str(folder / "text.txt")], out=folder / "data", options=options)
    recipe = {"tokens": 256, "batch_tokens": 64, "length": 32, "checkpoints": 2, "validation_tokens": 64}
    shape = {"arch": "tnl", "vocab_size": 257, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16}
    values = {"name": "tiny", "study": "demo", "size": "small", "model": shape, "data": {"path": str(folder / "data")}}
    config: RunConfig = parse(RunConfig, {**values, "train": {**recipe, "device": "cpu"}})
    train(folder / "runs" / "demo" / "tiny", config)
    return folder


def names(value: Any, without: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key of nested plain values, but not those inside of `without`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in without:
                yield from names(item, without)
    elif isinstance(value, list):
        for item in value:
            yield from names(item, without)


def missing(text: str, keys: Iterator[str] | set[str]) -> set[str]:
    return {key for key in set(keys) if f"`{key}`" not in text}


def test_every_key_of_a_prepared_folder_and_of_a_run_folder(runs: Path) -> None:
    assert not missing(page("data.md"), names(read_json(runs / "data" / "manifest.json"), ("settings",)))
    run, text = runs / "runs" / "demo" / "tiny", page("run-folder.md")
    for file in ("config.json", "status.json", *(f"checkpoints/{p.name}/checkpoint.json" for p in run.glob("*/step*"))):
        without = ("model", "train", "files")
        assert not missing(text, names(read_json(run / file), without)), file
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        records = list(read_records(run / file))
        assert records
        assert not missing(text, names(records)), file
        assert not missing(text, {record["metric"] for record in records}), file
    listed = re.search(r"<run>/.*?\n(.*?)      samples\.json", text, re.S)
    assert listed
    for path in run.iterdir():
        assert f" {path.name}" in listed[1]


def test_the_queries_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a process was killed inside a line, and where a step was recorded again."""
    monkeypatch.chdir(runs)
    run = runs / "runs" / "demo" / "tiny"
    losses = {(r["step"], r["metric"]): r["value"] for r in read_records(run / "evaluations.jsonl")}
    first = next(record for record in read_records(run / "metrics.jsonl") if record["metric"] == "loss")
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"run": "tiny", "st\n' + json.dumps({**first, "value": 1.5}) + '\n{"run": "ti')
    last, curve, training = [
        duckdb.sql(query).fetchall() for query in re.findall(r"```sql\n(.*?)```", page("run-folder.md"), re.S)
    ]
    assert last == [("tiny", 4, losses[4, "loss"])]
    assert [row[:3] for row in curve] == [("demo", "tnl", "small")] * 2
    assert [(row[4], row[6]) for row in curve] == [(64 * s, losses[s, "loss"]) for s in sorted({s for s, _ in losses})]
    assert [row[:2] for row in training] == [("tiny", step) for step in (1, 2, 3, 4)]
    assert training[0][2] == 1.5


def query_with(word: str) -> str:
    """The query of the page on evaluation that has this word."""
    (query,) = [sql for sql in re.findall(r"```sql\n(.*?)```", page("evaluate.md"), re.S) if word in sql]
    return query


def test_the_mean_of_the_seven_tasks_is_one_query(runs: Path, tmp_path: Path) -> None:
    tasks = table(page("evaluate.md"), "csr")
    assert {(name, tuple(re.findall(r"`(\w+)`", row[2]))) for name, row in tasks.items()} == {
        (name, form.metrics) for name, form in FORMS.items()
    }
    assert all(row[0].strip("`") == FORMS[name].file for name, row in tasks.items())
    assert {name: row[3].strip("`") for name, row in tasks.items() if row[3] != "no"} == CSR
    file = shutil.copytree(runs / "runs" / "demo" / "tiny", tmp_path / "tiny") / "evaluations.jsonl"
    first = next(iter(read_records(file)))
    with open(file, "a", encoding="utf-8") as lines:
        for number, (name, row) in enumerate(tasks.items()):
            for metric in FORMS[name].metrics:
                value = number / 10 if f"`{metric}`" == row[3] else 9.0
                for version in ("1-a", "1-a-first9"):
                    record = {"task": name, "task_version": version, "metric": metric, "value": value, "se": 0.7}
                    lines.write(json.dumps({**first, **record}) + "\n")
    query = query_with("boolq")
    assert ask(tmp_path, query).fetchall() == [("tiny", first["step"], pytest.approx(0.3), pytest.approx(0.7 / 7**0.5))]


def test_the_mean_of_scrolls_is_one_query(runs: Path, tmp_path: Path) -> None:
    tasks = table(page("evaluate.md"), "scrolls")
    assert {(name, row[0].strip("`"), tuple(re.findall(r"`(\w+)`", row[3]))) for name, row in tasks.items()} == {
        (name, form.file, form.metrics) for name, form in SCROLLS.items()
    }
    file = shutil.copytree(runs / "runs" / "demo" / "tiny", tmp_path / "tiny") / "evaluations.jsonl"
    first = next(iter(read_records(file)))
    with open(file, "a", encoding="utf-8") as lines:
        for name, form in SCROLLS.items():
            for number, metric in enumerate((*form.metrics, "truncated", "kept")):
                for version, value in (("1-a-b-context8-end-max2", number), ("1-a-b-context9-end-max2-first3", 50)):
                    value = value if name.startswith("scrolls") else 50
                    record = {"task": name, "task_version": version, "metric": metric, "value": value, "se": None}
                    lines.write(json.dumps({**first, **record}) + "\n")
    query = query_with("scrolls")
    mean = 3 * (0 + 1 + 2) / 13
    assert ask(tmp_path, query).fetchall() == [("tiny", first["step"], "context8-end-max2", pytest.approx(mean), 13)]


def test_every_evaluation_set_and_where_it_is_on_the_hub() -> None:
    rows = {name: tuple(cells) for name, cells in table(page("evaluate.md"), "Evaluation sets").items()}
    (place, _) = rows["paul_graham_essays"]
    assert ESSAYS in place
    places = {name: str(HUB_SETS[name]) if name in HUB_SETS else place for name in SETS}
    assert rows == {name: (places[name], "yes" if each.shipped else "no") for name, each in SETS.items()}


def envelope_warnings() -> list[Any]:
    """Names of the warnings of an envelope, by its source."""
    return [
        node.elts[0].value
        for node in ast.walk(ast.parse(inspect.getsource(fit.envelope_warnings)))
        if isinstance(node, ast.Tuple) and isinstance(node.elts[0], ast.Constant)
    ]


def test_every_key_and_every_warning_of_the_fits() -> None:
    text = page("fits.md")
    curves = []
    for n in np.geomspace(2e7, 6.5e9, 6):
        tokens = np.geomspace(3e9, 3e11, 40)
        loss = 406.4 * n**-0.34 + 410.7 * tokens**-0.28
        curves.append(Curve(f"tnl-{n:.0f}", "tnl", f"{n:.0f}", n, 6 * n, tokens, 6 * n * tokens, loss))
    fits = fit_study(curves, FitConfig(bootstrap=20))
    assert fits["groups"][0]["band"]
    assert not missing(text, names(fits, ("settings", "parameters")))
    assert not missing(text, set(fits["groups"][0]["parameters"]["l_exponent"]))
    assert not missing(text, {item["rule"] for item in fits["groups"][0]["dropped"]})
    found = envelope_warnings()
    assert len(set(found)) == 8
    assert set(table(text, "Warnings")) == set(found)


def test_every_key_every_warning_and_every_option_of_predictions_and_comparisons() -> None:
    text = page("predict.md")
    values = {"E": 1.8, "a": 120.0, "a_prime": 300.0, "b": -0.25, "E_error": 0.85, "k": 2.0, "g": 0.7}
    entry = {"law": "overtrain", "parameters": {name: {"value": value} for name, value in values.items()}}
    entry |= {"points": {"n": [1e8, 1e9], "d": [1e9, 1e10]}}
    groups = groups_of({"version": 1, "groups": [entry | {"group": name} for name in "xy"]}, "f.json")
    found = {
        "version": 1,
        **forecast_all(groups, Question(flops=1e21, loss=2.5), []),
        **contest(groups, "", At(losses=(2.5,), flops=(1e21,))),
        **contest([*paper_groups()], "", At()),
    }
    assert found["pairs"][0]["crossings"]
    assert not missing(text, names(found))
    sources = [path.read_text(encoding="utf-8") for path in Path(multiplier.__file__).parent.glob("*.py")]
    made = {name for source in sources for name in re.findall(r"[^_]caution\(\s*\"(\w+)\"", source)}
    assert made == set(table(text, "Warnings"))
    verdicts = set(re.findall(r"\"([a-z ]+)\"", inspect.getsource(multiplier._verdict))) - {"value", "low", "high"}
    assert not [verdict for verdict in verdicts if f"`{verdict}`" not in text]
    for command, first in ((predict_command, "fit"), (compare_command, "fits")):
        options = {f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters if name != first}
        assert options <= set(re.findall(r"`(--[\w-]+)`", text))
    for law in PREDICTED_LAWS:
        assert f"`{law}`" in text, law


def keys_of_other_laws(folder: Path) -> set[str]:
    """Keys of a group and of its points and derived numbers, by the laws of over-training, repetition and accuracy."""
    path, keys = folder / "others.csv", set()
    lines = ["params,tokens,unique_tokens,loss,error,bits_per_byte,accuracy"]
    for n in (1e7, 1e8, 1e9):
        for d in (1e9, 1e10, 1e11):
            loss = 1.8 + 166 / n**0.27 + 270 / d**0.27
            error = 0.86 - 2.2 * math.exp(-0.7 * loss)
            lines.append(f"{n},{d},{d / 9},{loss},{error},{loss / 3},{1 - error}")
    path.write_text("\n".join(lines) + "\n")
    for law in ("overtrain", "repeat_no_excess", "sigmoid"):
        entry = TABLE_LAWS[law]
        points = read_points(path, columns={}, needed=entry.roles, optional=entry.optional)
        loss = Loss.parse(entry.loss, entry.space)
        result = fit_points(points, PointFit(law, loss, bootstrap=5))
        (group,) = result["groups"]
        keys |= set(names(result, ("units", "columns", "parameters", "derived", "draws"))) | set(group["derived"])
    return keys


@pytest.mark.slow
def test_every_key_every_warning_and_every_option_of_a_fit(tmp_path: Path) -> None:
    text = page("fit.md")
    lines = ["params,tokens,loss"]
    lines += [f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}" for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    table = read_points(tmp_path / "points.csv", columns={}, needed=("n", "d", "loss"), where="params > 1")
    result = {"source": "points.csv", **fit_points(table, PointFit("chinchilla", Loss(), bootstrap=5))}
    keys = set(names(result, ("units", "columns", "parameters", "derived", "draws")))
    (group,) = result["groups"]
    keys |= set(group["derived"]) | {key for each in group["parameters"].values() for key in each}
    assert not missing(text, keys)
    written = set(re.findall(r"^\| `(\w+)` \|", text.split("## Warnings")[1], re.M))
    sources = [path.read_text(encoding="utf-8") for path in Path(table_laws.__file__).parent.glob("*.py")]
    raised = {name for source in sources for name in re.findall(r"[^_]warning\(\s*\"(\w+)\"", source)}
    assert written == raised | set(envelope_warnings())
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(fit_command).parameters if name != "points"}
    assert options <= set(re.findall(r"`(--[\w-]+)`", text))
    for law in TABLE_LAWS:
        assert f"`{law.split('_')[0]}`" in text, law


@pytest.mark.slow
def test_every_key_of_the_laws_of_overtraining_repetition_and_accuracy(tmp_path: Path) -> None:
    assert not missing(page("fit.md"), keys_of_other_laws(tmp_path))


@pytest.mark.parametrize("law", ["isoflop", "envelope", "pac"])
def test_every_key_of_a_law_through_minima(law: str, tmp_path: Path) -> None:
    """Sizes around the best one at five budgets; whole curves; and valleys at five amounts of data."""
    text, lines = page("fit.md") + page("fits.md"), ["params,tokens,flops,loss,run"]
    for number, c in enumerate(np.geomspace(1e18, 1e21, 5)):
        for n in np.geomspace(2e7, 2e9, 12):
            d = {"isoflop": c / 6 / n, "envelope": c / 1e9, "pac": 1e8 * 10**number}[law]
            excess = 0.1 * (np.log(n / 2e7) - number / 2 - 1) ** 2 if law == "pac" else 406 / n**0.34
            lines.append(f"{n},{d},{6 * n * d},{1.7 + excess + 410 / d**0.28},{n if law == 'envelope' else len(lines)}")
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    table = read_points(tmp_path / "points.csv", columns={"c": "flops"}, needed=TABLE_LAWS[law].roles)
    (group,) = fit_points(table, PointFit(law, Loss(), bootstrap=20, by="run"))["groups"]
    assert not missing(text, names(group))
