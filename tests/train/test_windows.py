"""Training a recurrent transformer: its windows by themselves, what runs refuse, and dropout that can be resumed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.config import UserError
from linscale.distributed import ALONE
from linscale.models import LanguageModel, Recurrence, RecurrentTransformerConfig
from linscale.run_folder import latest_records
from linscale.train import parallel
from linscale.train.config import RunConfig, TrainConfig
from linscale.train.parallel import build_for_training
from linscale.train.trainer import train

Make = Callable[..., RunConfig]
FORMS: list[dict[str, Any]] = [{}, {"alpha": 0.0, "alpha_form": "fixed"}, {"alpha_form": "gated"}]
WINDOWS = {"arch": "recurrent_transformer", "recurrence": {"block": 8}}


def model_of(form: dict[str, Any], mode: str, length: int) -> LanguageModel:
    recipe = TrainConfig(
        tokens=length, batch_tokens=length, length=length, validation_tokens=length, activation_checkpointing=mode
    )
    shape = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "head_dim": 8, "d_ff": 48}
    config = RecurrentTransformerConfig(**shape, recurrence=Recurrence(block=8, **form))
    return build_for_training(config, recipe, ALONE, "cpu", "fp32")


def text_of(length: int) -> torch.Tensor:
    return torch.randint(50, (1, length), generator=torch.Generator().manual_seed(0))


def gradients(form: dict[str, Any], mode: str) -> list[torch.Tensor]:
    """The loss of a text of 40 tokens and its gradients."""
    model = model_of(form, mode, 40)
    loss = model(text_of(40), targets=text_of(40)).loss.mean()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("form", FORMS)
def test_windows_that_are_recomputed_give_the_same(form: dict[str, Any]) -> None:
    expected = gradients(form, "none")
    for mode in ("full", "cheap"):
        torch.testing.assert_close(gradients(form, mode), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the compiler, unseen else
@pytest.mark.parametrize("form", FORMS)
def test_windows_that_are_compiled_give_the_same(form: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    eager = partial(torch.compile, backend="aot_eager")  # as inductor, without its compiler
    monkeypatch.setattr(torch, "compile", lambda part, **options: eager(part, **options))
    expected = gradients(form, "none")
    monkeypatch.setattr(parallel, "compiles", lambda train, device: True)
    for mode in ("none", "full"):
        torch.testing.assert_close(gradients(form, mode), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_recomputed_windows_keep_their_states_alone(form: dict[str, Any]) -> None:
    """Numbers kept of a token and layer, in widths: 40 to 50 of what windows make, under 10 of what they hand on."""

    def kept(mode: str, length: int) -> float:
        seen: dict[int, torch.Tensor] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            seen[x.untyped_storage().data_ptr()] = x
            return x

        model = model_of(form, mode, length)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(text_of(length), targets=text_of(length)).loss.mean()
        weights = {x.untyped_storage().data_ptr() for x in model.parameters()}
        assert loss.requires_grad
        return sum(x.untyped_storage().nbytes() for at, x in seen.items() if at not in weights) / (4 * 32 * 2)

    for mode, least, most in (("none", 30, 60), ("full", 3, 10)):
        rate = (kept(mode, 192) - kept(mode, 64)) / 128
        assert least < rate < most


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({"recurrence": {"block": 17}}, {}, "model.recurrence.block = 17: a window of 34 tokens is longer"),
        ({"recurrence": {"block": 64}}, {}, "model.recurrence.block = 64: a window of 128 tokens is longer"),
        ({"recurrence": {"block": 8, "positions": "table", "table": 16}}, {}, "model.recurrence.table = 16: expected"),
        (WINDOWS, {"sequence_parallel": 2}, "train.sequence_parallel = 2: a recurrent transformer reads its windows"),
        (WINDOWS, {"dropout": 1.0}, "train.dropout = 1.0"),
    ],
)
def test_what_a_run_refuses(make: Make, model: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        make(model={"arch": "recurrent_transformer", **model}, **changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_two_blocks_a_text_are_no_edge(make: Make, tmp_path: Path) -> None:
    config = make(model={"arch": "recurrent_transformer", "recurrence": {"block": 16}}, lr=1e-2)
    status = train(tmp_path / "run", config)
    assert status["state"] == "done"
    losses = [record["value"] for record in latest_records(tmp_path / "run" / "metrics.jsonl", ("step", "metric"))
              if record["metric"] == "loss"]  # fmt: skip
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", [WINDOWS, {"arch": "llama"}])
def test_a_run_with_dropout_resumes_to_the_same_bits(make: Make, tmp_path: Path, model: dict[str, Any]) -> None:
    config = make(model=model, dropout=0.2)
    train(tmp_path / "whole", config)
    seen: list[int] = []
    train(tmp_path / "parts", config, on_step=lambda status: seen.append(status["step"]), stop=lambda: bool(seen))
    torch.rand(3)
    train(tmp_path / "parts", config)
    train(tmp_path / "other", make(model=model))
    finals = [tmp_path / name / "checkpoints" / "step_00000010" for name in ("whole", "parts", "other")]
    whole, parts, other = ((final / "model.safetensors").read_bytes() for final in finals)
    assert whole == parts
    assert whole != other
