"""linscale doctor: true on any machine, whatever is missing, and loud about wrong numbers."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from linscale.cli import doctor, machine, main
from linscale.ops.backend import Choice
from linscale.ops.numerics import NAMES, TOLERANCE, Case, decay_attention_by, short
from linscale.ops.numerics.cases import SITUATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "doctor.md").read_text(encoding="utf-8")
CPU = torch.device("cpu")
QUICK = [
    Case("none", 20, "ordinary", torch.bfloat16, 8, 8),
    Case("channel", 40, "strong", torch.float32, 8, 8),
]


@pytest.fixture
def on_cpu(monkeypatch):
    """As on a machine without a GPU, with two quick cases."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "quick_cases", lambda: list(QUICK))


def report(capsys, *words):
    status = main(["doctor", *words])
    out, err = capsys.readouterr()
    assert err in ("", "numerics  100%  ETA 0:00\n")  # progress
    return status, out


def test_it_says_what_serves_each_operator_and_why(on_cpu, capsys):
    status, out = report(capsys)
    assert status == 0
    for text in (torch.__version__, "decay_attention", "chunk", "Triton kernels need a CUDA or ROCm GPU", "reference"):
        assert text in out
    status, out = report(capsys, "--json")
    found = json.loads(out)
    assert (status, found["numerics"]) == (0, None)
    assert found["devices"][-1]["device"] == "cpu"
    forms = {item["operator"]: (item["form"], item["dtypes"]) for item in found["operators"]}
    everything = ["bfloat16", "float16", "float32"]
    assert forms == {
        "decay_attention": ("chunk", everything),
        "decay_attention_step": ("reference", everything),
        "linear_scan": ("chunk", everything),
        "linear_cross_entropy": ("torch", everything),
        "softmax attention": ("torch", everything),
    }


@pytest.mark.slow
def test_right_numbers_pass(on_cpu, capsys):
    status, out = report(capsys, "--numerics")
    assert status == 0
    assert "All 6 checks passed" in out
    status, out = report(capsys, "--numerics", "--json")
    found = json.loads(out)["numerics"]
    assert (status, found["passed"], found["left_out"], len(found["cases"])) == (0, True, 0, 2)


def test_wrong_numbers_fail_by_name(on_cpu, capsys, monkeypatch):
    right = decay_attention_by("chunk")

    def wrong(q, k, v, *rest):
        if k.shape[1] == 40:
            raise RuntimeError("out of resource: shared memory\nmore lines")
        o, final = right(q, k, v, *rest)
        return 1.02 * o, final * torch.nan

    monkeypatch.setattr(doctor, "decay_attention_by", lambda backend: wrong)
    status, out = report(capsys, "--numerics")
    assert status == 1
    assert re.search(r"FAILED  none T=20 ordinary bf16 8x8: o [12]\.\de-02, allowed 8\.0e-03\n", out)
    assert "FAILED  none T=20 ordinary bf16 8x8: state inf, allowed 8.0e-03" in out
    assert "FAILED  channel T=40 strong fp32 8x8: RuntimeError: out of resource: shared memory\n" in out
    assert "passed" not in out
    status, out = report(capsys, "--numerics", "--json")
    found = json.loads(out, parse_constant=pytest.fail)["numerics"]
    assert (status, found["passed"], found["cases"][0]["errors"]["state"]) == (1, False, None)


def test_what_the_time_does_not_allow_is_said(on_cpu, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "BUDGET_S", -1.0)
    status, out = report(capsys, "--numerics")
    assert status == 0
    assert "6 checks were not reached" in out


def test_on_a_gpu_kernels_are_compiled_in_threads_each_form_once(monkeypatch):
    """One case of each length and packing; what goes wrong then is left to the check itself to tell."""
    ran = []

    def run(function, problem):
        ran.append((problem, threading.current_thread(), torch.autograd.is_multithreading_enabled()))
        if problem.kind == "token":
            raise RuntimeError("out of resource")

    monkeypatch.setattr(doctor, "results", run)
    monkeypatch.setattr(doctor, "make_problem", lambda case, device: case)
    cases = doctor.quick_cases()
    gpu = torch.device("cuda")
    assert sorted(map(str, doctor._as_compiled(cases, gpu, time.monotonic() + 60))) == sorted(map(str, cases))
    (first, _, _), *rest = ran
    assert first.length == 1
    assert all(thread is not threading.main_thread() and not elsewhere for _, thread, elsewhere in ran)
    forms = [(case.kind, case.dtype, case.situation == "packed", case.length) for case, _, _ in rest]
    assert len(forms) == len(set(forms))
    assert {form for form in forms if form[0] != "token"} == {
        (case.kind, case.dtype, case.situation == "packed", case.length) for case in cases if case.kind != "token"
    }
    ran.clear()
    assert len(list(doctor._as_compiled(cases, gpu, -1.0))) == len(cases)
    assert not ran
    assert list(doctor._as_compiled(cases, CPU, time.monotonic() + 60)) == cases


@pytest.mark.parametrize(
    ("system", "built_for", "found", "said"),
    [
        ("Linux", None, None, "No GPU here"),
        ("Linux", None, "NVIDIA 575.57.08", "this torch is built for the CPU"),
        ("Linux", "13.0", "NVIDIA 535.1", "torch sees no GPU"),
        ("Darwin", None, None, "no backend for macOS"),
    ],
)
def test_the_advice_fits_the_machine(monkeypatch, system, built_for, found, said):
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine.torch.version, "cuda", built_for)
    monkeypatch.setattr(machine, "driver", lambda: found)
    assert said in " ".join(machine.advice(CPU, None))


def test_the_advice_about_a_gpu_that_is_there(monkeypatch):
    assert "out of memory" in machine.advice(CPU, "CUDA error: out of memory")[0]
    monkeypatch.setattr(machine, "_attention", lambda dtype, device: Choice("chunk", "triton 3.2 is older than 3.4"))
    assert machine.advice(torch.device("cuda"), None) == [
        "The kernels do not run on this GPU: triton 3.2 is older than 3.4."
    ]
    monkeypatch.setattr(machine, "_attention", lambda dtype, device: Choice("triton", "a GPU"))
    assert machine.advice(torch.device("cuda"), None) == []


def test_a_gpu_that_refuses_work_is_passed_over(monkeypatch):
    def refuse(*shape, device):
        raise RuntimeError("CUDA error: all devices busy\nlong text")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", refuse)
    assert machine.working_device() == (CPU, "CUDA error: all devices busy")


def test_what_other_systems_lack(monkeypatch, tmp_path):
    for name in ("NVIDIA_DRIVER", "AMD_DRIVER", "CPU_INFO"):
        monkeypatch.setattr(machine, name, tmp_path / "none")
    monkeypatch.setattr(machine, "TRITON_PACKAGES", ("no-such-package",))
    monkeypatch.delattr(machine.os, "sysconf")
    found = machine.versions()
    assert (found["driver"], found["triton"]) == (None, None)
    assert machine.devices()[-1]["memory_bytes"] is None
    assert machine.devices()[-1]["name"]
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build"
    )
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", tmp_path / "version")
    assert machine.driver() == "NVIDIA 575.57.08"


@pytest.mark.slow
def test_the_first_line_comes_quickly():
    start = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "linscale", "doctor"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        elapsed_s = time.monotonic() - start
    assert elapsed_s < 10.0  # 2 s alone on a machine


def test_the_page_names_every_key_and_every_bound(on_cpu, capsys):
    found = json.loads(report(capsys, "--numerics", "--json")[1])

    def keys(value):
        if isinstance(value, dict):
            for key, item in value.items():
                yield key
                yield from keys(item)
        elif isinstance(value, list):
            for item in value:
                yield from keys(item)

    gpu = {"capability", "multiprocessors"}
    assert not [key for key in {*keys(found), *gpu, *SITUATIONS} if f"`{key}`" not in PAGE]
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| " + r"([\de.-]+) \| " * 6 + r"([\de.-]+) \|", PAGE, re.M)
    }
    assert rows == {short(dtype): tuple(str(bounds[name]) for name in NAMES) for dtype, bounds in TOLERANCE.items()}
