"""The ray executor on a real cluster of three nodes, which this machine plays."""

import contextlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from linscale.config import UserError, parse, to_dict
from linscale.data.prepare import PrepareOptions, prepare
from linscale.distributed import Terminated
from linscale.run_folder import latest_records, locked
from linscale.study import ray_executor
from linscale.study.cluster import Cluster
from linscale.study.executors import ATTEMPTS, STOPPED
from linscale.study.ray_executor import RayExecutor, _task
from linscale.study.torchrun import train_on
from linscale.train.config import RunConfig
from linscale.train.metrics import read_status
from linscale.train.trainer import train

NAMES = ("first", "second")


@pytest.fixture
def runs(tmp_path):
    """Configs of two runs of some seconds, by their folders in `study`, and of one without data."""
    options = PrepareOptions(document_bytes=4096, val_fraction=0.05, workers=1)
    prepare(["builtin:tinyshakespeare"], tokenizer="byte", out=tmp_path / "data", options=options)
    shape = {"arch": "tnl", "vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    recipe = {"tokens": 100_000, "batch_tokens": 256, "length": 64, "lr": 3e-3, "validation_tokens": 1024}
    recipe |= {"checkpoints": 10, "checkpoint_spacing": "linear", "device": "cpu"}

    def config(name, seed, data):
        values = {"name": name, "model": shape, "data": {"path": str(data)}, "train": recipe | {"seed": seed}}
        return parse(RunConfig, values)

    configs = {tmp_path / "study" / name: config(name, seed, tmp_path / "data") for seed, name in enumerate(NAMES)}
    return configs | {tmp_path / "study" / "broken": config("broken", 0, tmp_path / "nowhere")}


@pytest.fixture
def address(monkeypatch):
    """The address of a cluster with a head without cores, and two nodes of one core each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    utils = pytest.importorskip("ray.cluster_utils")
    small = {"num_gpus": 0, "object_store_memory": 80_000_000}
    # A node that is gone refuses to be asked and is given up after 5 times: in 2.5 s, not 15. A busy one may take 10 s.
    often = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": often, **small}
    nodes = utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, wait=False, **small)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()


def results(study):
    """What the runs of a study ended with: the last weights, the validation loss of every checkpoint."""
    weights = {
        (name, key): value.tolist()
        for name in NAMES
        for key, value in load_file(max((study / name / "checkpoints").iterdir()) / "model.safetensors").items()
    }
    losses = {
        (name, record["step"], record["metric"]): record["value"]
        for name in NAMES
        for record in latest_records(study / name / "evaluations.jsonl")
    }
    return weights, losses


def kill_node_of(process):
    """SIGKILL a node of the cluster: the raylet that is the parent of `process`, and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    raylet = parents[process]
    for child in [raylet, *(child for child, parent in parents.items() if parent == raylet)]:
        os.kill(child, signal.SIGKILL)


def training(runs):
    """The runs that are being trained, with their statuses."""
    statuses = {path: read_status(path) for path in runs}
    return {path: status for path, status in statuses.items() if status.get("state") == "running"}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a node's processes in /proc")
def test_a_ladder_survives_a_stop_and_the_loss_of_a_node(address, runs, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.closing(Cluster(address)) as cluster:
        assert signal.getsignal(signal.SIGTERM) is before
        with pytest.raises(UserError, match=r"cpus_per_run = 2, gpus_per_run = 0: expected no more .* 0 and 0"):
            RayExecutor(cluster, cpus_per_run=2)
        with pytest.raises(UserError, match=r"node [\d.]+ does not see the files of /elsewhere; keep --out"):
            cluster.require_shared(["/elsewhere/file"], cluster.with_room(1, 0))
        executor = RayExecutor(cluster)
        stop_at_once(executor, runs)
        lose_a_node(executor, runs)
    study = tmp_path / "study"
    assert {path.name for path in study.iterdir()} == {"broken", *NAMES}
    for name in NAMES:
        train(tmp_path / "undisturbed" / name, runs[study / name])
    assert results(study) == results(tmp_path / "undisturbed")


def stop_at_once(executor, runs):
    """SIGTERM when the first run trains: all that began are saved, the others do not begin, and nobody is left."""

    def poll():
        if training(runs):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated):
        executor.run(runs, poll)
    begun = [path for path in runs if (path / "status.json").exists()]
    assert begun
    for path in begun:
        status = read_status(path)
        assert status["state"] == "stopped"
        assert max((path / "checkpoints").iterdir()).name == f"step_{status['step']:08d}"
        with locked(path):
            pass


def lose_a_node(executor, runs):
    """Train all to their ends although a node is lost under one; the run without data says so."""
    lost = []

    def poll():
        if not lost and (running := training(runs)):
            path, status = running.popitem()
            kill_node_of(status["pid"])
            lost.append(path)

    first, second, broken = runs
    errors = executor.run(runs, poll)
    assert lost
    assert list(errors) == [broken]
    assert "nowhere: not a prepared corpus" in errors[broken]
    assert [read_status(path)["state"] for path in (first, second)] == ["done", "done"]


class LostError(Exception):
    """In place of Ray's errors."""


class ScriptedRay:
    """In place of Ray: a cluster of one node with a GPU, where the tasks of a run come to its outcomes in turn."""

    def __init__(self, outcomes):
        self.outcomes, self.submitted, self.exceptions = outcomes, [], self
        self.RayError = self.WorkerCrashedError = self.NodeDiedError = LostError
        self.LocalRayletDiedError = self.OutOfMemoryError = LostError

    def remote(self, **options):
        return lambda function: self

    def options(self, name):
        task = type("Task", (), {"remote": lambda _, *arguments: self.submit(name)})
        return task()

    def submit(self, name):
        self.submitted.append(name)
        return self.outcomes[name].pop(0)

    def wait(self, tasks, timeout):
        return tasks, []

    def get(self, outcome):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class ScriptedCluster:
    def __init__(self, ray):
        self.ray = ray

    def nodes(self):
        return [{"Resources": {"CPU": 4.0, "GPU": 1.0}}]

    def with_room(self, cpus, gpus):
        return self.nodes()

    def require_shared(self, paths, nodes):
        pass


def test_what_is_tried_again_and_for_how_long(runs):
    losses = [LostError(f"the node is gone\ntraceback {number}") for number in range(ATTEMPTS)]
    ray = ScriptedRay({"first": losses, "second": [STOPPED, None], "broken": ["its loss is not finite"]})
    polled = []
    errors = RayExecutor(ScriptedCluster(ray)).run(runs, lambda: polled.append(1))
    assert {path.name: error for path, error in errors.items()} == {
        "first": f"its worker was lost {ATTEMPTS} times: LostError: the node is gone",
        "broken": "its loss is not finite",
    }
    assert ray.submitted == ["first", "second", "broken", "first", "second", "first"]
    assert len(polled) == ATTEMPTS


@pytest.fixture
def task(runs):
    """The first run, of ten steps, as its task on a node: its folder, and what _task is called with."""
    path = next(iter(runs))
    config = replace(runs[path], train=replace(runs[path].train, tokens=2560, checkpoints=2))
    return path, (str(path), to_dict(config), [str(path.parent.parent / "data" / "manifest.json")], 1, 1)


def test_a_task_waits_for_the_process_before_it(task, monkeypatch):
    path, arguments = task
    monkeypatch.setattr(ray_executor, "POLL_S", 0.05)
    with ThreadPoolExecutor(1) as pool:
        with locked(path):  # by a process on a node that is cut off
            waits = pool.submit(_task, *arguments)
            time.sleep(0.3)
            assert not waits.done()
        assert waits.result() is None
    assert read_status(path)["state"] == "done"


def test_a_task_does_not_wait_for_ever(task, monkeypatch):
    path, arguments = task
    monkeypatch.setattr(ray_executor, "LOCK_S", 0.1)
    monkeypatch.setattr(ray_executor, "POLL_S", 0.05)
    with locked(path):
        assert "another process is writing this run" in _task(*arguments)


def test_a_task_on_a_node_without_the_files_says_so(task):
    path, (name, config, _, cpus, ranks) = task
    problem = _task(name, config, ["/elsewhere/study/file"], cpus, ranks)
    assert "does not see the files of /elsewhere/study; keep --out and data.path on storage" in problem
    assert not path.exists()


@pytest.mark.slow
def test_a_task_with_two_gpus_is_two_ranks_that_stop_and_go_on(task, monkeypatch):
    path, (name, config, files, cpus, _) = task
    longer = config | {"train": config["train"] | {"tokens": 256 * 4000, "checkpoints": 1}}
    started = time.monotonic()

    def under_way():
        return bool(read_status(path).get("step")) or time.monotonic() > started + 60

    assert train_on(2, name, longer, under_way) == STOPPED
    assert read_status(path)["state"] == "stopped"
    newest = sorted((path / "checkpoints").iterdir())[-1]
    assert {file.name for file in newest.glob("model*")} == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    error = _task(name, longer | {"name": "another"}, files, cpus, 2)
    assert error.startswith(f"{path}: made with another config")


def test_the_device_is_that_of_the_cluster():
    cluster = ScriptedCluster(ScriptedRay({}))
    assert [RayExecutor(cluster).device(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    executor = RayExecutor(cluster, gpus_per_run=0)
    assert executor.device("auto") == "cpu"
    with pytest.raises(UserError, match=r"device = .cuda.: gpus_per_run = 0"):
        executor.device("cuda")


def test_what_the_cluster_cannot_be_asked_for():
    cluster = ScriptedCluster(ScriptedRay({}))
    with pytest.raises(UserError, match=r"gpus_per_run = 1\.5: expected a whole number, or a share"):
        RayExecutor(cluster, gpus_per_run=1.5)
    assert RayExecutor(cluster, gpus_per_run=2).gpus == 2
    with pytest.raises(UserError, match="cpus_per_run = 0: expected at least 1"):
        RayExecutor(cluster, cpus_per_run=0)
