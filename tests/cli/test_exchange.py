"""linscale import and export as a user calls them."""

import json
from pathlib import Path

import pytest
import torch

import linscale
from linscale import checkpoint
from linscale.adapt.llama_config import PLAIN, SCALINGS
from linscale.adapt.tokenizer_folder import COMPANIONS
from linscale.cli import main
from linscale.data.tokenizer import load_tokenizer
from linscale.models import CONFIGS, build_model

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "exchange.md"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_model(CONFIGS["hgrn2"](vocab_size=257, d_model=16, n_layers=1, head_dim=8, d_ff=16))
    tokenizer = load_tokenizer("byte")
    Path("run").mkdir()
    tokenizer.save("run")
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(Path("run"), 5, model, optimizer, {"tokens": 50, "tokenizer": tokenizer.fingerprint})
    return model


def call(capsys, words):
    status = main(words.split())
    return status, *capsys.readouterr()


def test_there_and_back(run, capsys):
    status, out, err = call(capsys, "export run hf --dtype bf16 --json")
    assert (status, err) == (0, "")
    assert {"config.json", "model.safetensors", "modeling_linscale.py", "README.md"} <= set(json.loads(out)["bytes"])
    status, out, err = call(capsys, "import hf back --dtype fp32")
    assert (status, err) == (0, "")
    assert "checkpoints/step_00000000/model.safetensors" in out
    model, _ = linscale.load("back")
    assert torch.equal(model.embedding.weight, run.embedding.weight.bfloat16().float())
    assert call(capsys, "generate back --prompt a --max-tokens 3")[0] == 0
    assert call(capsys, "evaluate back --suite recall --examples 1 --sizes 2 --json")[0] == 0
    assert "back" in call(capsys, "runs .")[1]
    assert call(capsys, "export run/checkpoints/step_00000005 other")[0] == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("export none hf", "none: no such folder; expected a run folder or a checkpoint folder"),
        ("export run run", "out = run: exists already; expected the path of a new folder"),
        ("export run hf --dtype int8", "invalid choice"),
        ("import run back", "run/config.json: no such file"),
        ("import none back", "none: not a Hugging Face folder; expected one with config.json"),
        ("import back", "Missing from linscale import"),
    ],
)
def test_bad_input_is_one_line(run, capsys, words, problem):
    status, out, err = call(capsys, words)
    assert (status, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


def test_the_page_names_every_field_that_decides():
    text = PAGE.read_text(encoding="utf-8")
    names = {*PLAIN, *SCALINGS, "dynamic", *(key for keys in SCALINGS.values() for key in keys if "_factor" not in key)}
    names -= {"factor", "original_max_position_embeddings"}
    assert not [name for name in names if f"`{name}`" not in text]
    assert all(f"`{name}`" in text for name in COMPANIONS[:3])
