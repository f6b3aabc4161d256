"""How fast a trained model writes, as benchmarks/decode.py measures it: one text by its length, and many at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from linscale.data.tokenizer import Tokenizer
from linscale.models import LanguageModel

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
import decode_ours
from decode_setting import setting_of

if TYPE_CHECKING:
    from scores import Measures

SHORT = 256  # tokens that many texts are written behind


class Trained(decode_ours.Ours):
    """A model that is there, in place of one with random weights."""

    def __init__(self, name: str, model: LanguageModel, tokenizer: Tokenizer, measures: Measures) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        setting = setting_of(device, tiny=False, steps=measures.steps)
        setting.tokenizer = tokenizer
        setting.slots, setting.marks, setting.peer_texts = measures.slots, measures.marks, measures.slots
        setting.prompt = setting.short = min(SHORT, measures.marks[0])
        setting.model = lambda arch: model.to(device).eval()  # type: ignore[method-assign]
        super().__init__(name, setting)


def rows(name: str, model: LanguageModel, tokenizer: Tokenizer, measures: Measures) -> Iterator[dict[str, Any]]:
    """`tokens`: one text behind so many, ms a token, bytes of its state and of everything; `slots`: texts at once."""
    bench = Trained(name, model, tokenizer, measures)
    with torch.no_grad():
        yield from decode_ours.length(bench)
        yield from decode_ours.engine(bench)
