"""A text for every model."""

import pytest
import torch


@pytest.fixture(scope="session")
def text():
    return torch.randint(256, (2, 90), generator=torch.Generator().manual_seed(0))
