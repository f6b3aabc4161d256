"""The run folder: atomic JSON, records that survive a kill, one writer."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from linscale.config import UserError
from linscale.run_folder import (
    RecordWriter,
    disk_errors,
    is_locked,
    latest_records,
    locked,
    read_json,
    read_records,
    write_json,
)


def test_half_a_line_is_skipped_and_the_next_writer_starts_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "value": 1.0}\n{"step": 2, "val')
    writer = RecordWriter(path)
    writer.write({"step": 3, "value": 3.0}, {"step": 4, "value": 4.0})
    writer.close()
    assert [record["step"] for record in read_records(path)] == [1, 3, 4]
    assert list(read_records(tmp_path / "none.jsonl")) == []


def test_the_later_record_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = RecordWriter(path)
    writer.write(*({"step": step, "metric": "loss", "value": value} for step, value in ((1, 5), (2, 4), (2, 3))))
    writer.close()
    assert [record["value"] for record in latest_records(path)] == [5, 3]


def test_lines_without_what_is_asked_for_are_passed_over(tmp_path):
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    writer.write(*({"step": step, "task": task, "metric": "m"} for step in (1, 2) for task in ("validation", "sciq")))
    writer.close()
    found = latest_records(path, containing='"validation"')
    assert [(record["step"], record["task"]) for record in found] == [(1, "validation"), (2, "validation")]


def test_json_is_replaced_whole_and_damage_is_named(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]
    path.write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(UserError, match="damaged JSON"):
        read_json(path)


def test_one_writer_at_a_time_and_a_dead_one_lets_go(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from linscale.run_folder import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    assert is_locked(tmp_path)
    with pytest.raises(UserError, match="another process is writing this run"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not is_locked(tmp_path)


def test_a_file_in_the_way_and_a_full_disk_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="a file is in the way; expected a folder"), locked(path):
            pass
    message = r"run: the disk is full .*; free space and run the same command again"
    with pytest.raises(UserError, match=message), disk_errors(Path("run")):
        raise OSError(errno.ENOSPC, "No space left on device")
    message = "x: Permission denied; make the folder readable and writable"
    with pytest.raises(UserError, match=message), disk_errors(Path("run")):
        raise PermissionError(errno.EACCES, "Permission denied", "x")


def test_asking_whether_a_run_is_locked_changes_nothing(tmp_path):
    assert not is_locked(tmp_path / "none")
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
