"""Runs the tests of GPU kernels in Triton's interpreter: in a process of its own, for Triton chooses at its import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))
LONGEST = FOLDER / "test_decay_attention.py"


@pytest.mark.slow
@pytest.mark.parametrize("files", [[LONGEST], [file for file in FILES if file != LONGEST]], ids=["longest", "others"])
def test_kernels_in_the_interpreter(files):
    """Two processes, of about the same length: every start costs seconds."""
    pytest.importorskip("triton", reason="Triton is made for Linux alone")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, files)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
