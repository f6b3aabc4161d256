"""Tables of points as DuckDB reads them, and their groups fitted."""

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.fit import default_unit, fit_points, parse_drop
from linscale.study.table.group import PointFit
from linscale.study.table.points import parse_columns, read_points
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla

NEEDED = ("n", "d", "loss")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """48 points of two architectures, the second with a larger E; rows 1 to 48."""
    lines = ["arch,run,params,tokens,my loss,outlier"]
    for row in range(48):
        n, d = 2e7 * 3 ** (row // 2 % 4), 5e8 * 4 ** (row // 8)
        loss = chinchilla(n, d, 1.7 + 0.2 * (row % 2), 400, 410, 0.34, 0.28)
        lines.append(f"{'ab'[row % 2]},r{row % 8},{n},{d},{loss},{int(row == 5)}")
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_rows_and_groups(table):
    points = read_points(
        table, columns=parse_columns("loss=my loss, c=6nd"), needed=NEEDED, group=("arch",), where="outlier = 0"
    )
    assert points.rows.tolist() == [row for row in range(1, 49) if row != 6]
    assert points.dropped == ((6, "where: outlier = 0"),)
    assert points.columns == {"n": "params", "d": "tokens", "loss": "my loss", "c": "6nd", "run": "run"}
    np.testing.assert_allclose(points.numbers["c"], 6 * points.numbers["n"] * points.numbers["d"])
    assert points.groups.tolist()[:3] == ["a", "b", "a"]
    assert points.labels["run"][0] == "r0"
    assert default_unit(points) == "run"


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_other_kinds_of_file_hold_the_same(table, tmp_path, kind):
    other = tmp_path / f"points.{kind}"
    form = "parquet" if kind == "parquet" else "json"
    duckdb.connect().execute(f"copy (select * from '{table}') to '{other}' (format {form})")
    one, two = (read_points(p, columns={"loss": "my loss"}, needed=NEEDED) for p in (table, other))
    for role in NEEDED:
        np.testing.assert_array_equal(one.numbers[role], two.numbers[role])


@pytest.mark.parametrize(("definition", "role"), [("d=c/6n", "d"), ("n=c/6d", "n")])
def test_what_is_derived(tmp_path, definition, role):
    path = tmp_path / "p.csv"
    path.write_text("params,tokens,flops,loss\n10,20,1200,3\n30,20,3600,2.5\n")
    points = read_points(path, columns=parse_columns(definition), needed=NEEDED)
    np.testing.assert_allclose(points.numbers[role], {"n": [10, 30], "d": [20, 20]}[role])


@pytest.mark.parametrize(
    ("columns", "where", "message"),
    [
        ("n=parms", "", r"parms: .*has no such column \(did you mean params\?\); expected one of arch, run, params"),
        ("q=params", "", "expected ROLE=COLUMN with a role of n, d, c"),
        ("n=6nd", "", "6nd is a definition of c"),
        ("", "", "no column for loss; name it with --columns loss=NAME"),
        ("loss=arch", "", r"arch is not a positive number in row 1 \(a\), row 2 \(b\)"),
        ("loss=outlier", "", r"outlier is not a positive number in row 1 \(0\)"),
        ("loss=my loss", "nope = 1", "where = 'nope = 1': Binder Error"),
        ("loss=my loss", "params < 0", "no rows where params < 0"),
        ("loss=my loss,d=c/6n,c=6nd", "", "needs c|needs d"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(table, columns, where, message):
    with pytest.raises(UserError, match=message) as error:
        read_points(table, columns=parse_columns(columns), needed=NEEDED, where=where)
    assert "\n" not in str(error.value)


def test_rows_that_are_no_numbers_are_named(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("params,tokens,loss\n10,20,3\n10,20,\n10,20,nan\n10,20,-1\n")
    with pytest.raises(UserError, match=r"row 2 \(empty\), row 3 \(nan\), row 4 \(-1.0\); leave such rows out"):
        read_points(path, columns={}, needed=NEEDED)


@pytest.mark.slow
def test_groups_are_fitted_apart_and_the_file_is_plain_json(table):
    points = read_points(table, columns={"loss": "my loss"}, needed=NEEDED, group=("arch",))
    result = fit_points(points, PointFit("chinchilla", Loss("l2"), bootstrap=0))
    assert [each["group"] for each in result["groups"]] == ["a", "b"]
    for group, level in zip(result["groups"], (1.7, 1.9), strict=True):
        assert group["parameters"]["E"]["value"] == pytest.approx(level, rel=1e-3)
        assert group["parameters"]["alpha"]["low"] is None
        assert group["derived"]["a"]["value"] == pytest.approx(0.28 / 0.62, rel=1e-3)
        assert group["points_used"] == 24
    n, d = (group["derived"][f"{each}_opt_coefficient"]["value"] for each in "nd")
    assert 6 * n * d == pytest.approx(8.64e19)
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_dropped_rows_warnings_and_refusals(table):
    text = table.read_text().splitlines()
    table.write_text("\n".join([*text, text[1], "c,r9,1e8,1e9,3.0,0", "a,r9,1e8,1e9,20.0,0"]) + "\n")
    columns = parse_columns("loss=my loss,c=outlier")
    with pytest.raises(UserError, match="outlier is not a positive number"):
        read_points(table, columns=columns, needed=NEEDED)
    points = read_points(table, columns={"loss": "my loss"}, needed=NEEDED, where="arch != 'b'", group=("arch",))
    settings = PointFit("chinchilla", Loss.parse("l2", "log"), bootstrap=30, by="run")
    result = fit_points(points, settings)
    assert result["refused"][0]["group"] == "c"
    assert "1 points" in result["refused"][0]["reason"]
    names = {each["name"]: each for each in result["groups"][0]["warnings"]}
    assert names["duplicates"]["detail"] == "row 49"
    assert names["high_loss"]["detail"] == "row 51"
    assert names["few_units"]["detail"] == "5"
    json.dumps(result, allow_nan=False)
    dropped = fit_points(points, PointFit("chinchilla", Loss("l2"), drop=parse_drop("highest:1"), bootstrap=0))
    assert dropped["groups"][0]["dropped"] == [{"row": 51, "rule": "drop: highest:1"}]
    with pytest.raises(UserError, match="expected highest:COUNT"):
        parse_drop("highest")


@pytest.mark.slow
def test_flops_in_other_units_are_noticed_and_budgets_are_told_apart(tmp_path):
    lines = ["params,tokens,flops,loss"]
    for row in range(18):
        n, d = 1e7 * 2 ** (row % 6), 1e9 * 7 ** (row // 6) / 2 ** (row % 6)
        lines.append(f"{n},{d},{6 * n * d / (100 if row == 4 else 1)},{chinchilla(n, d, 1.7, 400, 410, 0.34, 0.28)}")
    path = tmp_path / "p.csv"
    path.write_text("\n".join(lines))
    points = read_points(path, columns={"c": "flops"}, needed=NEEDED)
    (group,) = fit_points(points, PointFit("chinchilla", Loss("l2"), bootstrap=10, by="budget"))["groups"]
    assert group["bootstrap"]["units"] == 4  # three budgets and the row in other units
    assert {each["name"]: each["detail"] for each in group["warnings"]}["flops_differ"] == "row 5"
    with pytest.raises(UserError, match="no column tells runs apart"):
        fit_points(points, PointFit("chinchilla", Loss("l2"), by="run"))


@pytest.mark.parametrize(
    ("cells", "where", "remedy"),
    [
        (['"20,000,000"', "2e8", "3e8"], "", "write numbers plainly, as 20000000, 2e7 or 0.25"),
        (["20M", "2e8", "3e8"], "", "write numbers plainly"),
        (["1 000", "2e8", "3e8"], "", "write numbers plainly"),
        (["1e8", "-2e8", "3e8"], "", r"leave such rows out, as in --where 'params > 0 and params < 1e30'"),
        (["1e8", "nan", "3e8"], "", r"'params > 0 and params < 1e30'"),
        (["1e8", "N/A", "3e8"], "", r"'try_cast\(params as double\) > 0 and try_cast\(params as double\) < 1e30'"),
        (
            ["1e8", "N/A", "3e8"],
            "params < 1e9",
            r"compare a column that holds text as in try_cast\(loss as double\) < 6",
        ),
        (["1e8", "2e8", "3e8"], "select > 1", "words of SQL go in double quotes"),
    ],
)
def test_what_to_do_about_cells_that_are_no_numbers(tmp_path, cells, where, remedy):
    path = tmp_path / "points.csv"
    path.write_text("params,tokens,loss\n" + "".join(f"{cell},1e9,3.0\n" for cell in cells))
    with pytest.raises(UserError, match=remedy) as error:
        read_points(path, columns={}, needed=NEEDED, where=where)
    assert "\n" not in str(error.value)
    if found := re.search(r"--where '(.*)'", str(error.value)):  # the remedy works
        assert read_points(path, columns={}, needed=NEEDED, where=found[1]).rows.tolist() == [1, 3]


def test_the_line_that_has_other_cells_is_named(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("params,tokens,loss\n1e8,1e9,3.0\n1e8,2e9\n")
    with pytest.raises(UserError, match="line 3 has 2 cells, the header 3"):
        read_points(path, columns={}, needed=NEEDED)


def test_names_are_found_whatever_their_case(tmp_path):
    path = tmp_path / "POINTS.CSV"
    path.write_text("Params,Num Tokens,Val-Loss,D\n1e8,1e9,3.0,7\n")
    points = read_points(path, columns={}, needed=("n", "loss"))
    assert points.columns == {"n": "Params", "loss": "Val-Loss"}
    path.write_text("Params,Num Tokens,loss,LOSS_x\n1e8,1e9,3.0,7\n")
    assert read_points(path, columns={}, needed=NEEDED).columns["d"] == "Num Tokens"
    path.write_text("bpb,acc\n0.9,0.5\n")
    points = read_points(path, columns={}, needed=("bpb", "accuracy"))
    assert points.columns == {"bpb": "bpb", "accuracy": "acc"}
