"""Tests of GPU kernels: compiled on a GPU, else in Triton's interpreter (TRITON_INTERPRET=1), else not collected."""

from pathlib import Path

import pytest
import torch

from linscale.ops.backend import interpreting

ON_GPU = torch.cuda.is_available() and not interpreting()

if interpreting():
    from .quicker import quicken

    quicken()

collect_ignore_glob = [] if ON_GPU or interpreting() else ["test_*.py"]


def pytest_collection_modifyitems(items):
    """What is compiled is left to `make test-gpu`; interpreted, numpy's complaints about Triton are not ours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            if ON_GPU:
                item.add_marker("gpu")
                for hint in ("TensorFloat32 tensor cores", "\\s*Online softmax is disabled"):  # of inductor's
                    item.add_marker(pytest.mark.filterwarnings(f"ignore:{hint}"))
            else:
                item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
                # Pairs that a mask discards may overflow, here as on a GPU.
                item.add_marker(
                    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
                )


@pytest.fixture(scope="session")
def device():
    """Where the kernels run."""
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=ON_GPU)
def _memory_for_others():
    """Give back what a test's reference took: processes of pytest-xdist share one GPU."""
    yield
    torch.cuda.empty_cache()
