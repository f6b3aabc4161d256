"""What other tools leave behind, read as tables. The fixtures were written by the tools: wandb 0.31.0 (offline runs),
transformers 5.23.0 (a Trainer's run) and lm-eval 0.4.13 (a model with results, and its dummy)."""

import csv
import json
import shutil
from pathlib import Path

import duckdb
import pytest
import torch
from safetensors.torch import save_file

from linscale.config import UserError
from linscale.study.sources.read import open_source, read_table
from linscale.study.sources.table import Table, join, write
from linscale.study.sources.wandb_log import BLOCK, HEAD, START, read_log
from linscale.study.table.points import read_points

FIXTURES = Path(__file__).parent / "fixtures"


def by_step(table: Table) -> dict[int, dict]:
    return {row["step"]: row for row in table.rows}


def test_a_trainers_state_has_a_row_a_step_and_no_column_called_loss(tmp_path):
    run = shutil.copytree(FIXTURES / "trainer", tmp_path / "llama-a")
    save_file({"embed": torch.zeros(64, 16), "w": torch.zeros(3)}, run / "checkpoint-6" / "model.safetensors")
    table = read_table(run)
    rows = by_step(table)
    assert list(rows) == [2, 3, 4, 6]
    assert rows[6]["train_loss"] == pytest.approx(4.1648406982)
    assert rows[6]["eval_loss"] == pytest.approx(4.1668748856)
    assert rows[3]["eval_loss"] == pytest.approx(4.1670398712)
    assert rows[3].get("train_loss") is None
    assert [rows[step]["tokens"] for step in rows] == [128, 192, 256, 384]
    assert rows[6]["flops"] == 14_340_096
    assert [row["final"] for row in table.rows] == [False, False, False, True]
    shape = {"arch": "llama", "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "vocab_size": 64}
    assert shape.items() <= rows[2].items()
    assert (rows[2]["run"], rows[2]["total_params"]) == ("llama-a", 64 * 16 + 3)
    assert "loss" not in table.columns
    points = read_points(run, columns={"n": "exact"}, needed=("n", "d", "loss"), where="eval_loss is not null")
    assert points.columns["loss"] == "eval_loss"  # the only loss of held-out text by a usual name
    assert points.numbers["n"].tolist() == [5200.0] * 2  # 7,248 of the model less 2 x 64 x 16 of embedding and head
    file = run / "checkpoint-6" / "trainer_state.json"
    assert len(read_table(file).rows) == 4


def test_flops_are_there_only_where_a_checkpoint_says_them(tmp_path):
    run = shutil.copytree(FIXTURES / "trainer", tmp_path / "llama-a")
    rows = by_step(read_table(run))
    assert rows[3]["flops"] == pytest.approx(14_340_096 / 2)
    assert rows[2].get("flops") is None
    assert "not in the source, and left empty: total_params" in read_table(run).notes


def test_results_of_the_harness_are_columns_of_a_model():
    table = read_table(FIXTURES / "lm_eval")
    hf = next(row for row in table.rows if row["run"] == "runs/llama-a/checkpoint-6")
    assert hf["tiny_choice.acc"] == 0.5
    assert hf["tiny_choice.acc_stderr"] == pytest.approx(0.150756, abs=1e-6)
    assert hf["tiny_choice.acc_norm"] == 0.5
    assert (hf["total_params"], hf["step"], hf["revision"]) == (7248, 6, "main")
    (dummy,) = (row for row in table.rows if row is not hf)
    assert (dummy["tiny_choice.acc"], dummy["total_params"]) == (0.75, None)
    (one,) = FIXTURES.glob("lm_eval/runs*/*.json")
    assert read_table(one).rows == (hf,)


def test_the_later_of_two_results_counts_and_filters_are_told_apart(tmp_path):
    config = {"model": "hf", "model_args": "pretrained=EleutherAI/pythia-14m,revision=step3000", "limit": 5}
    for date, value in ((2.0, 0.4), (1.0, 0.3)):
        results = {
            "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": value, "exact_match_stderr,strict-match": "N/A"}
        }
        content = {"results": results, "config": config, "date": date}
        (tmp_path / f"results_{date}.json").write_text(json.dumps(content))
    table = read_table(tmp_path)
    assert table.rows == (
        {"run": "EleutherAI/pythia-14m", "revision": "step3000", "step": 3000, "total_params": None,
         "gsm8k.exact_match.strict-match": 0.4},
    )  # fmt: skip
    notes = " ".join(table.notes)
    assert "measured more than once" in notes
    assert "first 5 samples" in notes


def test_results_from_before_there_were_filters(tmp_path):
    path = tmp_path / "pythia.json"
    results = {"piqa": {"acc": 0.6, "acc_stderr": 0.01}}
    config = {"model": "hf-causal", "model_args": "pretrained=EleutherAI/pythia-1.4b,revision=step13000"}
    path.write_text(json.dumps({"results": results, "versions": {"piqa": 0}, "config": config}))
    (row,) = read_table(path).rows
    assert (row["run"], row["step"], row["piqa.acc"], row["piqa.acc_stderr"]) == (
        "EleutherAI/pythia-1.4b", 13000, 0.6, 0.01
    )  # fmt: skip


def test_the_summary_at_the_end_of_a_run_is_not_a_step(tmp_path):
    run = shutil.copytree(FIXTURES / "trainer" / "checkpoint-6", tmp_path / "run")
    state = json.loads((run / "trainer_state.json").read_text())
    state["log_history"].append({"step": 6, "train_loss": 4.5, "total_flos": 2e7, "train_runtime": 3.0, "epoch": 0.75})
    (run / "trainer_state.json").write_text(json.dumps(state))
    rows = by_step(read_table(run))
    assert rows[6]["train_loss"] == pytest.approx(4.1648406982)
    assert rows[6]["mean_train_loss"] == 4.5
    assert "train_runtime" not in rows[6]
    assert rows[6]["run"] == "run"


def test_offline_runs_of_wandb_have_every_step_and_their_config():
    table = read_table(FIXTURES / "wandb")
    assert [(row["run"], row["_step"], row["final"]) for row in table.rows] == [
        (name, step, step == 2) for name in ("tiny-a", "tiny-b") for step in range(3)
    ]
    assert table.rows[5]["val/loss"] == pytest.approx(5.2 / 3 - 0.04)
    assert table.rows[5]["train/loss"] == pytest.approx(5 / 3)
    assert (table.rows[5]["params"], table.rows[5]["model.d_model"]) == (24576 * 16, 128)
    assert not any(name.startswith(("_t", "_w")) for name in table.columns)
    points = read_points(FIXTURES / "wandb", columns={}, needed=("n", "d", "loss"), where="final")
    assert points.columns | {"n": "params", "d": "tokens", "loss": "val/loss", "run": "run"} == points.columns
    assert points.numbers["d"].tolist() == [3000, 3000]


def field(number: int, content: bytes | int) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    varint = lambda value: bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)  # noqa: E731
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def log_of(messages: list[bytes]) -> bytes:
    """A file in LevelDB's log format; a message that does not fit into a block is cut."""
    content = START + b"\xe1\xbe\x00"
    for message in messages:
        first = True
        while first or message:
            room = BLOCK - len(content) % BLOCK - HEAD
            if room < 0:
                content += bytes(room + HEAD)
                continue
            part, message = message[:room], message[room:]
            kind = (1 if first else 4) if not message else (2 if first else 3)
            content += bytes(4) + len(part).to_bytes(2, "little") + bytes([kind]) + part
            first = False
    return content


def test_messages_longer_than_a_block_and_a_log_cut_by_a_kill(tmp_path):
    entries = [{"x": "y" * length, "tokens": length} for length in (10, 70_000, 33_000, 5, 32_000)]
    messages = [
        field(2, b"".join(field(1, field(1, k.encode()) + field(16, json.dumps(v).encode())) for k, v in entry.items()))
        for entry in entries
    ]
    path = tmp_path / "run-a.wandb"
    path.write_bytes(log_of(messages))
    assert read_log(path).history == entries
    path.write_bytes(log_of(messages)[:-100])
    assert read_log(path).history == entries[:-1]
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is not a log of Weights"):
        read_log(path)


def test_a_folder_that_was_synced_has_a_summary_and_yaml(tmp_path):
    pytest.importorskip("yaml")
    files = tmp_path / "run-20260101_000000-abc" / "files"
    files.mkdir(parents=True)
    (files / "wandb-summary.json").write_text('{"loss": 3.5, "_step": 9, "_wandb": {"runtime": 3}, "params": 7}')
    (files / "config.yaml").write_text("wandb_version: 1\n_wandb:\n  value: {}\nparams:\n  desc: null\n  value: 1000\n")
    (row,) = read_table(tmp_path).rows
    assert row == {"run": "run-20260101_000000-abc", "final": True, "loss": 3.5, "_step": 9, "params": 7,
                   "config.params": 1000}  # fmt: skip


def test_exports_of_wandb(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("Name,State,Runtime,config/d_model,summary.loss,loss\na,finished,3,64,2,3\nb,crashed,4,128,2,2.5\n")
    assert read_table(path).columns == ["run", "State", "Runtime", "d_model", "summary.loss", "loss"]
    with open(path, "w", newline="") as file:  # the loop of W&B's documentation: Python's own notation in cells
        writer = csv.writer(file)
        writer.writerow(["", "summary", "config", "name"])
        writer.writerow(
            [0, str({"val/loss": 3.25, "_runtime": 5.0, "tokens": 1e9}), str({"m": {"d": 64, "x": None}}), "a"]
        )
    (row,) = read_table(path).rows
    assert (row["run"], row["val/loss"], row["tokens"], row["m.d"], row["m.x"]) == ("a", 3.25, 1e9, 64, None)
    path.write_text('"Step","a-1 - loss","a-1 - loss__MIN","a-1 - loss__MAX","b - loss","b - loss__MIN"\n'
                    "0,9,8,10,,\n1,8,8,8,7,7\n")  # fmt: skip
    assert read_table(path).rows == (
        {"run": "a-1", "Step": 0, "loss": 9}, {"run": "a-1", "Step": 1, "loss": 8}, {"run": "b", "Step": 1, "loss": 7},
    )  # fmt: skip
    history = tmp_path / "history.jsonl"
    history.write_text('{"_step": 0, "_runtime": 1.5, "loss": 3, "config.d_model": 64}\n')
    assert read_table(history).columns == ["_step", "_runtime", "loss", "d_model"]


def test_sources_are_joined_by_columns_or_put_below_each_other(tmp_path):
    states = Table(({"run": "a", "step": 6, "loss": 3.0}, {"run": "a", "step": 9, "loss": 2.0}), "states")
    scores = Table(({"run": "a", "step": 9, "acc": 0.5}, {"run": "b", "step": 1, "acc": 0.1}), "scores")
    joined = join({"s": states, "e": scores}, ("run", "step"))
    assert joined.rows == (
        {"run": "a", "step": 6, "loss": 3.0}, {"run": "a", "step": 9, "loss": 2.0, "acc": 0.5},
        {"run": "b", "step": 1, "acc": 0.1},
    )  # fmt: skip
    assert [row["source"] for row in join({"s": states, "e": scores}, ()).rows] == ["s", "s", "e", "e"]
    with pytest.raises(UserError, match=r"e: row 1 says acc = 0.6, but 0.5 is there already for run a, step 9"):
        join({"s": joined, "e": Table(({"run": "a", "step": 9, "acc": 0.6},), "")}, ("run", "step"))
    with pytest.raises(UserError, match="on = size: s has no size; it has run, step, loss"):
        join({"s": states}, ("size",))
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"t.{suffix}"
        write(joined, out)
        assert [{k: v for k, v in row.items() if v is not None} for row in read_table(out).rows] == list(joined.rows)
    with pytest.raises(UserError, match=r"unknown kind of file; expected \.csv"):
        write(joined, tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"\n \n", "the file is empty"),
        (
            "a.csv",
            b'"params;tokens;loss"\n"1;2;3"\n',
            "one column, 'params;tokens;loss': its cells may be parted by semicolons",
        ),
        ("a.csv", "params,tokens,loss,name\n1,2,3,caf\xe9\n".encode("latin-1"), "line 2 is not UTF-8 text"),
        ("a.parquet", b"params,loss\n1,2\n", "a.parquet: .*"),
        ("a.jsonl", b'{"params": 1}\n{"params": \n', "a.jsonl: .*"),
        ("a.json", b'{"params": 1}', "expected a list of objects, a trainer_state.json"),
        ("a.json", b"{", "damaged JSON"),
        ("trainer_state.json", b'{"log_history": 3}', "has no log_history"),
        ("a.xlsx", b"PK", "unknown kind of file; expected .csv"),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_source(tmp_path / name)
    assert "\n" not in str(error.value)


def test_folders_without_points_say_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no run of linscale that was evaluated, trainer_state\.json"):
        open_source(tmp_path)


def test_other_delimiters_are_found(tmp_path):
    for mark, suffix in ((";", "csv"), ("\t", "csv"), ("\t", "tsv"), ("|", "csv")):
        path = tmp_path / f"p.{suffix}"
        path.write_text("params,tokens,loss\n1e6,2e6,3.5\n2e6,2e6,3.25\n".replace(",", mark))
        assert open_source(path).names == ["params", "tokens", "loss"]


def test_a_source_cannot_reach_other_files(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("loss\n3\n")
    connection = open_source(path).connection
    with pytest.raises(duckdb.Error, match=r"disabled|configuration"):
        connection.execute(f"select * from read_csv('{path}')")
