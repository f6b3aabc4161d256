"""One run on several ranks: which of them is heard when it fails."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from linscale.distributed import ALONE, Ranks
from linscale.study import executors, torchrun


def test_what_the_first_rank_to_fail_says_is_not_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A rank that fails leaves the others, which then fail for want of it and say so."""
    config, told = tmp_path / "config.json", tmp_path / "config.error"
    train = {"tokens": 64, "batch_tokens": 64, "length": 32, "validation_tokens": 32, "device": "cpu"}
    model = {"arch": "tnl", "d_model": 16, "n_layers": 1, "head_dim": 8}
    config.write_text(json.dumps({"name": "a", "model": model, "data": {"path": "-"}, "train": train}))
    left: list[str] = []

    @contextlib.contextmanager
    def join_ranks(pieces: int, *, cuda: bool) -> Iterator[Ranks]:
        yield ALONE
        left.append(told.read_text())

    problems = iter(["out of memory", "RuntimeError: Connection closed by peer"])
    monkeypatch.setattr(torchrun, "join_ranks", join_ranks)
    monkeypatch.setattr(torchrun, "train_run", lambda *arguments: next(problems))
    monkeypatch.setattr(torchrun, "limit_threads", lambda count: None)
    monkeypatch.setattr(torchrun, "_end_with", lambda parent: None)
    monkeypatch.setattr(sys, "argv", ["torchrun", str(tmp_path / "run"), str(config)])
    for _ in range(2):
        with pytest.raises(SystemExit, match="1"):
            torchrun.main()
    assert left == ["out of memory"] * 2  # told before the others can miss it


def test_each_rank_keeps_its_own_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("our fault")

    monkeypatch.setattr(Ranks, "any", lambda self, *flags: flags)
    monkeypatch.setattr(executors, "parse", fail)
    for rank, name in ((0, "traceback.txt"), (1, "traceback-1.txt")):
        assert f"(see {tmp_path / name})" in (executors.train_run(str(tmp_path), {}, bool, Ranks(rank, 2)) or "")
    assert len(list(tmp_path.iterdir())) == 2


def test_ranks_have_time_to_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchrun kills ranks 30 s after it was told to stop them: a large model is not saved by then."""
    waits = [sys.executable, "-c", "import os; print(os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT']); exit(3)"]
    start = subprocess.Popen
    monkeypatch.setattr(torchrun.subprocess, "Popen", lambda command, **given: start([*command[:2], *waits], **given))
    problem = torchrun.train_on(2, str(tmp_path / "run"), {}, lambda: False)
    assert problem == f"torchrun ended with status 3: {torchrun.PATIENCE_S}"
