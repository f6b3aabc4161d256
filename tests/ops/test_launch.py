"""Launching without a GPU: what is compiled anew, and how later launches reach what is compiled already."""

from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is made for Linux alone")
from triton.runtime.jit import JITFunction  # noqa: E402

from linscale.ops import launch as launching  # noqa: E402
from linscale.ops.launch import Launch, launch  # noqa: E402


def work(x, y, n, C: triton.language.constexpr, WIDE: triton.language.constexpr):
    """A kernel's signature."""


class Compiled:
    """In place of what Triton compiles: notes how it is run."""

    function, packed_metadata = 11, (4, 1, 0)

    def __init__(self, ran):
        self.ran = ran

    def run(self, *given):
        self.ran.append(("direct", given))

    def __getitem__(self, grid):
        return lambda *given: self.ran.append(("slow", (*grid, *given)))


@pytest.fixture
def ran(monkeypatch):
    """All that was run, in order."""
    calls = []

    def first(self, *args, **options):
        calls.append(("compiled", args))
        return Compiled(calls)

    monkeypatch.setattr(JITFunction, "run", first)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # as tensors on a CPU have it
    monkeypatch.setattr(launching, "driver", SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda _: 7)))
    monkeypatch.setattr(launching, "_LAUNCHES", {})
    return calls


def test_only_who_says_so_is_launched_early(ran, monkeypatch):
    options = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **given: options.append(given) or Compiled(ran))
    for early in (False, True):
        Launch(JITFunction(work), 3, (5,), {"WIDE": True, "C": 64}, 4, early=early)(2, (torch.empty(8),))
    assert ["launch_pdl" in given for given in options] == [False, True]


def test_the_second_launch_goes_straight_to_the_driver(ran):
    x = torch.empty(8)
    piece = Launch(JITFunction(work), 3, (5,), {"WIDE": True, "C": 64}, 4)
    piece(2, (x, x))
    piece(2, (x, x))
    piece(0, (x, x))
    given = (6, 1, 1, 7, 11, (4, 1, 0), None, None, None, x.data_ptr(), x.data_ptr(), 5, 64, True)
    assert [how for how, _ in ran] == ["compiled", "direct"]
    assert ran[1][1] == given


def test_what_triton_specialises_on_is_compiled_apart(ran):
    x, kernel = torch.empty(8), JITFunction(work)
    for tensors, n, width in (
        ((x, x), 5, 64), ((x, x[1:]), 5, 64), ((x, x.double()), 5, 64), ((x, x), 16, 64), ((x, x), 5, 32)
    ):  # fmt: skip
        launch(kernel, 1, tensors, (n,), {"C": width, "WIDE": False}, 4)
        launch(kernel, 1, tensors, (n,), {"C": width, "WIDE": False}, 4)
    assert [how for how, _ in ran] == ["compiled", "direct"] * 5


def test_profilers_hear_of_launches(ran, monkeypatch):
    x = torch.empty(8)
    piece = Launch(JITFunction(work), 1, (5,), {"C": 64, "WIDE": True}, 4)
    piece(1, (x, x))
    for hook in (SimpleNamespace(calls=[print]), print, SimpleNamespace(calls=[]), None):
        monkeypatch.setattr(launching.knobs.runtime, "launch_exit_hook", hook)
        piece(1, (x, x))
    assert [how for how, _ in ran] == ["compiled", "slow", "slow", "direct", "direct"]
    assert ran[1][1] == (1, 1, 1, x.data_ptr(), x.data_ptr(), 5, 64, True)
