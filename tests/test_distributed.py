"""How many cores there are, for this process and in this container."""

import os
import signal

import pytest

from linscale import distributed


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_a_container_has_fewer_cores_than_the_machine(tmp_path, monkeypatch, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(distributed, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert distributed.cores() == expected


def test_a_limit_of_threads_never_raises_one(monkeypatch):
    import torch

    threads = torch.get_num_threads()
    try:
        distributed.limit_threads(threads + 7)
        assert torch.get_num_threads() == threads
        distributed.limit_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_noted_sigterm_is_remembered_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.sigterm_noted() as came:
        assert not came()
        signal.raise_signal(signal.SIGTERM)
        assert came()
        with pytest.raises(distributed.Terminated), distributed.sigterm_raises():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, distributed.Terminated)]
)
def test_a_wish_to_stop_waits_until_it_is_asked_for(number, raised):
    """Raised at any place it can be lost: what a destructor raises is ignored."""
    before = signal.getsignal(number)
    with distributed.stop_noted() as check:
        check()
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt) as stop:
            check()
        assert type(stop.value) is raised
    assert signal.getsignal(number) is before
