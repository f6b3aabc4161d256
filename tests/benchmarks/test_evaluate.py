"""The benchmarks of evaluation run here on toys: what they write has what their readers look for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_job_is_timed(tmp_path: Path) -> None:
    options = ["--runs", "2", "--checkpoints", "2", "--workers", "1", "--json", str(tmp_path / "out.json")]
    run(str(BENCHMARKS / "evaluation_job.py"), *options)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["task"] for row in rows] == ["nothing", "nothing, again", "recall", "recall, again"]
    assert all(row["count"] == 4 for row in rows)
    assert rows[1]["seconds"] < rows[0]["seconds"]
    assert rows[0]["seconds"] / 4 < 1  # the goal, by far
