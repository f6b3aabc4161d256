"""A study end to end, as a user runs it: trains, fits, reports; does nothing twice; survives being killed anywhere."""

import dataclasses
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from safetensors.torch import load_file

import linscale
from linscale.cli import main
from linscale.config import UserError
from linscale.run_folder import latest_records, read_json, write_json
from linscale.study.ladder import open_data, run_study
from linscale.study.plan import load_study
from linscale.study.watch import StudyWatcher

RUNS = [f"{arch}-{size}" for arch in ("llama", "tnl") for size in "abc"]
pytestmark = pytest.mark.slow


def command(*words):
    return [sys.executable, "-m", "linscale", "study", *map(str, words)]


def run(*words, status=0):
    result = subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == status, result.stderr
    return result


@pytest.fixture
def here(capsys):
    """As `run`, in this process: for commands that have little to do, of which the start would be most."""

    def call(*words, status=0):
        capsys.readouterr()
        found = main(["study", *map(str, words)])
        out, err = capsys.readouterr()
        assert found == status, err
        return SimpleNamespace(stdout=out, stderr=err)

    return call


def shorten(study_file):
    """A tenth of the steps of the smallest size, for a test that needs no laws."""
    text = study_file.read_text()
    assert "tokens = 102_400\n" in text
    study_file.write_text(text.replace("tokens = 102_400\n", "tokens = 10_240\n"))


def weights(study):
    """The last weights of every run."""
    found = {}
    for name in RUNS:
        newest = sorted((study / name / "checkpoints").iterdir())[-1]
        found[name] = load_file(newest / "model.safetensors")
    return found


def same(first, second):
    return all((first[run][key] == second[run][key]).all() for run in first for key in first[run])


def losses(study):
    keys = ("step", "task", "metric")
    return {
        name: {tuple(r[k] for k in keys): r["value"] for r in latest_records(study / name / "evaluations.jsonl", keys)}
        for name in RUNS
    }


def cpu_of_processes():
    """Seconds that processes which have ended computed; a machine with other work takes longer, but no more of them."""
    used = os.times()
    return used.children_user + used.children_system


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_study_runs_once_and_survives_kills(study_file, here, tmp_path):
    """One undisturbed study; then one that is killed with SIGKILL at random moments and ends the same, bit for bit."""
    whole = tmp_path / "whole"
    result = here("run", study_file, "--out", whole, "--json")
    found = json.loads(result.stdout)
    assert {item["group"] for item in found["architectures"]} == {"llama", "tnl"}
    assert "training 6 of 6 runs" in result.stderr  # lines with an ETA follow where it takes long enough
    study = whole / "tiny"
    for name in RUNS:
        status = read_json(study / name / "status.json")
        assert (status["state"], status["step"]) == ("done", status["steps"])
    html = (study / "report.html").read_text()
    assert "the " in read_json(study / "samples.json")["tnl"]["prompt"]
    assert len(html) > 1_000_000
    model, tokenizer = linscale.load(study / "tnl-c")
    assert (model.config.d_model, tokenizer.vocab_size) == (24, 257)

    before = snapshot(whole)
    start = cpu_of_processes()
    again = run("run", study_file, "--out", whole)
    assert cpu_of_processes() - start < 15
    assert snapshot(whole) == before
    assert "Nothing to do" in again.stdout

    killed = tmp_path / "killed"
    dice = random.Random(0)
    for number in range(3):
        process = subprocess.Popen(
            command("run", study_file, "--out", killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if number:  # once as it starts, then as it trains
            wait_for_steps(killed)
        time.sleep(dice.uniform(0.0, 0.5) if number else dice.uniform(2.0, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for_orphans(killed)
    here("run", study_file, "--out", killed)
    assert same(weights(whole / "tiny"), weights(killed / "tiny"))
    assert losses(whole / "tiny") == losses(killed / "tiny")
    assert not list(killed.rglob("*.tmp"))

    # Moved to another place, it is still finished.
    whole = whole.rename(tmp_path / "moved")
    study, before = whole / "tiny", snapshot(whole)
    assert "Nothing to do" in here("run", study_file, "--out", whole).stdout
    assert snapshot(whole) == before

    # What is evaluated later is reported, and nothing else is made again.
    records = (study / "tnl-a" / "evaluations.jsonl").read_bytes()
    last = json.loads(records.splitlines()[-1])
    measured = last | {"task": "recall-copy-4", "task_version": "1", "metric": "accuracy", "value": 0.25}
    (study / "tnl-a" / "evaluations.jsonl").write_bytes(records + json.dumps(measured).encode() + b"\n")
    before = snapshot(whole)
    found = json.loads(here("report", study_file, "--out", whole, "--json").stdout)
    assert [value["task"] for value in found["evaluations"]["values"]] == ["recall-copy-4"]
    assert {path.name for path, at in snapshot(whole).items() if at != before[path]} == {"report.html"}
    assert "recall-copy-4" in (study / "report.html").read_text()
    assert "Nothing to do" in here("report", study_file, "--out", whole).stdout
    (study / "tnl-a" / "evaluations.jsonl").write_bytes(records)
    assert "Nothing to do" not in here("report", study_file, "--out", whole).stdout
    before = snapshot(whole)

    # A changed study file is refused by name, and nothing of the finished study is touched.
    text = study_file.read_text()
    study_file.write_text(text.replace("lr = 2e-2", "lr = 1e-3"))
    refused = here("run", study_file, "--out", whole, status=2)
    assert "train.lr = 0.02 there, 0.001 here" in refused.stderr
    assert snapshot(whole) == before

    # A lost report and a lost validation record are made again, and only they.
    study_file.write_text(text)
    (study / "report.html").unlink()
    records = (study / "tnl-a" / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (study / "tnl-a" / "evaluations.jsonl").write_text("".join(records[:-2]))
    here("run", study_file, "--out", whole)
    assert losses(whole / "tiny") == losses(killed / "tiny")
    assert (study / "report.html").read_text() == html

    # A corrupt shard is found by its checksum before anything is trained on it.
    shard = next((study / "data").glob("train-*.bin"))
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    write_json(study / "tnl-a" / "status.json", {"state": "running"})
    refused = here("run", study_file, "--out", whole, status=2)
    assert "checksum differs" in refused.stderr


def wait_for_steps(out, patience=120.0):
    """Until a run below `out` writes its metrics, or cuts off what it will do again."""
    deadline, before = time.monotonic() + patience, recorded(out)
    while recorded(out) == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def recorded(out):
    """Bytes of metrics of every run."""
    return {path: path.stat().st_size for path in out.glob("tiny/*/metrics.jsonl")}


def wait_for_orphans(folder, patience=5.0):
    """Workers must end with the study that started them: nobody may hold a run's folder afterwards."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not holders(folder):
            return
        time.sleep(0.1)
    raise AssertionError(f"orphans: {holders(folder)}")


def holders(folder):
    """Processes with an open file under `folder`; on systems without /proc the lock test of the next run must do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(folder)) for link in links):
            found.append(process.name)
    return found


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_asked_to_stop_it_says_so_and_leaves_no_process(study_file, tmp_path, number, status):
    process = subprocess.Popen(
        command("run", study_file, "--out", tmp_path / "out"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/tiny/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert err.splitlines()[-1].endswith("run the same command again to go on")
    assert "Traceback" not in err
    wait_for_orphans(tmp_path)
    stopped = 0
    for folder in tmp_path.glob("out/tiny/*/status.json"):
        status = read_json(folder)
        assert status["state"] in ("done", "stopped")
        newest = sorted((folder.parent / "checkpoints").iterdir())[-1]
        assert newest.name == f"step_{status['step']:08d}"  # nothing that was done is lost
        stopped += status["state"] == "stopped"
    assert stopped


def test_a_run_that_fails_is_named_even_when_nothing_can_be_fitted(study_file, tmp_path):
    class Failing:
        def device(self, asked):
            return "cpu"

        def run(self, runs, poll):
            return dict.fromkeys(runs, "no [luck]")

    text = io.StringIO()
    with pytest.raises(UserError, match="holds no runs"):
        run_study(load_study(study_file), tmp_path, Failing(), StudyWatcher(Console(file=text, width=200)))
    named = [line for line in text.getvalue().splitlines() if line.startswith("failed")]
    assert sorted(named) == [f"failed {name}: no [luck]" for name in RUNS]


def test_too_few_runs_to_fit_is_one_clear_line(study_file, here, tmp_path):
    shorten(study_file)
    text = study_file.read_text()
    study_file.write_text(text[: text.index('[[sizes]]\nname = "b"')] + text[text.index("[fit]") :])
    result = here("run", study_file, "--out", tmp_path / "out", "--workers", 1, status=2)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("linscale: ")
    assert "tnl" in last
    assert "sizes" in last
    study = tmp_path / "out" / "tiny"
    assert (study / "tnl-a" / "status.json").exists()  # what was trained stays
    assert not (study / "report.html").exists()

    # What was evaluated is reported all the same.
    measured = {"step": 9, "tokens": 2304, "task": "recall-copy-4", "task_version": "1", "metric": "loss", "value": 2.5}
    with open(study / "tnl-a" / "evaluations.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(measured) + "\n")
    last = here("report", study_file, "--out", tmp_path / "out", status=2).stderr.strip().splitlines()[-1]
    assert "sizes" in last
    assert last.endswith("report.html has the evaluations without laws")
    assert "recall-copy-4" in (study / "report.html").read_text()


def test_a_prepared_corpus_outlives_its_texts(study_file, tmp_path):
    """They may be gone, or behind a host that is out of reach; before the corpus is there, that is an error."""
    study, folder, watcher = load_study(study_file), tmp_path / "study", StudyWatcher(Console(file=io.StringIO()))
    gone = [str(tmp_path / "text.txt"), "memory://outlived/text.txt", "hf:./no-such-folder"]
    for name in gone:
        away = dataclasses.replace(study, data=dataclasses.replace(study.data, inputs=(name,)))
        with pytest.raises(UserError, match=f"^input '{re.escape(name)}': "):
            open_data(away, folder, watcher)
    made = open_data(study, folder, watcher)
    for name in gone:
        away = dataclasses.replace(study, data=dataclasses.replace(study.data, inputs=(name,)))
        assert open_data(away, folder, watcher).fingerprint == made.fingerprint
