"""Training on a GPU: compiled blocks, sharded or not, do what eager ones do. Run by `make test-gpu`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from linscale.config import to_dict
from linscale.models import CONFIGS, LlamaConfig, build_model
from linscale.models.linearized import MIXERS, LinearizedConfig
from linscale.run_folder import latest_records
from linscale.train.capture import on_cuda
from linscale.train.config import RunConfig
from linscale.train.trainer import train

from .teachers import save_run
from .test_parallel import write_config

Make = Callable[..., RunConfig]
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]
SHAPE = {"d_model": 128, "n_layers": 3, "head_dim": 64, "d_ff": 256}
SHAPES = {arch: {"arch": arch, **SHAPE} for arch in CONFIGS}
SHAPES["recurrent_transformer"]["recurrence"] = {"block": 8}  # of texts of 32 tokens


def losses(folder: Path) -> torch.Tensor:
    records = latest_records(folder / "metrics.jsonl", ("step", "metric"))
    return torch.tensor([record["value"] for record in records if record["metric"] == "loss"])


@pytest.mark.parametrize("arch", CONFIGS)
def test_compiled_and_recomputed_blocks_train_as_eager_ones_do(make: Make, tmp_path: Path, arch: str) -> None:
    for name, compiled, mode in (("eager", "off", "none"), ("compiled", "on", "none"), ("cheap", "on", "cheap")):
        model = {**SHAPES[arch], "softmax_every": 3}
        config = make(model=model, device="cuda", compile=compiled, activation_checkpointing=mode, lr=1e-3)
        assert train(tmp_path / name, config)["state"] == "done"
    eager = losses(tmp_path / "eager")
    assert eager[-1] < eager[0]
    for name in ("compiled", "cheap"):
        torch.testing.assert_close(losses(tmp_path / name), eager, rtol=1e-2, atol=0)  # bf16


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("arch", CONFIGS)
def test_a_captured_step_is_that_of_its_launches(make: Make, tmp_path: Path, arch: str, compiled: str) -> None:
    for capture in ("off", "on"):
        model = {**SHAPES[arch], "softmax_every": 3}
        config = make(model=model, device="cuda", compile=compiled, capture=capture, micro_batch=None, lr=1e-3)
        assert train(tmp_path / capture, config)["state"] == "done"
    torch.testing.assert_close(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("capture", ["off", "on"])
def test_what_is_dropped_out_differs_from_step_to_step(make: Make, tmp_path: Path, capture: str) -> None:
    """At a rate near zero a batch that comes again has the loss of what is left in: never the same twice."""
    config = make(
        model=SHAPES["recurrent_transformer"], device="cuda", capture=capture, micro_batch=None, dropout=0.3, lr=1e-12
    )
    train(tmp_path / "run", config)
    found = losses(tmp_path / "run")
    assert len(found.unique()) == len(found)
    again = train(tmp_path / "again", config) and losses(tmp_path / "again")
    torch.testing.assert_close(again, found, rtol=1e-3, atol=0)


def test_a_recording_that_failed_leaves_the_generator_as_it_was() -> None:
    """What waits for the device cannot be recorded; random numbers can be drawn again, and recorded."""

    def draw(wait: bool) -> torch.Tensor:
        x = torch.rand(4, device="cuda")
        if wait and torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return x

    torch.manual_seed(5)
    with pytest.raises(RuntimeError):
        on_cuda(lambda: draw(wait=True))
    replay, drawn = on_cuda(lambda: draw(wait=False))
    replay()
    torch.manual_seed(5)
    assert torch.equal(drawn, draw(wait=False))


@pytest.mark.parametrize("arch", CONFIGS)
def test_packed_documents_train_compiled_as_eager(make: Make, tmp_path: Path, arch: str) -> None:
    """Their number differs from batch to batch. In fp32: Adam spreads the rounding of bf16 too far."""
    for compiled in ("off", "on"):
        model = {**SHAPES[arch], "softmax_every": 3}
        config = make(model=model, device="cuda", compile=compiled, documents=True, lr=1e-3, precision="fp32")
        assert train(tmp_path / compiled, config)
    torch.testing.assert_close(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=2e-3, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("pieces", [1, 2])
def test_two_gpus_train_as_one_does(make: Make, tmp_path: Path, pieces: int) -> None:
    for arch in CONFIGS:
        if arch == "recurrent_transformer" and pieces > 1:
            continue  # its windows are read one after another
        model = SHAPES[arch]
        alone = make(model=model, device="cuda", lr=1e-3)
        train(tmp_path / arch / "one", alone)
        config = write_config(
            make(model=model, device="cuda", lr=1e-3, sequence_parallel=pieces), tmp_path / "run.toml"
        )
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launcher, "-m", "linscale", "train", str(config), "--out", str(tmp_path / arch / "two")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        torch.testing.assert_close(losses(tmp_path / arch / "two"), losses(tmp_path / arch / "one"), rtol=1e-2, atol=0)


@pytest.mark.parametrize("loss", ["attention", "logits"])
def test_a_taught_run_does_on_a_gpu_what_it_does_eagerly(make: Make, tmp_path: Path, loss: str) -> None:
    """Compiled, recomputed, as one graph; and each of its steps that of the CPU but for bf16."""
    shape = {**SHAPE, "vocab_size": 257, "init_std": 0.1}
    teacher = build_model(LlamaConfig(**shape))
    student = build_model(LinearizedConfig(**shape, linear=MIXERS["gated"], softmax_layers=[2]), seed=1)
    student.load_state_dict(teacher.state_dict(), strict=False)
    folders = [str(save_run(model, tmp_path / name)) for name, model in (("teacher", teacher), ("start", student))]
    taught = {"folder": folders[0], "loss": loss}
    ways = {
        "cpu": {"device": "cpu"}, "eager": {"compile": "off"}, "compiled": {"compile": "on"},
        "cheap": {"compile": "on", "activation_checkpointing": "cheap"}, "graph": {"compile": "on", "capture": "on"},
    }  # fmt: skip
    for name, way in ways.items():
        values = {"device": "cuda", "trained": "mixers", "lr": 1e-3, **way}
        config = make(model=to_dict(student.config), start=folders[1], teacher=taught, **values)
        assert train(tmp_path / name, config)["state"] == "done"
    for name in ways:
        torch.testing.assert_close(losses(tmp_path / name), losses(tmp_path / "cpu"), rtol=5e-2, atol=1e-5)
    for name in ("compiled", "cheap", "graph"):
        torch.testing.assert_close(losses(tmp_path / name), losses(tmp_path / "eager"), rtol=2e-2, atol=1e-5)
