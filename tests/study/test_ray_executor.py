"""The ray executor on a real cluster of three nodes, which this machine plays."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from linscale.cli import main
from linscale.config import UserError, parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.distributed import Terminated
from linscale.run_folder import latest_records, locked, read_json
from linscale.study import ray_executor
from linscale.study.executors import STOPPED
from linscale.train.config import RunConfig
from linscale.train.metrics import read_status
from linscale.train.trainer import train

NAMES = ("first", "second", "third")


@pytest.fixture
def runs(tmp_path):
    """Configs of three runs of a few seconds, by their folders in `study`."""
    options = PrepareOptions(document_bytes=4096, val_fraction=0.05, workers=1)
    prepare(["builtin:tinyshakespeare"], tokenizer="byte", out=tmp_path / "data", options=options)
    shape = {"arch": "tnl", "vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    recipe = {"tokens": 150_000, "batch_tokens": 256, "length": 64, "lr": 3e-3, "validation_tokens": 1024}
    recipe |= {"checkpoints": 30, "checkpoint_spacing": "linear"}

    def config(name, seed):
        return {"name": name, "model": shape, "data": {"path": str(tmp_path / "data")}, "train": recipe | {"seed": seed}}

    return {tmp_path / "study" / name: parse(RunConfig, config(name, seed)) for seed, name in enumerate(NAMES)}


@pytest.fixture
def cluster(monkeypatch):
    """The address of a cluster with a head without cores, and two nodes of one core each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    utils = pytest.importorskip("ray.cluster_utils")
    small = {"object_store_memory": 80_000_000}
    nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, wait=False, **small)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()


def open_executor(address):
    from linscale.study.cluster import Cluster

    return ray_executor.RayExecutor(Cluster(address))


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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a node's processes in /proc")
def test_a_ladder_survives_a_stop_and_the_loss_of_a_node(cluster, runs, tmp_path):
    study, executor = tmp_path / "study", open_executor(cluster)
    assert (executor.cpus, executor.gpus) == (1, 0)

    def under_way():
        """The runs that have trained past a checkpoint and are not at their end."""
        statuses = {path: read_status(path) for path in runs if (path / "checkpoints").exists()}
        return {path: status for path, status in statuses.items() if status["state"] == "running" and 60 < status["step"] < 400}

    def stop():
        if len(under_way()) == 2:
            raise Terminated

    with pytest.raises(Terminated):
        executor.run(runs, stop)
    stopped = {path: status for path in runs if (status := read_status(path))}
    assert [status["state"] for status in stopped.values()] == ["stopped"] * 2
    for path, status in stopped.items():
        assert max((path / "checkpoints").iterdir()).name == f"step_{status['step']:08d}"
    assert not list(study.glob(".seen*"))

    lost = []

    def lose_a_node():
        if not lost and (running := under_way()):
            path, status = running.popitem()
            lost.append(path)
            kill_node_of(status["pid"])

    broken = parse(RunConfig, {**to_plain(runs[study / "first"]), "data": {"path": str(tmp_path / "nowhere")}})
    errors = executor.run({study / "broken": broken, **runs}, lose_a_node)
    assert lost
    assert list(errors) == [study / "broken"]
    assert "nowhere" in errors[study / "broken"]
    assert {read_status(path)["state"] for path in runs} == {"done"}

    for path, config in runs.items():
        train(tmp_path / "undisturbed" / path.name, config)
    assert results(study) == results(tmp_path / "undisturbed")
