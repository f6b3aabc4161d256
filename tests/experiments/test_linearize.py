"""The linearization experiment: its text, arms that are trained and measured once, and the tables of what was found."""

import json
import lzma
import math
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from linscale.adapt.llama_names import llama_names
from linscale.config import UserError, parse
from linscale.data import PrepareOptions, prepare
from linscale.models import CONFIGS, build_model

ROOT = Path(__file__).parent.parent.parent / "experiments"
WORDS = [chr(97 + number) for number in range(20)]
FILE = """
name = "tiny"
[changes]
tokens = 1024
[changes.train]
length = 32
batch_tokens = 128
micro_batch = 4
validation_tokens = 64
checkpoints = 2
compile = "off"
device = "cpu"
[measures]
suites = ["recall"]
positions = 128
recall_sizes = [4]
passkey_lengths = "256"
examples = 2
marks = [8, 20]
slots = [2]
steps = 2
[[arms]]
name = "supra"
recipe = "supra"
[[arms]]
name = "ours"
recipe = "distill"
[[arms]]
name = "hybrid-8"
recipe = "distill"
most_sensitive = 1
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "linearize"))
    import arms
    import page
    import text

    return arms, page, text


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a LLaMA of two layers, whose tokens are letters."""
    folder = tmp_path_factory.mktemp("teacher")
    vocab = {each: number for number, each in enumerate(["<s>", "</s>", *WORDS, *"ABCDEFGHIJKLMNOP .,?:0123456789\n"])}
    stock = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    stock.decoder = tokenizers.decoders.Fuse()
    stock.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = CONFIGS["llama"](vocab_size=len(vocab), d_model=16, n_layers=2, head_dim=8, d_ff=16, tie_embeddings=True)
    model, names = build_model(config), llama_names(config)
    save_file({names[name]: each.contiguous() for name, each in model.state_dict().items() if name in names},
              folder / "model.safetensors")  # fmt: skip
    values = {
        "model_type": "llama", "vocab_size": len(vocab), "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "tie_word_embeddings": True,
        "hidden_act": "silu", "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))


@pytest.fixture
def corpus(tmp_path: Path, scripts: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What text.py makes of two domains, one of them by half."""
    _, _, text = scripts
    monkeypatch.setattr(text, "SHARES", {"dialogue": 1.0, "novels": 0.5})
    for split, count in (("train", 40), ("val", 2)):
        (tmp_path / "corpora" / split).mkdir(parents=True)
        for name in ("dialogue", "novels"):
            texts = [f"{split} {name[0]} {number} " + "abcde fghij " * 9 for number in range(count)]
            lines(tmp_path / "corpora" / split / f"{name}.jsonl", texts)
    call(text, monkeypatch, tmp_path / "corpora", tmp_path / "text")
    return tmp_path / "text"


def call(script: Any, monkeypatch: pytest.MonkeyPatch, *options: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, options)])
    script.main()


def test_a_share_of_a_domain_is_in_every_larger_one(scripts: Any, corpus: Path) -> None:
    _, _, text = scripts
    assert (corpus / "train" / "dialogue.jsonl").read_text().count("\n") == 40
    kept = lzma.decompress((corpus / "train" / "novels.jsonl.xz").read_bytes()).count(b"\n")
    assert 10 < kept < 30
    names = [f"novels-{number}" for number in range(200)]
    half, tenth = ({name for name in names if text.taken(name, share)} for share in (0.5, 0.1))
    assert tenth < half
    held = [json.loads(each)["text"] for each in (corpus / "held.jsonl").read_text().splitlines()]
    assert [each[:5] for each in held] == ["val d", "val d", "val n", "val n"]


@pytest.mark.slow
def test_arms_are_trained_measured_once_and_tabulated(
    scripts: Any, teacher: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arms, page, _ = scripts
    prepare([str(corpus / "train")], tokenizer=str(teacher), out=tmp_path / "data",
            options=PrepareOptions(val_fraction=0.2, workers=1))  # fmt: skip
    file, out = tmp_path / "tiny.toml", tmp_path / "tiny.json"
    file.write_text(FILE)
    options = [file, teacher, "--data", tmp_path / "data", "--text", corpus, "--sets", tmp_path, "--json", out,
               "--out", tmp_path / "runs"]  # fmt: skip
    call(arms, monkeypatch, *options, "--minutes", 0, "--only", "supra")  # no time: nothing is begun
    assert not out.exists()
    with pytest.raises(
        UserError, match=r"arm 'hybrid-8': keeps what 'ours' is most sensitive in: .*1-attention: not trained"
    ):
        call(arms, monkeypatch, *options, "--only", "hybrid")
    call(arms, monkeypatch, *options, "--speeds", "later")
    assert all("speed" not in row for row in json.loads(out.read_text())["rows"])
    call(arms, monkeypatch, *options, "--speeds", "only")
    rows = {row["arm"]: row for row in json.loads(out.read_text())["rows"]}
    assert [(name, row["state"], row["tokens"]) for name, row in rows.items()] == [
        ("teacher", "done", 0), ("supra", "done", 1024), ("ours", "done", 1024), ("hybrid-8", "done", 1024),
    ]  # fmt: skip
    assert [stage["name"] for stage in rows["hybrid-8"]["stages"]] == ["attention", "logits", "text"]
    assert [(row["softmax_layers"], row["layers"]) for row in rows.values()] == [(2, 2), (0, 2), (0, 2), (1, 2)]
    costly = max(rows["ours"]["sensitivity"], key=lambda layer: layer[1])
    assert rows["hybrid-8"]["recipe_values"]["softmax_layers"] == [costly[0]]
    assert rows["supra"]["state_elements"]["8"] == rows["supra"]["state_elements"]["20"]
    assert rows["teacher"]["state_elements"]["8"] < rows["teacher"]["state_elements"]["20"]
    for row in rows.values():
        assert {"recall-mqar-4", "recall-passkey-256", "text-novels"} <= row["tasks"].keys()
        assert [each["tokens"] for each in row["speed"] if "tokens" in each] == [8, 20]
    shutil.rmtree(tmp_path / "runs")  # what is timed again need not be trained again
    call(arms, monkeypatch, *options, "--speeds", "again", "--only", "teacher|hybrid-8")
    again = {row["arm"]: row for row in json.loads(out.read_text())["rows"]}
    for name, row in rows.items():
        timed = name in ("teacher", "hybrid-8")
        assert (again[name]["speed"] != row["speed"]) == timed
        assert again[name]["tasks"] == row["tasks"]
        assert ("speed_of" in again[name]) == timed
        states = [[each["state_bytes"] for each in found["speed"] if "tokens" in each] for found in (row, again[name])]
        assert states[0] == states[1]
    capsys.readouterr()
    call(arms, monkeypatch, *options)
    assert capsys.readouterr().out.startswith("4 of 4 arms done")
    for kind, table in page.KINDS.items():
        assert all(len(line) == len(table([*rows.values()])[0]) for line in table([*rows.values()])), kind
    import chart

    assert chart.chart([*rows.values()]).count("<polyline") == 8


def row(arm: str, score: float, nats: float, needles: dict[int, float]) -> dict[str, Any]:
    """What the goals are measured on."""
    csr = {"boolq": "acc", "piqa": "acc", "hellaswag": "acc_norm", "winogrande": "acc", "arc_easy": "acc",
           "arc_challenge": "acc_norm", "openbookqa": "acc_norm"}  # fmt: skip
    tasks: dict[str, Any] = {task: {metric: [score, 0.01]} for task, metric in csr.items()}
    tasks["text-wikitext2_raw_test"] = {"loss": [nats, 0.01]}
    tasks["needle-easy"] = {f"acc_{length}": [each, 0.1] for length, each in needles.items()}
    return {"arm": arm, "tasks": tasks, "length": 1024}


def test_goals_are_ratios_to_the_teacher(scripts: Any) -> None:
    _, page, _ = scripts
    rows = [
        row("teacher", 0.5, 3.0, {512: 0.8, 1024: 0.6, 4096: 0.0}), row("t2r", 0.3, 5.0, {}),
        row("supra", 0.4, 3.5, {}), row("ours", 0.48, 3.0 + math.log(1.3), {}),
        row("hybrid-8", 0.485, 3.1, {512: 0.7, 1024: 0.63, 4096: 1.0}),
    ]  # fmt: skip
    found = [(line[2], line[3]) for line in page.goals(rows)[1:]]
    assert found == [("0.960", "met"), ("1.300", "missed"), ("0.970", "missed"), ("0.950", "met"), ("1.333", "met")]
    assert [line[2:] for line in page.goals(rows[:1])[1:]] == [("-", "-")] * 5


@pytest.mark.parametrize("path", sorted((ROOT / "linearize").glob("*.toml")), ids=lambda path: path.stem)
def test_a_file_that_ships_names_recipes(scripts: Any, path: Path) -> None:
    arms, _, _ = scripts
    experiment = parse(arms.Experiment, tomllib.loads(path.read_text()), source=path.name)
    recipes = [arms.recipe_of(arm, experiment, {}) for arm in experiment.arms]
    assert len({recipe.tokens for recipe in recipes}) == 1
    assert len({arm.name for arm in experiment.arms}) == len(experiment.arms) > 1
