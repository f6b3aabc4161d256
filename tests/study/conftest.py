"""A study small enough to train in a test: two architectures at three sizes, with a middle size that wins somewhere."""

from pathlib import Path

import pytest

TINY = """
name = "tiny"
archs = ["tnl", "llama"]

[data]
inputs = ["builtin:tinyshakespeare"]
options = { document_bytes = 4096, val_fraction = 0.06 }

[model]
init_std = 0.2

[train]
tokens = 12_800
batch_tokens = 256
length = 32
lr = 2e-2
checkpoints = 12
validation_tokens = 4096
device = "cpu"

[[sizes]]
name = "a"
d_model = 4
n_layers = 1
head_dim = 4
d_ff = 4
tokens = 102_400

[[sizes]]
name = "b"
d_model = 8
n_layers = 1
head_dim = 8
d_ff = 24
tokens = 64_000

[[sizes]]
name = "c"
d_model = 24
n_layers = 1
head_dim = 8
d_ff = 64

[fit]
bootstrap = 50

[sample]
prompt = "the "
max_tokens = 12
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path
