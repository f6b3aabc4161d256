"""Linearizing a LLaMA folder: weights by name and to the bit, the rest drawn by a seed, bounded memory, bad input."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import linscale
from linscale.adapt import folder as folder_module
from linscale.adapt.huggingface import export, import_folder
from linscale.adapt.llama_names import llama_names
from linscale.adapt.supra import convert, linearized_config, read_teacher
from linscale.adapt.tokenizer_folder import tokenizer_of
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.generate.batch import greedy
from linscale.models import MIXERS, LinearMixer, build_model
from linscale.models.linearized import new_parameters
from linscale.run_folder import LOCK, locked
from tests.adapt.folders import ROPES, close, their_folder, their_model
from tests.adapt.runs import run_of, tiny, weights

SUPRA = MIXERS["supra"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A sharded folder in bf16: grouped heads, scaled RoPE, a head of its own."""
    model = their_model("llama3").to(torch.bfloat16)
    return their_folder(tmp_path_factory.mktemp("pristine") / "hf", model, max_shard_size="60KB")


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "hf"))


@pytest.mark.parametrize(("rope", "kv_heads", "tied"), [("llama3", 2, False), ("yarn", 1, True), ("linear", 4, True)])
def test_with_softmax_in_all_layers_it_is_the_teacher(tmp_path, text, rope, kv_heads, tied):
    assert rope in ROPES
    theirs = their_model(rope, kv_heads, tied)
    folder = their_folder(tmp_path / "hf", theirs)
    ours, tokenizer = linscale.load(convert(read_teacher(folder), tmp_path / "out", SUPRA, range(2)))
    teacher, _ = linscale.load(import_folder(folder, tmp_path / "teacher"))
    with torch.no_grad():
        assert torch.equal(ours(text).logits, teacher(text).logits)
        close(ours(text).logits, theirs(text).logits)
    assert tokenizer.name == "byte"


@pytest.mark.parametrize("mixer", MIXERS)
def test_weights_are_taken_over_to_the_bit_and_the_new_ones_are_a_fresh_models(pristine, tmp_path, text, mixer):
    teacher = read_teacher(pristine)
    out = convert(teacher, tmp_path / "out", MIXERS[mixer], [1], seed=7)
    found = load_file(weights(out))
    expected = {}
    for file in pristine.glob("*.safetensors"):
        expected |= load_file(file)
    for ours, theirs in llama_names(teacher.config).items():
        assert found[ours].dtype == torch.bfloat16
        assert torch.equal(found[ours], expected[theirs]), ours
    config = linearized_config(teacher.config, MIXERS[mixer], [1])
    fresh, new = build_model(config, seed=7).state_dict(), new_parameters(config)
    assert set(found) == set(llama_names(teacher.config)) | new
    for name in new:
        assert torch.equal(found[name], fresh[name].to(found[name].dtype)), name
    model, tokenizer = linscale.load(out)
    assert model.config == config
    with torch.no_grad():
        assert model(text).logits.isfinite().all()
    assert greedy(model, tokenizer, [[256, *b"to be"]], max_tokens=3)


def test_a_seed_decides_about_what_is_new_alone(pristine, tmp_path):
    teacher = read_teacher(pristine)
    first, same, other = (
        load_file(weights(convert(teacher, tmp_path / str(number), SUPRA, seed=seed)))
        for number, seed in enumerate((0, 0, 1))
    )
    differ = {name for name in first if not torch.equal(first[name], other[name])}
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert differ == new_parameters(linearized_config(teacher.config, SUPRA))


def test_what_comes_out_is_exported_and_imported_as_any_run(pristine, tmp_path):
    run = convert(read_teacher(pristine), tmp_path / "out", MIXERS["gated"], [0])
    back = import_folder(export(run, tmp_path / "hf"), tmp_path / "back")
    assert weights(back).read_bytes() == weights(run).read_bytes()


def test_short_convolutions_change_nothing_at_first(pristine, tmp_path, text):
    teacher, delta = read_teacher(pristine), MIXERS["delta"]
    runs = [convert(teacher, tmp_path / str(n), mixer) for n, mixer in enumerate((delta, replace(delta, conv=0)))]
    (ours, _), (without, _) = (linscale.load(run) for run in runs)
    assert ours.blocks[0].mixer.k_conv.weight.shape == (32, 4)
    with torch.no_grad():
        assert torch.equal(ours(text).logits, without(text).logits)
    back = import_folder(export(runs[0], tmp_path / "hf"), tmp_path / "back")
    assert weights(back).read_bytes() == weights(runs[0]).read_bytes()


def test_an_interrupted_conversion_is_not_there_and_starts_again(pristine, tmp_path):
    teacher = read_teacher(pristine)

    def interrupt(done, total):
        assert not (tmp_path / "out").exists()
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(teacher, tmp_path / "out", SUPRA, report=interrupt)
    assert list(tmp_path.iterdir()) == []
    told = []
    convert(teacher, tmp_path / "out", SUPRA, report=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(x.nbytes for x in load_file(weights(tmp_path / "out")).values())


def test_what_a_killed_writer_left_goes_and_what_another_writes_stays(pristine, tmp_path):
    left, held = tmp_path / ".out.1.tmp", tmp_path / ".out.2.tmp"
    (left / "checkpoints").mkdir(parents=True)
    (left / LOCK).touch()
    with locked(held):
        convert(read_teacher(pristine), tmp_path / "out", SUPRA)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.2.tmp", "out"]
    assert not (tmp_path / "out" / LOCK).exists()


def test_what_is_converted_is_not_converted_again_and_never_replaced(pristine, tmp_path):
    teacher = read_teacher(pristine)
    path = weights(convert(teacher, tmp_path / "out", SUPRA))
    before = path.stat().st_mtime_ns
    assert convert(teacher, tmp_path / "out", SUPRA) == tmp_path / "out"
    for mixer, layers, seed in ((SUPRA, (1,), 0), (MIXERS["t2r"], (), 0), (SUPRA, (), 1)):
        with pytest.raises(UserError, match="holds another conversion; expected the path of a new folder"):
            convert(teacher, tmp_path / "out", mixer, layers, seed=seed)
    assert path.stat().st_mtime_ns == before
    other = shutil.copytree(pristine, tmp_path / "moved")
    assert convert(read_teacher(other), tmp_path / "out", SUPRA) == tmp_path / "out"
    for file in other.glob("*.safetensors"):
        save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match="holds another conversion"):
        convert(read_teacher(other), tmp_path / "out", SUPRA)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"truncated\?"):
        convert(teacher, tmp_path / "out", SUPRA)
    with pytest.raises(UserError, match="exists already"):
        convert(teacher, pristine, SUPRA)


def test_a_corpus_made_with_the_folder_has_the_tokens_and_the_ends_of_the_teacher(folder):
    names = {f"t{number}": number for number in range(254)} | {"<|endoftext|>": 254, "<|user|>": 255, "<|stop|>": 256}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(names, "t0")).save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).eos_id == 254
    with tokenizer_of(str(folder)) as place:
        found = load_tokenizer(place)
    assert found.eos_id == 256  # by config.json
    assert found.fingerprint == read_teacher(folder).tokenizer.fingerprint
    for spec in ("byte", str(folder / "tokenizer.json")):
        with tokenizer_of(spec) as place:
            assert place == spec


def small_tokenizer(folder):
    names = {f"t{number}": number for number in range(100)} | {"</s>": 100}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(names, "t0")).save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "config.json").read_text())
    shape = {"vocab_size": 5000, "bos_token_id": 100, "eos_token_id": 100}
    (folder / "config.json").write_text(json.dumps(settings | shape))
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        wide = {name: torch.zeros(5000, 64) for name in tensors if "embed" in name or "lm_head" in name}
        save_file(tensors | wide, file)


def large_tokenizer(folder):
    names = {f"t{number}": number for number in range(299)} | {"</s>": 299}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(names, "t0")).save(str(folder / "tokenizer.json"))


def partial(folder):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-10])


def lost(folder):
    sorted(folder.glob("*.safetensors"))[1].unlink()


def renamed(folder):
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_norm.weight"] = tensors.popitem()[1]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (partial, "not a whole safetensors file"),
        (lost, "no such file, but model.safetensors.index.json names it"),
        (renamed, "missing tensor"),
        (small_tokenizer, "its tokenizer has 101 tokens, its model rows for 5000; expected a tokenizer of the model"),
        (large_tokenizer, "its tokenizer has 300 tokens, its model 257; expected a tokenizer of the model"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
            "model_type = 'gpt2': expected one of llama, mistral",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text('{"run": "x"}'), "a run folder; expected a Hugging Face"),
    ],
)
def test_a_folder_that_will_not_do_is_refused_before_anything_is_written(folder, damage, problem):
    damage(folder)
    with pytest.raises(UserError, match=re.escape(problem)) as error:
        read_teacher(folder)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_refused_by_name_and_leave_nothing(folder, tmp_path):
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{re.escape(file.name)}: tensor '{re.escape(name)}' holds numbers that are"):
        convert(read_teacher(folder), tmp_path / "out", SUPRA)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_too_little_room_and_impossible_layers_are_said_before_anything_is_written(pristine, tmp_path, monkeypatch):
    teacher, run = read_teacher(pristine), run_of(tiny("llama"), tmp_path / "run")
    with pytest.raises(UserError, match=r"softmax_layers = \[2\]: expected numbers from 0 to 1"):
        convert(teacher, tmp_path / "out", SUPRA, [2])
    asked = []
    usage = SimpleNamespace(free=100_000)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda place: asked.append(place) or usage)
    with pytest.raises(UserError, match=r"out = .*deep.out: needs 2\d\d?kB, its disk has 100kB free; free space"):
        convert(teacher, tmp_path / "deep" / "out", SUPRA)
    assert asked == [tmp_path]
    usage.free = 1000
    for make in (lambda: import_folder(pristine, tmp_path / "a"), lambda: export(run, tmp_path / "b")):
        with pytest.raises(UserError, match="its disk has 1kB free"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from linscale.adapt.supra import convert, read_teacher
from linscale.models import MIXERS

def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

small, large, out = map(Path, sys.argv[1:])
convert(read_teacher(small), out / "small", MIXERS["supra"])  # which loads all code that it takes
teacher, before = read_teacher(large), memory("VmRSS")
convert(teacher, out / "large", MIXERS["supra"])
print(memory("VmHWM") - before)
"""


def sparse_folder(folder, width=1024, layers=8, shards=8):
    """A LLaMA of zeros in bf16, in shards that are holes on disk. Returns its bytes."""
    inner, vocab = 3 * width, 512
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{place}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{place}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{place}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    config = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 8, "vocab_size": vocab, "tie_word_embeddings": True, "eos_token_id": 2,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = {f"t{number}": number for number in range(vocab)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(names, "t0")).save(str(folder / "tokenizer.json"))
    total, places = 0, {}
    for shard in range(shards):
        header, size = {}, 0
        for name in list(shapes)[shard::shards]:
            end = size + 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [size, end]}
            size = end
        text = json.dumps(header).encode()
        file = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        with open(file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + size)
        places |= dict.fromkeys(header, file.name)
        total += size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory as Linux tells it")
def test_memory_is_that_of_the_largest_tensor_and_not_of_the_folder(tmp_path):
    total = sparse_folder(tmp_path / "hf")
    assert total > 200e6
    sparse_folder(tmp_path / "small", width=256, layers=1, shards=1)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "small"), str(tmp_path / "hf"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "out" / "large").stat().st_size > total
    assert int(done.stdout) < total / 4
    shutil.rmtree(tmp_path)


def test_a_mixer_of_ones_own(pristine, tmp_path, text):
    mixer = LinearMixer(features="softmax", feature_dim=12, rotary="none", decay="channel", normalizer="rms", gate=True)
    model, _ = linscale.load(convert(read_teacher(pristine), tmp_path / "out", mixer))
    with torch.no_grad():
        assert model(text).logits.isfinite().all()
