"""The executor that the options of linscale study run ask for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from linscale.config import UserError
from linscale.distributed import cores

if TYPE_CHECKING:
    from linscale.study.executors import Executor


@contextlib.contextmanager
def open_executor(
    kind: str, runs: int, workers: int | None, device: str, cluster: Mapping[str, Any]
) -> Iterator[Executor]:  # fmt: skip
    """What trains a study of so many runs on `device`, its train.device.

    Raises UserError for options of another executor than `kind`.
    """
    of_the_other = cluster if kind == "local" else {"workers": workers}
    for name, value in of_the_other.items():
        if value is not None:
            raise UserError(f"{name} = {value}: not an option of executor = {kind}; leave it out")
    if kind == "local":
        from linscale.study.executors import LocalExecutor

        yield LocalExecutor(min(processes(workers, device), runs))
        return
    from linscale.study.cluster import Cluster
    from linscale.study.ray_executor import RayExecutor

    cpus = 1 if cluster["cpus_per_run"] is None else cluster["cpus_per_run"]
    with (
        contextlib.redirect_stdout(sys.stderr),  # where Ray tells of lost nodes
        contextlib.closing(Cluster(cluster["address"])) as there,
    ):
        yield RayExecutor(there, gpus_per_run=cluster["gpus_per_run"], cpus_per_run=cpus)


def processes(workers: int | None, device: str) -> int:
    """Runs trained at a time on this machine: `workers`, or by default one for each GPU, or each core without one.

    device  what the study's train.device asks for
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers}: expected at least 1")
    if workers:
        return workers
    import torch

    return torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else cores()
