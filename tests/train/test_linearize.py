"""Recipes: the folders that they make, stopping and going on, what is refused before work starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from linscale import checkpoint
from linscale.adapt.huggingface import export
from linscale.config import UserError, parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.run_folder import read_json
from linscale.train.linearize import recipe_sensitivity, run_recipe
from linscale.train.recipe import NAMES, Recipe, load_recipe

from .teachers import save_run, teacher_of

CONFIGS = Path(__file__).parents[2] / "configs" / "linearize"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA as transformers has it."""
    place = tmp_path_factory.mktemp("folder")
    return export(save_run(teacher_of(), place / "run"), place / "hf")


def recipe(corpus: Path, **changes: Any) -> Recipe:
    """Three stages of 4, 4 and 2 steps."""
    values = {
        "linear": {"features": "softmax", "rotary": "before", "decay": "none", "normalizer": "denominator"},
        "tokens": 2560, "data": str(corpus),
        "train": {"batch_tokens": 256, "length": 32, "device": "cpu", "checkpoints": 2, "validation_tokens": 256},
        "stages": [
            {"name": "attention", "loss": "attention", "share": 2, "train": {"trained": "new", "lr": 1e-2}},
            {"name": "logits", "loss": "logits", "share": 2, "text_weight": 0.5, "train": {"new_lr": 1e-3}},
            {"name": "text", "warmup": 0.5, "train": {"lr": 1e-4}},
        ],
    }  # fmt: skip
    return parse(Recipe, {**values, **changes})


def model_bytes(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(run) / "model.safetensors")


@pytest.mark.slow
def test_a_recipe_is_one_run_after_the_other_and_goes_on_where_it_was_stopped(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    seen: list[str] = []
    done = run_recipe(recipe(data), folder, tmp_path / "whole", on_step=lambda status: seen.append(status["stage"]))
    assert (done["state"], done["stage"], done["stage_number"], done["stages"], done["step"]) == (
        "done",
        "text",
        3,
        3,
        2,
    )
    assert list(dict.fromkeys(seen)) == ["attention", "logits", "text"]
    whole = tmp_path / "whole"
    settings = {name: read_json(whole / name / "config.json") for name in ("1-attention", "2-logits", ".")}
    assert [(each["run"], each["train"]["tokens"]) for each in settings.values()] == [
        ("whole-attention", 1024), ("whole-logits", 1024), ("whole", 512)
    ]  # fmt: skip
    assert settings["2-logits"]["train"]["teacher"]["text_weight"] == 0.5
    assert settings["."]["train"]["warmup_tokens"] == 256
    assert not list((whole / "1-attention").rglob("optimizer*"))
    found: list[int] = []
    status = run_recipe(
        recipe(data), folder, tmp_path / "run", stop=lambda: bool(found),
        on_step=lambda status: found.append(1) if status["stage"] == "logits" and status["step"] else None,
    )  # fmt: skip
    assert (status["stage"], status["state"]) == ("logits", "stopped")
    assert not (tmp_path / "run" / "config.json").exists()
    run_recipe(recipe(data), folder, tmp_path / "run")
    for name in ("1-attention", "2-logits", "."):
        left, right = model_bytes(tmp_path / "run" / name), model_bytes(whole / name)
        assert all(torch.equal(left[key], right[key]) for key in right)
    found = recipe_sensitivity(recipe(data), whole)
    assert [each.layer for each in found.layers] == [0, 1]
    assert read_json(whole / "sensitivity.json")["layers"][0]["increase"] == found.layers[0].increase != 0
    model, tokenizer = checkpoint.load(whole)
    assert model.config.arch == "linearized"
    assert tokenizer.vocab_size == 257


def test_a_hybrid_is_one_field(data: Path, folder: Path, tmp_path: Path) -> None:
    stages = [{"name": "text"}]
    run_recipe(recipe(data, softmax_every=2, stages=stages, tokens=256), folder, tmp_path / "run")
    config = checkpoint.model_config(checkpoint.newest(tmp_path / "run"))
    assert config.softmax_layers == (1,)
    assert not (tmp_path / "run" / "teacher").exists()
    assert recipe(data, softmax_every=4, softmax_layers=[0, 3]).kept(9) == (0, 3, 7)


@pytest.mark.parametrize(("changes", "message"), [
    ({"data": None}, r"data: a recipe needs a folder made by `linscale data prepare`"),
    ({"data": "nowhere"}, r"nowhere: not a prepared corpus"),
    ({"tokens": 300}, r"tokens = 300: stage 'attention', 2.0 of them in proportion, gets less than one step"),
    ({"stages": [{"name": "a"}, {"name": "a"}]}, r"stages = \['a', 'a'\]: expected names that differ"),
    ({"stages": [{"name": "a", "train": {"tokens": 5}}]}, r"stage 'a': train.tokens = 5: follows from tokens, share"),
    ({"stages": [{"name": "a", "train": {"rate": 5}}]}, r"stage 'a': train: unknown key 'rate' \(expected one"),
    ({"stages": [{"name": "a", "text_weight": 1}]}, r"stage 'a': compare and text_weight are for a loss"),
    ({"stages": []}, r"stages"),
    ({"train": {"length": 32}}, r"train.batch_tokens = None: expected the tokens of a step"),
    ({"softmax_layers": [2]}, r"softmax_layers = \[2\]: expected numbers from 0 to 1"),
    ({"softmax_layers": [0, 1]}, r"trained = 'new': the model has no weights that softmax attention has not; expected"),
    ({"softmax_every": 1, "stages": [{"name": "a", "train": {"trained": "mixers"}}]}, r"no layers but softmax attent"),
    ({"stages": [{"name": "a"}, {"name": "b", "train": {"capture": "on"}}]}, r"train.capture = 'on': the device is"),
    ({"stages": [{"name": "a"}, {"name": "b", "train": {"sequence_parallel": 2}}]}, r"sequence_parallel = 2: expected"),
    ({"stages": [{"name": "a"}, {"name": "b", "train": {"curriculum": {"start": 2}}}]}, r"stage 'b': train.curriculum"),
    ({"tokens": 2**20, "train": {"batch_tokens": 2**18, "length": 2**18, "validation_tokens": 2**18, "device": "cpu"}},
     r"length = 262144: split 'val' of .* has \d+ tokens"),
])  # fmt: skip
def test_bad_recipes_are_refused_before_work_starts(
    data: Path, folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(recipe(data, **changes), folder, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_tokenizers_corpus_is_refused(data: Path, folder: Path, tmp_path: Path) -> None:
    text, options = str(data.parent / "text.txt"), PrepareOptions(document_bytes=300, val_fraction=0.1, workers=1)
    prepare([text], tokenizer="bpe:300", out=tmp_path / "other", options=options)
    with pytest.raises(UserError, match=r"data = .*other'?: prepared with another tokenizer than .*--tokenizer .*hf"):
        run_recipe(recipe(tmp_path / "other"), folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_named_recipes_are_those_of_configs() -> None:
    for name in NAMES:
        own = load_recipe(name)
        assert own == load_recipe(str(CONFIGS / f"{name}.toml"))
        for number in range(len(own.stages)):
            own.stage_config(number, Path("start"), Path("teacher"))
    with pytest.raises(UserError, match=r"recipe = 'suppra': no such file; expected one of supra, t2r, distill, or a"):
        load_recipe("suppra")


def test_sensitivity_needs_a_stage_of_attention_that_is_done(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1-attention: not trained to its end yet; run the recipe first"):
        recipe_sensitivity(recipe(data), tmp_path)
    with pytest.raises(UserError, match=r"recipe: none of its stages has loss = 'attention'"):
        recipe_sensitivity(recipe(data, stages=[{"name": "text"}]), tmp_path)


def test_sensitivity_is_not_measured_where_layers_are_kept(data: Path, folder: Path, tmp_path: Path) -> None:
    stages = [{"name": "attention", "loss": "attention"}, {"name": "text"}]
    hybrid = recipe(data, softmax_every=2, tokens=512, stages=stages)
    run_recipe(hybrid, folder, tmp_path / "run")
    with pytest.raises(UserError, match=r"1-attention: keeps softmax in layers 1, of which it cannot tell"):
        recipe_sensitivity(hybrid, tmp_path / "run")
