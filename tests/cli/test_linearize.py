"""linscale linearize as a user calls it: converted, trained by a recipe, taken by the other commands; bad input."""

import inspect
import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import linscale
from linscale.adapt import folder as folder_module
from linscale.adapt import supra
from linscale.adapt.huggingface import export
from linscale.cli import main
from linscale.cli.linearize import linearize
from linscale.config import human
from linscale.models import MIXERS
from linscale.train.recipe import NAMES
from tests.adapt.runs import run_of, tiny

DOCS = Path(__file__).parents[2] / "docs"
RECIPE = """
tokens = 384
data = "data"
linear = { features = "softmax", rotary = "before", decay = "head", normalizer = "denominator" }
train = { length = 16, batch_tokens = 64, checkpoints = 1, validation_tokens = 64, device = "cpu" }
[[stages]]
name = "attention"
loss = "attention"
train = { trained = "mixers" }
[[stages]]
name = "text"
"""


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a LLaMA's Hugging Face folder, a corpus, one by another tokenizer, and a recipe."""
    place = tmp_path_factory.mktemp("user")
    export(run_of(tiny("llama", n_kv_heads=2), place / "run"), place / "hf")
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat"], k=2000)
    (place / "text.txt").write_text("\n".join(" ".join(words[k : k + 8]) for k in range(0, len(words), 8)))
    for tokenizer, out in ((str(place / "hf"), "data"), ("bpe:270", "other")):
        words = ["--tokenizer", tokenizer, "--document-bytes", "99", "--val-fraction", "0.2", "--workers", "1"]
        assert main(["data", "prepare", str(place / "text.txt"), *words, "--out", str(place / out)]) == 0
    (place / "recipe.toml").write_text(RECIPE)
    return place


@pytest.fixture
def call(made, tmp_path, monkeypatch, capsys):
    """Run a command line in a copy of that folder; returns its exit status, standard output and standard error."""
    shutil.copytree(made, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")

    def run(words):
        capsys.readouterr()
        status = main(words.split())
        return status, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_what_is_converted_alone_is_a_run(call):
    status, out, err = call("linearize hf out --recipe supra --softmax-layers 1 --convert-only")
    assert status == 0
    assert re.search(r"out\s+1 of 2\s", out)
    assert "writes nonsense" in err
    status, out, _ = call("linearize hf out --recipe supra --softmax-layers 1 --convert-only --json")
    said = json.loads(out)
    assert (status, said["model"]["softmax_layers"]) == (0, [1])
    model, _ = linscale.load("out")
    assert said["parameters"]["total"] == sum(x.numel() for x in model.parameters())
    assert said["parameters"]["new"] == 32 * 32 + 32 + 16 * 16 + 16  # two dense maps with biases, of 4 and 2 heads of 8
    assert call("generate out --prompt a --max-tokens 3")[0] == 0
    assert "0 known before" in call("evaluate out --suite recall --examples 1 --sizes 2")[1]
    assert call("export out again")[0] == 0
    assert "| linearized from | `hf` (llama)" in Path("again/README.md").read_text()


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_mixer_of_a_recipe_can_be_another(call, mixer):
    assert call(f"linearize hf out --mixer {mixer} --softmax-every 2 --seed 3 --convert-only")[0] == 0
    model, _ = linscale.load("out")
    assert (model.config.linear, model.config.softmax_layers) == (MIXERS[mixer], (1,))


def test_a_recipe_is_followed_to_its_end_and_then_left_alone(call):
    status, out, err = call("linearize hf out --recipe recipe.toml --json")
    said = json.loads(out)
    assert (status, said["state"], said["stage"], said["stage_number"], said["step"]) == (0, "done", "text", 2, 3)
    assert err.startswith("converting  100%")
    assert {"1/2 attention", "2/2 text"} <= {" ".join(line.split()[:2]) for line in err.splitlines()}
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")}
    status, out, _ = call("linearize hf out --recipe recipe.toml")
    assert (status, "text (2 of 2)" in out) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")} == before
    assert call("generate out --prompt a --max-tokens 3")[0] == 0
    assert call("export out again")[0] == 0
    card = Path("again/README.md").read_text()
    assert "| linearized from | `hf` (llama)" in card
    assert "| step | 3 |" in card
    status, _, err = call("linearize hf out --recipe recipe.toml --seed 5")
    assert (status, err.count("\n")) == (2, 1)
    assert "out/start: holds another conversion" in err


@pytest.mark.slow
def test_killed_while_it_converts_it_goes_on(call, monkeypatch):
    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(supra.Teacher, "read", kill)
        patched.setattr(folder_module.shutil, "rmtree", lambda *arguments, **options: None)  # as SIGKILL has it
        with pytest.raises(Killed):
            main(["linearize", "hf", "out", "--recipe", "recipe.toml"])
    assert [path.name[:7] for path in Path("out").iterdir()] == [".start."]
    assert call("generate out --prompt a")[0] == 2
    assert call("linearize hf out --recipe recipe.toml")[0] == 0
    assert not list(Path("out").glob(".start.*"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("linearize hf", "Missing from linscale linearize: OUT"),
        ("linearize none out --data data", "none: not a Hugging Face folder; expected one with config.json"),
        ("linearize run out --data data", "run/config.json: no such file"),
        ("linearize hf run --data data", "out = run: exists already, and no recipe made it"),
        ("linearize hf run --convert-only", "out = run: exists already; expected the path of a new folder"),
        ("linearize hf out", "data: a recipe needs a folder made by `linscale data prepare`"),
        ("linearize hf out --data none", "none: not a prepared corpus"),
        ("linearize hf out --data other", "data = 'other': prepared with another tokenizer than that of hf"),
        ("linearize hf out --recipe suppra", "recipe = 'suppra': no such file; expected one of supra, t2r, distill"),
        ("linearize hf out --recipe text.txt", "text.txt: not valid TOML"),
        ("linearize hf out --mixer mamba", "mixer = 'mamba': expected one of supra, t2r, hedgehog, gated, tnl, hgrn2"),
        ("linearize hf out --data data --softmax-layers 2", "softmax_layers = [2]: expected numbers from 0 to 1"),
        ("linearize hf out --data data --softmax-every -1", "softmax_every = -1: input should be greater than or eq"),
        ("linearize hf out --data data --tokens many", "tokens = 'many': expected a positive number"),
        ("linearize hf out --data data --tokens 9", "of them in proportion, gets less than one step of"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(call, words, problem):
    before = sorted(Path().iterdir())
    status, out, err = call(words)
    assert (status, out) == (2, "")
    assert problem in err
    assert err.startswith("linscale: ")
    assert err.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_too_little_disk_for_conversion_and_checkpoints_is_said_first(call, monkeypatch):
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda place: SimpleNamespace(free=99_000))
    status, _, err = call("linearize hf out --recipe recipe.toml")
    source = sum(x.numel() for x in linscale.load("run")[0].parameters())
    new = 2 * (2 * 4 * 8 * 8 + 32 * 4 + 4)  # maps of queries and keys, and a gate with its bias, in each of two layers
    # The converted model and the teacher, in float32; a checkpoint of each stage; the second one's moments.
    needed = 4 * (source + new) + 4 * source + 2 * 4 * (source + new) + 8 * (source + new)
    assert (status, err.count("\n")) == (2, 1)
    assert f"out = out: needs {human(needed, 'B')}, its disk has 99kB free; free space" in err
    assert not Path("out").exists()


def test_the_page_and_the_guide_name_options_recipes_and_mixers():
    page = (DOCS / "reference" / "linearize.md").read_text(encoding="utf-8")
    options = [f"`--{name.replace('_', '-')}" for name in list(inspect.signature(linearize).parameters)[2:]]
    assert not [option for option in options if option not in page]
    assert not [name for name in (*MIXERS, *NAMES) if f"`{name}`" not in page]
    guide = (DOCS / "guide" / "linearize.md").read_text(encoding="utf-8")
    known = set(re.findall(r"--[a-z-]+", page))
    for line in re.findall(r"linscale linearize (.*)", guide):
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line
