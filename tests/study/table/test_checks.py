"""Points that cannot be right: each raises a named warning with its rows, or one line of an error."""

from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.checks import point_warnings
from linscale.study.table.columns import parse_columns
from linscale.study.table.fit import fit_points
from linscale.study.table.group import PointFit, select
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss

NEEDED = ("n", "d", "loss")


def warned(path: Path, text: str, columns: str = "", needed: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """Names and details of the warnings of a table."""
    path = path / "p.csv"
    path.write_text(text)
    points = read_points(path, columns=parse_columns(columns), needed=needed)
    return {each["name"]: each["detail"] for each in point_warnings(select(points, "all", ("highest", 0))[0])}


def test_sound_points_have_no_warning(tmp_path):
    assert warned(tmp_path, "params,tokens,loss,run,vocab_size\n1e8,1e9,3.5,a,5e4\n1e8,2e9,3.25,b,5e4\n") == {}


@pytest.mark.parametrize(
    ("header", "rows", "columns", "expected"),
    [
        ("params,tokens,loss", ["1e8,1e9,3", "1e8,1e9,3"], "", {"duplicates": "row 2"}),
        ("params,tokens,loss", ["1e8,1e9,3", "1e8,2e9,15"], "", {"high_loss": "row 2"}),
        ("params,tokens,loss,vocab_size", ["1e8,1e9,7,1000", "1e8,1e9,6.9,1000"], "", {"high_loss": "row 1"}),
        ("params,tokens,loss", ["0.07,300,3", "0.16,300,2.9"], "", {"units": "row 1, row 2"}),
        ("params,tokens,flops,loss", ["1e8,1e9,0.01,3", "1e8,2e9,1.2e18,3"], "",
         {"units": "row 1", "flops_differ": "row 1"}),
        ("params,tokens,flops,loss", ["164,8192,1.3e7,3", "164,16384,2.6e7,2.9"], "", {}),  # a toy
        ("params,tokens,flops,loss", ["1e8,1e9,6.1e17,3", "1e8,2e9,1e20,3"], "", {"flops_differ": "row 2"}),
        ("params,tokens,val_bpb", ["1e8,1e9,1", "1e8,2e9,0.9"], "loss=val_bpb", {"loss_units": ""}),
        ("params,tokens,loss,bits_per_byte", ["1e8,1e9,3,1.1", "1e8,2e9,1.05,1.05"], "", {"loss_units": "row 2"}),
        ("params,tokens,loss,schedule", ["1e8,1e9,3,cosine", "1e8,2e9,2.9,wsd"], "",
         {"mixed_schedules": "cosine, wsd"}),
        ("params,tokens,loss,run", ["1e8,1e9,3,a", "1e8,2e9,2.9,a", "1e8,1e9,3.1,b"], "",
         {"mixed_schedules": "row 1"}),
        ("params,tokens,loss,run,schedule", ["1e8,1e9,3,a,constant", "1e8,2e9,2.9,a,constant"], "", {}),
        ("params,tokens,loss,final", ["1e8,1e9,3,false", "1e8,2e9,2.9,true"], "", {"mixed_schedules": "row 1"}),
        ("params,tokens,loss,run,final", ["1e8,1e9,3,a,true", "1e8,2e9,2.9,a,true"], "", {}),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_a_warning_with_rows(tmp_path, header, rows, columns, expected):
    assert warned(tmp_path, "\n".join([header, *rows]) + "\n", columns) == expected


def test_columns_that_no_law_asks_for_do_not_stand_in_the_way(tmp_path):
    """FLOPs that are empty somewhere are not checked, and not an error."""
    text = "params,tokens,flops,loss\n1e8,1e9,,3\n1e8,2e9,1,2.9\n"
    assert warned(tmp_path, text) == {}
    with pytest.raises(UserError, match=r"flops is not a positive number in row 1 \(empty\)"):
        warned(tmp_path, text, "c=flops")


@pytest.mark.parametrize("loss", ["", "nan", "inf", "-inf", "-3", "0", "3,1", "n/a", "1e999"])
def test_losses_that_are_no_positive_numbers_name_their_row(tmp_path, loss):
    path = tmp_path / "p.csv"
    path.write_text(f'params,tokens,loss\n1e8,1e9,3\n1e8,1e9,"{loss}"\n')
    with pytest.raises(
        UserError, match=r"loss is not a positive number in row 2 \(.*; leave such rows out with --where"
    ):
        read_points(path, columns={}, needed=NEEDED)


@pytest.mark.parametrize(
    ("columns", "where", "message"),
    [
        ("loss=vall_loss", "", r"did you mean val_loss\?"),
        ("n=size_m", "", r"size_m is not a positive number in row 1 \(70M\), row 2 \(160M\)"),
        ("", "", r"no column for n; name it with --columns n=NAME, or --columns n=c/6d; perhaps size_m"),
        ("n=N,n=N", "", "n is N already"),
        ("n=tokens", "val_loss <", "where = 'val_loss <': Parser Error"),
        ("n=tokens", "1=1), false); drop table points; select coalesce((1=1", "expected one condition"),
        ("n=tokens", "val_loss < (select 1 from read_csv('x.csv'))", "where = .*disabled"),
        ("n=tokens", "'a' < 3", "where = "),
        ("n=tokens", "true -- all", ""),
        ('n=tok";drop table points;--', "", "has no such column"),
    ],
)
def test_wrong_columns_and_conditions(tmp_path, columns, where, message):
    path = tmp_path / "p.csv"
    path.write_text("size_m,tokens,val_loss\n70M,1e9,3\n160M,1e9,2.9\n")
    if not message:
        assert len(read_points(path, columns=parse_columns(columns), needed=NEEDED, where=where).rows) == 2
        return
    with pytest.raises(UserError, match=message) as error:
        read_points(path, columns=parse_columns(columns), needed=NEEDED, where=where)
    assert "\n" not in str(error.value)


def test_names_with_quotes_spaces_and_sql_are_only_names(tmp_path):
    path = tmp_path / "it's.csv"
    path.write_text('"a""b","x; drop table points",loss,arch or not\n1e8,1e9,3,tnl\n')
    points = read_points(
        path, columns=parse_columns('n=a"b,d=x; drop table points'), needed=NEEDED, group=("arch or not",)
    )
    assert points.numbers["n"].tolist() == [1e8]
    assert points.groups.tolist() == ["tnl"]


def test_a_header_without_rows_and_groups_of_one_point(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("params,tokens,loss\n")
    with pytest.raises(UserError, match="no rows below its header"):
        read_points(path, columns={}, needed=NEEDED)
    rows = [
        f"{c},{c},{2 + 40 * c**-0.1 * noise},a"
        for c, noise in zip((1e7, 1e8, 1e9, 1e10), (1, 1.01, 0.99, 1), strict=True)
    ]
    path.write_text("\n".join(["params,tokens,loss,arch", *rows, "1e8,1e9,3,b"]) + "\n")
    points = read_points(path, columns={"c": "tokens"}, needed=("c", "loss"), group=("arch",))
    result = fit_points(points, PointFit("power", Loss(), bootstrap=0))
    assert [each["group"] for each in result["groups"]] == ["a"]
    assert result["refused"][0]["group"] == "b"
    assert "1 point" in result["refused"][0]["reason"]


def test_too_few_points_or_budgets_for_the_law_say_how_many(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("params,tokens,loss\n" + "".join(f"1e8,{d}e9,{3 + 1 / d}\n" for d in range(1, 9)))
    points = read_points(path, columns={}, needed=NEEDED)
    with pytest.raises(UserError, match=r"distinct|different|sizes"):
        fit_points(points, PointFit("chinchilla", Loss(), bootstrap=0))


@pytest.mark.slow
def test_a_million_rows_are_read_in_seconds(tmp_path):
    import time

    generator = np.random.default_rng(0)
    table = np.column_stack([10 ** generator.uniform(6, 10, (10**6, 2)), generator.uniform(2, 5, 10**6)])
    path = tmp_path / "p.csv"
    np.savetxt(path, table, fmt="%.6g", delimiter=",", header="params,tokens,loss", comments="")
    start = time.monotonic()
    points = read_points(path, columns=parse_columns("c=6nd"), needed=(*NEEDED, "c"), where="loss < 4.9")
    assert time.monotonic() - start < 20
    assert len(points.rows) + len(points.dropped) == 10**6
