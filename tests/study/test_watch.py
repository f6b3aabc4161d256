"""What a user sees of a study at work: bars on a terminal, lines elsewhere, and a time left that survives a resume."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from linscale.run_folder import write_json
from linscale.study import watch
from linscale.study.plan import load_study, planned_runs


@pytest.fixture
def runs(study_file):
    runs = planned_runs(load_study(study_file), vocab_size=257, data_path="-")
    return [run for run in runs if run.name in ("tnl-a", "llama-a")]


class Study:
    """A study folder whose runs stand where the test says, under a clock that it moves."""

    def __init__(self, folder, runs, monkeypatch, terminal):
        self.now, self.folder, self.text = 1000.0, folder, io.StringIO()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(watch, "time", clock)  # others in the process keep theirs
        console = Console(file=self.text, width=80, force_terminal=terminal, legacy_windows=False)
        self.watcher, self.runs = watch.StudyWatcher(console), runs

    def stand(self, share, state="running", run=0, **more):
        steps = self.runs[run].config.train.steps
        status = {"state": state, "step": round(share * steps), "steps": steps, "updated": self.now, **more}
        write_json(self.folder / self.runs[run].name / "status.json", status)

    def work(self, share=1.0, run=0):
        return share * self.runs[run].work


def test_the_time_left_counts_what_this_process_did(runs, tmp_path, monkeypatch):
    study = Study(tmp_path, runs, monkeypatch, terminal=False)
    study.stand(0.5)  # by an earlier process
    study.now += 1
    study.watcher.plan(tmp_path, runs)
    study.now += 20
    study.watcher.progress()
    study.stand(0.75, loss=2.5, tokens_per_s=12_000.0)
    study.watcher.progress()  # too soon for another line
    study.now += 20
    study.watcher.progress()
    left = 40 * (study.work(0.25) + study.work(run=1)) / study.work(0.25)
    lines = [line.strip() for line in study.text.getvalue().splitlines()]
    assert lines == [
        "0 of 2 runs  ETA ...",
        f"0 of 2 runs  ETA {watch.clock(left)}",
        f"{runs[0].name}  loss 2.500  12k tok/s",
    ]


def test_a_terminal_shows_every_run_under_way_in_eighty_columns(runs, tmp_path, monkeypatch):
    study = Study(tmp_path, runs, monkeypatch, terminal=True)
    study.stand(1.0, state="done", run=1)
    study.stand(0.3)
    study.watcher.plan(tmp_path, runs)
    study.now += 10
    study.stand(0.6, loss=2.5, tokens_per_s=12_000.0)
    study.watcher.progress()
    study.watcher.close()
    lines = study.text.getvalue().splitlines()
    assert any("1 of 2 runs  ETA 0:13" in line for line in lines)
    assert any(f"{runs[0].name}  loss 2.500  12k tok/s" in line and "60%" in line for line in lines)
