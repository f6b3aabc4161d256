"""Checkpoints: what is read is what was written, and anything else is refused by name."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from linscale import checkpoint
from linscale.config import UserError, fingerprint, parse
from linscale.data.tokenizer import load_tokenizer
from linscale.models import LanguageModel, ModelConfig, build_model

ARCHITECTURES = ["llama", "tnl", "hgrn2", "cosformer2", "recurrent_transformer", "linearized"]


def tiny(arch: str, seed: int = 0, n_layers: int = 2) -> LanguageModel:
    shape = {"arch": arch, "vocab_size": 257, "d_model": 32, "n_layers": n_layers, "head_dim": 16, "d_ff": 64}
    model = build_model(parse(ModelConfig, shape))
    model.init_weights(seed)
    return model


def trained(arch: str = "hgrn2") -> tuple[LanguageModel, torch.optim.Optimizer]:
    """A model after one step, so that the optimizer has a state."""
    model = tiny(arch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    update(model, optimizer)
    return model, optimizer


def update(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    tokens = torch.arange(24).reshape(2, 12) * 7 % 257
    model(tokens, targets=tokens.roll(1, 1)).loss.mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint, at step 3."""
    run = tmp_path_factory.mktemp("pristine")
    model, optimizer = trained()
    tokenizer = load_tokenizer("byte")
    tokenizer.save(run)
    checkpoint.save(run, 3, model, optimizer, {"tokens": 72, "tokenizer": tokenizer.fingerprint})
    return run


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the run folder that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def only(run: Path) -> Path:
    return checkpoint.list_checkpoints(run)[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_loaded_model_has_the_same_tensors_and_logits(arch: str, tmp_path: Path) -> None:
    model, optimizer = trained(arch)
    loaded = checkpoint.load_model(checkpoint.save(tmp_path, 1, model, optimizer, {"tokens": 1}))
    assert loaded.config == model.config
    tensors, expected = checkpoint.model_tensors(loaded), checkpoint.model_tensors(model)
    assert {name: tensor.shape for name, tensor in model.named_parameters()}.items() <= {
        name: tensor.shape for name, tensor in expected.items()
    }.items()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_training_goes_on_from_a_restored_optimizer_to_the_same_bits(arch: str, tmp_path: Path) -> None:
    model, optimizer = trained(arch)
    path = checkpoint.save(tmp_path, 1, model, optimizer, {"tokens": 1})
    again = tiny(arch, seed=9)
    groups = list(again.parameters())[::-1]  # another order of the parameters: states are found by name
    fresh = torch.optim.AdamW([{"params": groups[:2]}, {"params": groups[2:]}], lr=0.01, fused=True)
    assert checkpoint.restore(path, again, fresh) == 1
    update(model, optimizer)
    update(again, fresh)
    expected = dict(model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in again.named_parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_any_changed_byte_is_noticed(run: Path, name: str) -> None:
    path = only(run) / name
    content, chance = path.read_bytes(), random.Random(name)
    for _ in range(12):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content) - 1)] ^= 1 << chance.randrange(7)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=name) as error:
            checkpoint.restore(only(run), (model := tiny("hgrn2")), torch.optim.AdamW(model.parameters(), fused=True))
        assert "\n" not in str(error.value)
    path.write_bytes(content)
    checkpoint.load_model(only(run))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_truncated_or_missing_file_is_named(run: Path, name: str) -> None:
    path = only(run) / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=name):
        checkpoint.verify(only(run), (checkpoint.MODEL, checkpoint.OPTIMIZER))
    path.unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.verify(only(run), (checkpoint.MODEL, checkpoint.OPTIMIZER))


def rewrite(path: Path, tensors: dict[str, torch.Tensor], name: str = checkpoint.MODEL) -> None:
    """Replace the tensors of a checkpoint with valid digests, as a foreign converter might."""
    save_file(tensors, path / name)
    manifest = json.loads((path / "checkpoint.json").read_text())
    manifest["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": checkpoint.sha256(path / name)}
    del manifest["fingerprint"]
    (path / "checkpoint.json").write_text(json.dumps({**manifest, "fingerprint": fingerprint(manifest)}))


def test_unknown_missing_and_misshapen_tensors_are_refused_by_name(run: Path) -> None:
    path = only(run)
    tensors = load_file(path / checkpoint.MODEL)
    first = sorted(tensors)[0]
    rewrite(path, {**tensors, "model.stray": torch.zeros(3)})
    with pytest.raises(UserError, match=r"unknown tensor 'model\.stray'"):
        checkpoint.load_model(path)
    rewrite(path, {name: tensor for name, tensor in tensors.items() if name != first})
    with pytest.raises(UserError, match=f"missing tensor '{first}'"):
        checkpoint.load_model(path)
    rewrite(path, {**tensors, first: tensors[first][:1].clone()})
    with pytest.raises(UserError, match=f"tensor '{first}'.*the model needs"):
        checkpoint.load_model(path)
    rewrite(path, {**tensors, first: tensors[first].half()})
    with pytest.raises(UserError, match=f"tensor '{first}' is torch.float16"):
        checkpoint.load_model(path)
    rewrite(path, tensors)
    state = load_file(path / checkpoint.OPTIMIZER)
    rewrite(path, {**state, "nowhere.exp_avg": torch.zeros(3)}, checkpoint.OPTIMIZER)
    with pytest.raises(UserError, match=r"unknown tensor 'nowhere\.exp_avg'"):
        checkpoint.restore(path, (model := tiny("hgrn2")), torch.optim.AdamW(model.parameters()))


def test_saving_again_replaces_a_damaged_checkpoint(run: Path) -> None:
    (only(run) / checkpoint.MODEL).write_bytes(b"damaged")
    checkpoint.save(run, 3, *trained(), {"tokens": 72})
    checkpoint.load_model(only(run))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000003"]


def test_what_a_killed_writer_left_is_invisible_and_cleaned(run: Path) -> None:
    left = run / "checkpoints" / ".step_00000009.4711.tmp"
    shutil.copytree(only(run), left)
    (run / ".status.json.4711.tmp").write_text("{")
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(run)] == [3]
    checkpoint.clean(run)
    assert not left.exists()
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "tokenizer.json"]


def test_the_newest_good_checkpoint_is_chosen(run: Path) -> None:
    model, optimizer = trained()
    for step in (5, 100_000_000):
        checkpoint.save(run, step, model, optimizer, {"tokens": 1})
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(run)] == [3, 5, 100_000_000]
    lines: list[str] = []
    (run / "checkpoints" / "step_100000000" / checkpoint.MODEL).write_bytes(b"")
    assert checkpoint.step_of(checkpoint.newest(run, report=lines.append) or Path()) == 5
    assert len(lines) == 1
    assert "step_100000000" in lines[0]
    checkpoint.prune_optimizers(run, keep=1)
    assert checkpoint.step_of(checkpoint.newest(run) or Path()) == 5
    with pytest.raises(UserError, match="no undamaged checkpoint with its optimizer state"):
        checkpoint.newest(run, resumable=True)
    assert checkpoint.newest(run / "checkpoints") is None


def test_a_run_and_a_checkpoint_load_with_their_tokenizer(run: Path, tmp_path: Path) -> None:
    for path in (run, only(run), str(run)):
        model, tokenizer = checkpoint.load(path)
        assert model.config.arch == "hgrn2"
        assert tokenizer.encode("ab") == [97, 98]
    alone = Path(shutil.copytree(only(run), tmp_path / "alone"))
    with pytest.raises(UserError, match=r"no tokenizer\.json beside it"):
        checkpoint.load(alone)
    shutil.copy(run / "tokenizer.json", alone)
    assert checkpoint.load(alone)[1].vocab_size == 257


def test_loading_an_older_checkpoint_than_the_newest_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.save(run, 4, *trained(), {"tokens": 1, "tokenizer": None})
    (run / "checkpoints" / "step_00000004" / "model.safetensors").write_bytes(b"damaged")
    checkpoint.load(run)
    assert "passing over a damaged checkpoint" in caplog.text
    assert "step_00000004" in caplog.text


def test_what_is_no_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a checkpoint nor a run folder"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load_model(run)
    checkpoint.save(run, 4, *trained(), {"tokens": 1, "tokenizer": "another"})
    with pytest.raises(UserError, match=r"tokenizer\.json: fingerprint .* but step_00000004 was trained with another"):
        checkpoint.load(run)
