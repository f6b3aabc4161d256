"""What bf16 states do to logits, in decode.py: the same text read token by token, with states in fp32 and in bf16."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode_cpu import CORPUS
from decode_setting import Setting
from torch import Tensor

from linscale import checkpoint
from linscale.data.tokenizer import Tokenizer
from linscale.generate.step import DecodingStep
from linscale.models import LanguageModel

MARKS = (1_000, 10_000, 100_000)
WINDOW, TEXTS = 64, 4  # logits of the last so many tokens before a mark, of so many texts
Row = dict[str, Any]


def rows(setting: Setting, runs: list[Path] | None, archs: list[str]) -> Iterator[Row]:
    """A row a mark: of the trained `runs`, or of models with random weights, which are not what a trained one is."""
    marks = (10, 40) if setting.tiny else MARKS
    for name in map(str, runs or [arch for arch in archs if arch != "llama"]):
        if runs:
            model, tokenizer = checkpoint.load(name)
            model = model.to(setting.device).float().eval()
        else:
            model, tokenizer = setting.model(name), setting.tokenizer
        text = text_of(tokenizer, marks[-1], setting.device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {parameters:,} parameters, {TEXTS} texts of {marks[-1]:,} tokens, read twice")
        exact, rounded = (windows(model, text, marks, setting, dtype) for dtype in (torch.float32, torch.bfloat16))
        for mark in marks:
            own = {"model": name, "arch": model.config.arch, "trained": bool(runs), "tokens": mark}
            yield own | compare(exact[mark], rounded[mark], targets(text, mark))


def text_of(tokenizer: Tokenizer, count: int, device: torch.device) -> Tensor:
    """(TEXTS, count) tokens of the corpus that ships, each from another place on and around."""
    whole = np.asarray(tokenizer.encode(CORPUS.read_text()), dtype=np.int64)
    starts = [len(whole) * text // TEXTS for text in range(TEXTS)]
    return torch.from_numpy(np.stack([np.resize(np.roll(whole, -start), count) for start in starts])).to(device)


def targets(text: Tensor, mark: int) -> Tensor:
    """The tokens that the logits of a mark's window are for: (n, TEXTS), where the text goes on."""
    window = min(WINDOW, mark)
    return text[:, mark - window + 1 : mark + 1].T


def windows(
    model: LanguageModel, text: Tensor, marks: tuple[int, ...], setting: Setting, states: torch.dtype
) -> dict[int, Tensor]:
    """Logits (n, TEXTS, V) of the last tokens before each mark."""
    step = DecodingStep(model, TEXTS, 1, dtype=setting.dtype, state_dtype=states)
    step.active.fill_(1)
    run = captured(step) if setting.device.type == "cuda" else step.run
    found: dict[int, list[Tensor]] = {mark: [] for mark in marks}
    for place in range(text.shape[1]):
        step.tokens.copy_(text[:, place])
        run()
        for mark in marks:
            if mark - WINDOW <= place < mark:
                found[mark].append(step.logits.clone())
    return {mark: torch.stack(logits) for mark, logits in found.items()}


def captured(step: DecodingStep) -> Any:
    """The step as a CUDA graph; what its warm-up left in the states is emptied."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    for slot in range(step.slots):
        step.put(slot, None, 0)
    return graph.replay


def compare(exact: Tensor, rounded: Tensor, targets: Tensor) -> Row:
    """What rounding changes: logits, relative to how far they are from their mean; probabilities; greedy tokens."""
    centred = exact - exact.mean(-1, keepdim=True)
    difference = rounded - exact
    difference = difference - difference.mean(-1, keepdim=True)
    p, q = exact.log_softmax(-1), rounded.log_softmax(-1)
    n = len(targets)  # the text's end has no next token
    losses = [-x[:n].gather(-1, targets[..., None]).mean().item() for x in (p, q)]
    return {
        "relative_error": (difference.norm() / centred.norm()).item(),
        "kl_nats": (p.exp() * (p - q)).sum(-1).mean().item(),
        "same_greedy": (exact.argmax(-1) == rounded.argmax(-1)).float().mean().item(),
        "loss": losses[0], "loss_difference": losses[1] - losses[0],
        "finite": all(map(math.isfinite, losses)),
    }  # fmt: skip
