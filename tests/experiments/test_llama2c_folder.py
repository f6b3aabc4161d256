"""Models of llama2.c as Hugging Face folders: its rotations, its order of tensors, its tokenizer."""

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from linscale.ops import rotate_half

ROOT = Path(__file__).parent.parent.parent / "experiments" / "linearize"
DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, LENGTH = 16, 24, 2, 4, 2, 7, 5


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    import llama2c_folder

    return llama2c_folder


@pytest.mark.parametrize("shared", [True, False])
def test_every_tensor_is_found_in_its_place(script: Any, tmp_path: Path, shared: bool) -> None:
    kv_dim, widths = DIM // HEADS * KV, {"norm": DIM, "gate": HIDDEN * DIM}
    per_layer = [DIM, DIM * DIM, kv_dim * DIM, kv_dim * DIM, DIM * DIM, DIM, *[widths["gate"]] * 3]
    count = VOCAB * DIM + LAYERS * sum(per_layer) + DIM + LENGTH * (DIM // HEADS) + (0 if shared else VOCAB * DIM)
    numbers = np.arange(count, dtype=np.float32)
    head = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB if shared else -VOCAB, LENGTH)
    (tmp_path / "m.bin").write_bytes(head + numbers.tobytes())
    config, tensors = script.read_model(tmp_path / "m.bin")
    assert (config["num_key_value_heads"], config["vocab_size"], config["tie_word_embeddings"]) == (KV, VOCAB, shared)
    assert tensors["model.embed_tokens.weight"].shape == (VOCAB, DIM)
    before_down = VOCAB * DIM + LAYERS * sum(per_layer[:7])  # w1 of all layers stands before w2
    assert tensors["model.layers.1.mlp.down_proj.weight"].flatten()[0] == before_down + HIDDEN * DIM
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (DIM, HIDDEN)
    last = "model.norm.weight" if shared else "lm_head.weight"
    assert tensors[last].flatten()[-1] == count - 1 - (LENGTH * (DIM // HEADS) if shared else 0)
    assert len(tensors) == 2 + 9 * LAYERS + (not shared)


def test_neighbours_turned_are_halves_turned(script: Any) -> None:
    weight, x, head_dim = torch.randn(8, 6), torch.randn(3, 6), 4
    angles = torch.randn(3, head_dim // 2)
    pairs = torch.view_as_complex((x @ weight.T).view(3, 2, head_dim // 2, 2))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)
    rows = (x @ script.halves(weight, head_dim).T).view(1, 3, 2, head_dim)
    found = rotate_half(rows, angles.cos()[None], angles.sin()[None])[0]
    back = torch.stack(found.chunk(2, dim=-1), -1).flatten(2)
    torch.testing.assert_close(back, expected)


def llama2c_encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """What its `encode` does: characters or bytes, then the best merge again and again."""
    found = [1, pieces.index(" ")]
    for character in text:
        found += [pieces.index(character)] if character in pieces else [byte + 3 for byte in character.encode()]
    while True:
        pairs = [pieces[a] + pieces[b] for a, b in itertools.pairwise(found)]
        best = max(
            (n for n, pair in enumerate(pairs) if pair in pieces),
            default=None,
            key=lambda n: (scores[pieces.index(pairs[n])], -n),
        )
        if best is None:
            return found
        found[best : best + 2] = [pieces.index(pairs[best])]


def test_its_tokens_are_those_of_llama2c(script: Any, tmp_path: Path) -> None:
    merged = [" t", "he", " the", "in", "re", "here", "th", "ing", " a"]
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *" theinrgas"]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) - 259)]
    data = struct.pack("<i", 7)
    for piece, score in zip(pieces, scores, strict=True):
        data += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    (tmp_path / "t.bin").write_bytes(data)
    tokenizer = script.read_tokenizer(tmp_path / "t.bin", len(pieces))
    for text in ("the thing", "there  in\na string", "é is here", " a", "in the rain there"):
        assert tokenizer.encode(text).ids == llama2c_encode(text, pieces, scores), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
