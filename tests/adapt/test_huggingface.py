"""Hugging Face folders against transformers and safetensors: same bits, same logits, all else refused by name."""

import json
import re
import shutil
import struct
import weakref
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import linscale
from linscale import checkpoint
from linscale.adapt import huggingface
from linscale.adapt.huggingface import export, import_folder
from linscale.adapt.tensor_file import entries_of, write_file
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.generate.batch import greedy
from linscale.layers import RopeScaling
from tests.adapt.folders import ROPES, close, their_folder, their_model
from tests.adapt.runs import run_of, tiny, weights
from tests.lazy import Lazy
from tests.quick import quick

transformers = Lazy("transformers")

SCALINGS = {
    "default": None,
    "linear": RopeScaling(kind="linear", factor=3.0),
    "llama3": RopeScaling(kind="llama3", factor=8.0, original_length=32, low_freq_factor=2.0),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_length=32, beta_fast=20.0, attention_factor=1.2),
}


HEADS = [(4, True), (2, False), (1, True)]


@pytest.mark.parametrize(
    "case", quick([(rope, *heads) for heads in HEADS for rope in ROPES], *((rope, 2, False) for rope in ROPES),
                  *(("default", *heads) for heads in HEADS))
)  # fmt: skip
def test_an_imported_llama_has_the_logits_of_transformers(tmp_path, text, case):
    rope, kv_heads, tied = case
    theirs = their_model(rope, kv_heads, tied)
    ours, tokenizer = linscale.load(import_folder(their_folder(tmp_path / "hf", theirs), tmp_path / "run"))
    with torch.no_grad():
        close(ours(text).logits, theirs(text).logits)
    assert tokenizer.name == "byte"
    assert (ours.config.kv_heads, ours.config.tie_embeddings) == (kv_heads, tied)


def test_a_mistral_without_a_window_is_a_llama(tmp_path, text):
    values = their_model().config.to_dict() | {"sliding_window": None}
    theirs = transformers.MistralForCausalLM(
        transformers.MistralConfig.from_dict({**values, "model_type": "mistral"})
    ).eval()
    folder = their_folder(tmp_path / "hf", theirs)
    ours, _ = linscale.load(import_folder(folder, tmp_path / "run"))
    with torch.no_grad():
        close(ours(text).logits, theirs(text).logits)
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "mistral"
    del values["sliding_window"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="sliding_window = 4096: not supported"):
        import_folder(folder, tmp_path / "other")


@pytest.mark.parametrize("rope", SCALINGS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_llama_has_its_logits_in_transformers(tmp_path, text, rope, tied):
    ours = tiny("llama", n_kv_heads=2, tie_embeddings=tied, rope_base=300.0, rope_scaling=SCALINGS[rope])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export(run_of(ours, tmp_path / "run"), tmp_path / "hf"))
    assert type(theirs) is transformers.LlamaForCausalLM
    with torch.no_grad():
        close(theirs(text).logits, ours(text).logits)


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("arch", ["llama", "tnl", "hgrn2", "cosformer2"])
def test_export_then_import_gives_the_same_bits(tmp_path, arch, every):
    fields = {"n_kv_heads": 2, "rope_scaling": SCALINGS["yarn"]} if every else {}
    ours = tiny(arch, softmax_every=every, tie_embeddings=not every, **fields)
    run = run_of(ours, tmp_path / "run")
    back = import_folder(export(run, tmp_path / "hf", shard_bytes=20_000), tmp_path / "back")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    assert weights(back).read_bytes() == weights(run).read_bytes()
    model, tokenizer = linscale.load(back)
    assert model.config == (ours.config if arch != "llama" else model.config)
    assert tokenizer.fingerprint == load_tokenizer("byte").fingerprint
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
def test_import_then_export_gives_the_same_tensors(tmp_path, dtype, tied):
    theirs = their_model("llama3", tied=tied).to(dtype)
    folder = their_folder(tmp_path / "hf", theirs, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    again = export(import_folder(folder, tmp_path / "run"), tmp_path / "again")
    found, expected = load_file(again / "model.safetensors"), {}
    for file in folder.glob("*.safetensors"):
        expected |= load_file(file)
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == dtype and torch.equal(found[name], expected[name]) for name in expected)
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, again))
    loaded = transformers.LlamaConfig.from_pretrained(again)
    assert loaded.rope_parameters == {**before["rope_parameters"], **loaded.rope_parameters}
    for field in ("max_position_embeddings", "hidden_size", "num_key_value_heads", "dtype", "eos_token_id"):
        assert after[field] == before[field], field
    assert linscale.load(tmp_path / "run")[0].embedding.weight.dtype == dtype


def test_a_dtype_that_is_asked_for_rounds_products_and_leaves_what_decides_over_time(tmp_path):
    ours = tiny("hgrn2", softmax_every=2)
    half = load_file(export(run_of(ours, tmp_path / "run"), tmp_path / "hf", "bf16") / "model.safetensors")
    assert half["model.lower_bound_logits"].dtype == torch.float32
    assert torch.equal(half["model.embedding.weight"], ours.embedding.weight.bfloat16())
    run = import_folder(tmp_path / "hf", tmp_path / "back", "fp32")
    assert linscale.load(run)[0].embedding.weight.dtype == torch.float32
    assert linscale.load(import_folder(tmp_path / "hf", tmp_path / "same"))[0].embedding.weight.dtype == torch.bfloat16
    llama = load_file(export(run_of(tiny("llama"), tmp_path / "l"), tmp_path / "lhf", "fp16") / "model.safetensors")
    assert {tensor.dtype for tensor in llama.values()} == {torch.float16}


def test_files_are_those_of_safetensors(tmp_path):
    tensors = {"b": torch.randn(3, 5).bfloat16(), "a": torch.randn(7), "é": torch.randn(()), "none": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = write_file(tmp_path / "ours.safetensors", entries_of(tmp_path), tensors.__getitem__)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert written["sha256"] == checkpoint.sha256(tmp_path / "ours.safetensors")


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    alive, read = [], huggingface.read_tensor

    def watched(name, entry):
        assert not [reference for reference in alive if reference() is not None], name
        tensor = read(name, entry)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(huggingface, "read_tensor", watched)
    for dtype in (None, "bf16"):
        place = tmp_path / str(dtype)
        export(run_of(tiny("llama", tie_embeddings=False), place / "run"), place / "hf", dtype)
        import_folder(place / "hf", place / "back", dtype)
    assert len(alive) == 4 * 21


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return their_folder(tmp_path_factory.mktemp("hf") / "hf", their_model())


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "hf"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2': expected one of llama, mistral"),
        ({"attention_bias": True}, "attention_bias = True: not supported; expected False"),
        ({"sliding_window": 4096}, "sliding_window = 4096: not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': not supported; expected 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}: not supported"),
        ({"head_dim": 32}, "head_dim = 32: 4 heads make 128, not hidden_size = 64"),
        ({"hidden_size": None}, "hidden_size = None: expected a whole number"),
        ({"num_key_value_heads": 3}, "n_kv_heads = 3 does not divide the number of heads, 4"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic': not supported; its"),
        ({"rope_parameters": "linear"}, "rope_parameters = 'linear': expected a table, or null"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, r"not supported; expected one of default"),
        ({"eos_token_id": -1}, "eos_token_id = -1: no token of"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope': not supported; expected one of default"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "beta": 1}}, "beta: not a field of rope_type"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor = 0.5"),
        ({"intermediate_size": 97}, "gate_proj.weight' is (96, 64), but config.json makes it (97, 64)"),
        ({"num_hidden_layers": 1}, "unknown tensor 'model.layers.1.input_layernorm.weight' (9 in all)"),
        ({"num_hidden_layers": 3}, "missing tensor 'model.layers.2.input_layernorm.weight' (9 in all)"),
        ({"tie_word_embeddings": True}, "'lm_head.weight' differs from 'model.embed_tokens.weight'"),
        ({"eos_token_id": 999}, "eos_token_id = 999: no token of"),
        ({"vocab_size": 99}, "'model.embed_tokens.weight' is (257, 64)"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name_and_leaves_nothing(folder, tmp_path, changes, problem):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(UserError, match=re.escape(problem)) as error:
        import_folder(folder, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def integers(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"].int()}, folder / "model.safetensors")


def index(places):
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (truncate, "not a whole safetensors file"),
        (integers, "tensor 'lm_head.weight' is I32; expected one of F32, BF16, F16"),
        (index({}), "no weight_map"),
        (index({"x": "gone.safetensors"}), "gone.safetensors: no such file"),
        (index({"x": "../model.safetensors"}), "no such file, but model.safetensors.index.json names it"),
        (index({"x": "model.safetensors"}), "missing tensor 'x'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors and no model.safetensors.index"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json; write one with transformers"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "not in the Hugging Face tokenizer.json format"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged JSON"),
    ],
)
def test_damaged_folders_are_refused(folder, tmp_path, damage, problem):
    damage(folder)
    with pytest.raises(UserError, match=re.escape(problem)):
        import_folder(folder, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_outputs_are_whole_or_absent_and_never_replace_anything(folder, tmp_path, monkeypatch):
    run = import_folder(folder, tmp_path / "run")
    for make in (lambda: import_folder(folder, run), lambda: export(run, folder)):
        with pytest.raises(UserError, match="exists already; expected the path of a new folder"):
            make()
    with pytest.raises(UserError, match="no such folder"):
        export(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="neither a checkpoint nor a run folder"):
        export(folder, tmp_path / "out")

    def fail(*arguments):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(huggingface, "model_card", fail)
    with pytest.raises(UserError, match="disk is full"):
        export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def test_old_constants_and_a_stored_tied_head_are_passed_over(tmp_path):
    folder = their_folder(tmp_path / "hf", their_model(tied=True))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors")
    assert linscale.load(import_folder(folder, tmp_path / "run"))[0].head is None


def test_the_special_tokens_of_a_model_come_along(tmp_path):
    theirs = their_model()
    theirs.config.bos_token_id, theirs.config.eos_token_id = 1, [2, 3]
    folder = their_folder(tmp_path / "hf", theirs)
    content = train_bpe(["some text for some words"] * 5, 300).content
    names = [token for token, number in sorted(content["model"]["vocab"].items(), key=lambda item: item[1])]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, its model 257"):
        import_folder(folder, tmp_path / "run")
    tensors = {name: torch.cat([x, x])[:512] if x.shape[0] == 257 else x for name, x in theirs.state_dict().items()}
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "vocab_size": 512}))
    run = import_folder(folder, tmp_path / "run")
    tokenizer = linscale.load(run)[1]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.decode([1, 2]) == names[1]  # what ends a text is no text
    again = export(run, tmp_path / "again")
    assert (again / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((again / "tokenizer.json").read_text()) == content
    assert transformers.AutoTokenizer.from_pretrained(again)("some text")["input_ids"] == tokenizer.encode("some text")


def test_a_byte_tokenizer_reads_alike_in_transformers(tmp_path):
    out = export(run_of(tiny("tnl"), tmp_path / "run"), tmp_path / "hf")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(out), load_tokenizer("byte")
    for text in ("", "a", " to be\n\n or\tnot ", "é漢字🦋", "".join(map(chr, range(1, 700)))):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.model_max_length) == (256, 256, huggingface.CONTEXT)


def test_the_model_card_says_where_the_weights_come_from(tmp_path):
    run = run_of(tiny("hgrn2"), tmp_path / "run")
    train = {"length": 64, "batch_tokens": 128, "tokens": 384, "lr": 0.003, "seed": 7}
    settings = {"run": "small", "train": train, "data": {"path": "/home/me/corpus", "fingerprint": "0123456789abcdef"}}
    (run / "config.json").write_text(json.dumps({**settings, "precision": "fp32", "code": "0.1.0+aaaa"}))
    record = {"run": "small", "step": 3, "metric": "loss", "value": 2.5}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({**record, "step": 2}) + "\n")
    (run / "evaluations.jsonl").write_text(json.dumps({**record, "task": "validation", "value": 2.75}) + "\n")
    out = export(run, tmp_path / "hf")
    card = (out / "README.md").read_text()
    for row in (
        "# small", "| step | 3 |", "| tokens | 72 |", "| data fingerprint | `0123456789abcdef` |",
        "| train.lr | 0.003 |",
        "| training loss (nats per token) | 2.5000 |", "| validation: loss | 2.7500 |", "| `arch` | hgrn2 |",
        f"`{checkpoint.sha256(weights(run))}`", "0.1.0+aaaa", "begins behind `<|endoftext|>`",
    ):  # fmt: skip
        assert row in card, row
    assert "/home/me" not in card
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 64


ROOT = Path(__file__).parents[2]
STORIES = [ROOT / "data/models/stories260K", ROOT.parent / "shared/data/models/stories260K"]


def stories_folder(source, folder):
    """The 260K model of llama2.c as transformers saves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments/linearize"))
        from llama2c_folder import read_model
    config, parts = read_model(source / "stories260K.bin")
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    theirs.load_state_dict(parts, strict=False, assign=True)
    theirs.tie_weights()
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(stories_tokenizer(source / "tok512.bin")))
    return folder


def stories_tokenizer(path):
    """tok512.bin (the longest token, then score, length and bytes of each) as byte-fallback BPE would decode it."""
    data, place, pieces = path.read_bytes(), 4, []
    while place < len(data):
        (length,) = struct.unpack("i", data[place + 4 : place + 8])
        pieces.append(data[place + 8 : place + 8 + length].decode().strip("\n"))
        place += 8 + length
    vocabulary = {f"{piece}~{n}" if pieces.index(piece) < n else piece: n for n, piece in enumerate(pieces)}
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    found.decoder = tokenizers.decoders.Fuse()
    return json.loads(found.to_str())


def test_a_real_model_tells_a_story(tmp_path):
    source = next((place for place in STORIES if place.is_dir()), None)
    if source is None:
        pytest.skip("no model at data/models/stories260K")
    folder = stories_folder(source, tmp_path / "hf")
    ours, tokenizer = linscale.load(import_folder(folder, tmp_path / "run"))
    assert (ours.config.n_heads, ours.config.kv_heads) == (8, 4)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    (made,) = greedy(ours, tokenizer, [[1]], max_tokens=60)
    assert tokenizer.decode(made).startswith(" Once upon a time, there was a little girl named Lily.")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.generate(torch.tensor([[1]]), max_new_tokens=60, do_sample=False)[0, 1:].tolist() == made
