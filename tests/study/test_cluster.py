"""Reaching a Ray cluster, and what is said where there is none; test_ray_executor.py has a real one."""

import sys

import pytest

from linscale.config import UserError
from linscale.study.cluster import Cluster, one_line


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed; pip install 'linscale\[cluster\]'"):
        Cluster()


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "expected HOST:PORT"),
        ("localhost:none", "no Ray cluster answers"),
        ("localhost:1", "no Ray cluster answers"),
        ("nonsense", "Invalid address format"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address, problem):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=rf"address = '{address}': {problem}"):
        Cluster(address)


def test_an_error_of_a_task_is_its_last_line_and_any_other_its_first():
    errors = pytest.importorskip("ray.exceptions")
    inside = errors.RayTaskError("look", "Traceback:\n  ...\nKeyError: 'x'\n", KeyError("x"))
    assert one_line(inside) == one_line(inside.as_instanceof_cause()) == "KeyError: 'x'"
    assert one_line(errors.NodeDiedError("the node died\nlong ago")) == "the node died"
    assert one_line(errors.WorkerCrashedError()).startswith("The worker died unexpectedly")
