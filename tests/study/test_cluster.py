"""Reaching a Ray cluster, and what is said where there is none; test_ray_executor.py has a real one."""

import sys

import pytest

from linscale.config import UserError
from linscale.study.cluster import Cluster


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
