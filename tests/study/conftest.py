"""A study small enough to train in a test: two architectures at three sizes on text made here."""

import random
from pathlib import Path

import pytest

TINY = """
name = "tiny"
archs = ["tnl", "llama"]

[data]
inputs = ["{text}"]
options = {{ document_bytes = 300, val_fraction = 0.1 }}

[train]
tokens = 40_960
batch_tokens = 1024
length = 32
lr = 3e-3
checkpoints = 8
validation_tokens = 1024
device = "cpu"

[[sizes]]
name = "a"
d_model = 8
n_layers = 1
head_dim = 8
d_ff = 16

[[sizes]]
name = "b"
d_model = 16
n_layers = 1
head_dim = 8
d_ff = 32

[[sizes]]
name = "c"
d_model = 24
n_layers = 2
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
    text = tmp_path / "text.txt"
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "and", "ran"], k=6000)
    text.write_text("\n".join(" ".join(words[k : k + 8]) for k in range(0, len(words), 8)) + "\n")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(text=text))
    return path
