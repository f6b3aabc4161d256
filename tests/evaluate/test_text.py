"""Loss on any text: windows, pieces and units, against one forward pass over the whole."""

import math
from pathlib import Path

import pytest
import torch

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate import memory
from linscale.evaluate import task as module
from linscale.evaluate.text import TextLoss
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")
WORDS = "the cat sat on a mat\nand ran far, far away from the dog that sat on it all day long"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "story.txt").write_text(WORDS)
    return tmp_path / "story.txt"


@pytest.fixture(params=["hgrn2", "llama"])
def model(request):
    shape = {"vocab_size": 257, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.3}
    return build_model(CONFIGS[request.param](**shape)).double().eval()


def values(task, model):
    with torch.no_grad():
        return {result.metric: result for result in task.run(model, BYTES)}


def losses(model, tokens):
    """Of every token but the first."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        return model(ids[:, :-1], targets=ids[:, 1:]).loss[0]


def test_one_window_is_one_forward_pass_in_every_unit(path, model, monkeypatch):
    expected = losses(model, [BYTES.eos_id, *BYTES.encode(WORDS)])
    for piece in (8192, 7):
        monkeypatch.setattr(module, "PIECE", piece)
        found = values(TextLoss(path, window=1000), model)
        assert found["loss"].value == pytest.approx(expected.mean().item(), rel=1e-10)
        assert (found["loss"].count, found["loss"].se) == (len(WORDS), None)
        assert found["nats_per_word"].value == pytest.approx(expected.sum().item() / len(WORDS.split()))
        assert found["bits_per_byte"].value == pytest.approx(expected.mean().item() / math.log(2))
        for first in (1, 8, 64):
            there = expected[first - 1 : 2 * first - 1].mean().item()
            assert found[f"loss_from_{first}"].value == pytest.approx(there)


def test_disjoint_windows_know_nothing_of_each_other(path, model):
    ids = [BYTES.eos_id, *BYTES.encode(WORDS)]
    parts = [losses(model, [BYTES.eos_id, *ids[k + 1 : k + 21]]) for k in range(0, len(WORDS), 20)]
    parts[1:] = [losses(model, [BYTES.eos_id, *ids[k + 1 : k + 21]]) for k in range(20, len(WORDS), 20)]
    found = values(TextLoss(path, window=20), model)
    # The first token of a window is read as the end of a text, so it predicts the next one without context.
    assert found["loss"].count == len(WORDS)
    assert found["loss"].value == pytest.approx(torch.cat(parts).mean().item())


def test_sliding_windows_score_each_token_once_with_more_context(path, model):
    ids = [BYTES.eos_id, *BYTES.encode(WORDS)]
    expected = [losses(model, ids[:21])]
    for end in range(25, len(ids) + 4, 5):
        end = min(end, len(ids) - 1)
        scored = len(torch.cat(expected))
        window = [BYTES.eos_id, *ids[end - 20 + 1 : end + 1]]
        expected.append(losses(model, window)[scored - end :])
        if end == len(ids) - 1:
            break
    found = values(TextLoss(path, window=20, stride=5), model)
    assert found["loss"].count == len(WORDS)
    assert found["loss"].value == pytest.approx(torch.cat(expected).mean().item())


def test_what_makes_another_number_makes_another_version(path, tmp_path):
    versions = {TextLoss(path, window=20).version(BYTES), TextLoss(path, window=20, stride=5).version(BYTES)}
    (tmp_path / "story.txt").write_text(WORDS + "!")
    versions.add(TextLoss(path, window=20).version(BYTES))
    assert len(versions) == 3
    with pytest.raises(UserError, match="stride = 30: expected 1 to window = 20"):
        TextLoss(path, window=20, stride=30)


def test_a_text_without_a_word_is_refused_before_a_model_is_there(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"blank\.txt: white space alone; expected a text with words"):
        TextLoss(tmp_path / "blank.txt", window=20).version(BYTES)


def test_a_window_whose_keys_and_values_do_not_fit_is_an_obstacle(path, model, monkeypatch):
    task = TextLoss(path, window=10**9)  # the text bounds it
    assert task.obstacle(model, BYTES) is None
    monkeypatch.setattr(memory, "free_bytes", lambda device: 30_000)
    assert TextLoss(path, window=10).obstacle(model, BYTES) is None
    found = task.obstacle(model, BYTES)
    if model.config.arch == "llama":
        assert f"for the keys and values of {len(WORDS)} tokens, cpu has 30kB free" in found
        assert TextLoss(path, window=80).obstacle(model, BYTES).count("80 tokens") == 1
    else:
        assert found is None  # a state does not grow


def test_the_folder_that_a_command_stands_in_has_a_name(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert TextLoss(Path("."), window=20).name == f"text-{path.parent.name}"
    assert TextLoss(Path("builtin:tinyshakespeare"), window=20).name == "text-tinyshakespeare"


def test_standard_errors_are_over_windows(path, model):
    ids = [BYTES.eos_id, *BYTES.encode(WORDS)]
    task, parts = values(TextLoss(path, window=20), model), []
    for start in range(0, len(WORDS), 20):
        parts.append(losses(model, [BYTES.eos_id, *ids[start + 1 : start + 21]]))
    there = [part[3:7] for part in parts if len(part) > 3]
    means = torch.stack([part.mean() for part in there])
    assert len(there) < len(parts)  # the last window is too short
    assert task["loss_from_4"].value == pytest.approx(torch.cat(there).mean().item())
    assert task["loss_from_4"].se == pytest.approx(means.std().item() / len(means) ** 0.5)
    assert task["loss_from_4"].count == sum(map(len, there))
    assert values(TextLoss(path, window=1000), model)["loss_from_4"].se is None
