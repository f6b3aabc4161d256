"""Every test runs on one thread, so that two pytest workers share two cores, and waits for no disk."""

import os
from collections.abc import Iterator

import pytest

# numpy's BLAS reads it when it is loaded, here and in processes that tests start. Its threads wait for each other
# busily: in fits of small matrices, on a machine with other work, that is several times what they compute.
os.environ["OPENBLAS_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Here and not above: the process that hands tests to workers reads this file too, and needs no torch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_disk() -> Iterator[None]:
    """What a test writes need not outlive a loss of power, which is all that waiting for the disk is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
