"""A Ray cluster: reaching one, which of its nodes have room for a run, and whether they see the same files."""

from __future__ import annotations

import importlib
import logging
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

from linscale.config import UserError
from linscale.distributed import sigterm_raises

CONNECT_S = 10.0
PROBE_S = 30.0  # for a node to start a process and look for a file; a slower one is looked at by its first run


class Cluster:
    """The existing Ray cluster at `address`, by default the one that Ray finds: RAY_ADDRESS, or this machine's.

    Connects at once, and until `close`. Raises UserError when Ray is not installed or there is no such cluster.
    """

    def __init__(self, address: str | None = None) -> None:
        self.ray = _import_ray()
        self._connected_here = not self.ray.is_initialized()
        if self._connected_here:
            _connect(self.ray, address)

    def close(self) -> None:
        """Leave the cluster as it is; what this process still runs there ends."""
        if self._connected_here:
            self.ray.shutdown()

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray describes them."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def with_room(self, cpus: int, gpus: float) -> list[dict[str, Any]]:
        """The nodes that have so many CPUs and GPUs, be they free or not."""
        return [node for node in self.nodes() if count(node, "CPU") >= cpus and count(node, "GPU") >= gpus]

    def require_shared(self, paths: list[str], nodes: list[dict[str, Any]]) -> None:
        """Have every node look for files that this process sees. Raises UserError for the first that does not."""
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        look, probes = self.ray.remote(num_cpus=0, max_retries=0)(unseen), {}
        for node in nodes:
            probe = look.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(paths)
            probes[probe] = f"node {node['NodeManagerAddress']}"
        for probe in self.ray.wait(list(probes), num_returns=len(probes), timeout=PROBE_S)[0]:
            try:
                missing = self.ray.get(probe)
            except self.ray.exceptions.RayTaskError as failure:
                problem = f"{probes[probe]}: {one_line(failure)}"
                raise UserError(f"{problem}; expected the same packages on every node of the cluster") from None
            except self.ray.exceptions.RayError:  # lost just now
                continue
            if missing:
                raise UserError(f"{probes[probe]} {not_shared(missing)}")


def count(node: dict[str, Any], resource: str) -> float:
    """How many CPUs or GPUs a node has."""
    return float(node["Resources"].get(resource, 0))


def unseen(paths: list[str]) -> list[str]:
    """Those of `paths` that do not exist here."""
    return [path for path in paths if not Path(path).exists()]


def not_shared(paths: list[str]) -> str:
    """What to do about files that a node does not see."""
    folders = ", ".join(sorted({str(Path(path).parent) for path in paths}))
    return f"does not see the files of {folders}; keep --out and data.path on storage that all nodes mount at one path"


def one_line(error: BaseException) -> str:
    """What an error of Ray says, without the traceback: its first line, or of an exception in a task the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if hasattr(error, "cause") else 0]


def _import_ray() -> ModuleType:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
    except ImportError:
        raise UserError("executor = ray: Ray is not installed; pip install 'linscale[cluster]'") from None
    return ray


def _connect(ray: ModuleType, address: str | None) -> None:
    remedy = "start one (ray start --head), or name one with --address HOST:PORT"
    if address is not None and "://" in address:
        raise UserError(f"address = {address!r}: expected HOST:PORT; run the study on a node that sees its folder")
    if address is not None and ":" in address:  # Ray itself would try for minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"address = {address!r}: no Ray cluster answers ({error}); {remedy}") from None
    try:
        with sigterm_raises():  # Ray sets a handler for SIGTERM; the one from before comes back
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"address = {address or 'auto'!r}: {one_line(error)}; {remedy}") from None
