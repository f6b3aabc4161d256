"""Invented evaluation sets, with the fields of the real ones and what is awkward in them; and a planted model."""

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linscale.data.sets import SETS
from linscale.evaluate.mmlu import SUBJECTS
from linscale.evaluate.questions import FORMS
from linscale.layers.softmax_attention import KeyValues
from linscale.models import CONFIGS, State

RECORDS = 40
LONGEST = 2048  # bytes that the planted model reads
WORDS = re.findall(r"\w+", "the cat sat on a warm mat and ran far away from old dogs that sing tonight över café")


class Inventor:
    """Texts from a seed: double spaces, white space at the ends, brackets of WikiHow's pages, capitals."""

    def __init__(self) -> None:
        self.random = random.Random(7)

    def text(self, least: int = 1, most: int = 9) -> str:
        text = " ".join(self.random.choices(WORDS, k=self.random.randint(least, most)))
        odd = self.random.choice(["", "", "", "  twice", " [title] Then", " [substeps] so", " ", "! 5", '"x"'])
        return self.random.choice(["", "", " "]) + text + odd

    def labelled(self, key: str) -> dict[str, Any]:
        count = self.random.choice([3, 4, 4, 5])
        labels = list("ABCDE"[:count])
        texts = [self.text(1, 4) for _ in labels]
        answer = self.random.choice(labels)
        return {"id": "x", key: self.text(), "choices": {"text": texts, "label": labels}, "answerKey": answer}

    def records(self, name: str) -> list[dict[str, Any]]:
        if name == "mmlu_test":
            return self.subjects()
        pick = self.random.choice
        make = {
            "boolq_dev": lambda: {"question": self.text(), "passage": self.text(5, 30), "answer": pick([True, False])},
            "piqa_valid": lambda: {
                "goal": self.text(), "sol1": self.text(), "sol2": self.text(), "label": pick([0, 1]),
            },
            "hellaswag_val": lambda: {
                "activity_label": self.text(1, 2), "ctx_a": self.text(), "ctx_b": pick(["", "He  is", "the cat"]),
                "endings": [self.text() for _ in range(4)], "label": pick("0123"),
            },
            "winogrande_xl_dev": lambda: {
                "sentence": f"{self.text()} {pick(['_', '_ ', '_s'])} {self.text()}", "option1": "the cat",
                "option2": "Ann", "answer": pick("12"),
            },
            "arc_easy_test": lambda: self.labelled("question"),
            "arc_challenge_test": lambda: self.labelled("question"),
            "openbookqa_test": lambda: self.labelled("question_stem"),
            "lambada_openai_test": lambda: {"text": self.text(5, 20).strip() + pick([" mat", "\n\nso", " far.", ""])},
            "sciq_validation": lambda: {
                "question": self.text(), "support": pick(["", " " + self.text(9, 20)]),
                "distractor1": self.text(1, 3), "distractor2": "a", "distractor3": "dogs", "correct_answer": "mat",
            },
            "commonsense_qa_dev": lambda: {
                "id": "x", "question": self.text(), "question_concept": "mat",
                "choices": {"label": list("ABCDE"), "text": [self.text(1, 3) for _ in range(5)]},
                "answerKey": pick("ABCDE"),
            },
        }[name]  # fmt: skip
        return [make() for _ in range(RECORDS)]

    def subjects(self) -> list[dict[str, Any]]:
        """Two to four records of every subject of MMLU, mixed."""
        records = [
            {"question": self.text(), "subject": subject, "choices": [self.text(1, 4) for _ in range(4)],
             "answer": self.random.randrange(4)}
            for subject in SUBJECTS for _ in range(self.random.randint(2, 4))
        ]  # fmt: skip
        self.random.shuffle(records)
        return records


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sets of all zero-shot tasks, of invented records, whose checksums are expected."""
    inventor, folder = Inventor(), tmp_path / "sets"
    folder.mkdir()
    for name in dict.fromkeys(form.file for form in FORMS.values()):
        content = "".join(json.dumps(record) + "\n" for record in inventor.records(name)).encode()
        (folder / f"{name}.jsonl").write_bytes(content)
        expected = dataclasses.replace(SETS[name], sha256=hashlib.sha256(content).hexdigest(), records=RECORDS)
        monkeypatch.setitem(SETS, name, expected)
    return folder


class Finder(nn.Module):
    """Remembers the bytes that it read; `answer` makes the continuation from all text so far."""

    def __init__(self, answer: Callable[[str], str], marker: str = "Answer:") -> None:
        super().__init__()
        self.config = CONFIGS["llama"](vocab_size=257, d_model=8, n_layers=1, head_dim=8)
        self.embedding = nn.Embedding(1, 1)
        self.answer, self.marker = answer, marker

    def read(self, tokens: Tensor, state: State | None = None, cu_seqlens: Tensor | None = None) -> Any:
        """Packed or not; what it gives at a place is the text up to there, which `logits` takes."""
        rows = list(tokens) if cu_seqlens is None else list(tokens[0].split(cu_seqlens.diff().tolist()))
        if state is not None:
            old = zip(state.layers[0].k[:, :, 0, 0], state.position.tolist(), rows, strict=True)
            rows = [torch.cat([before[:length].long(), row]) for before, length, row in old]
        lengths = torch.tensor([len(row) for row in rows])
        seen = nn.utils.rnn.pad_sequence(rows, batch_first=True)[..., None, None].double()
        texts = torch.stack([nn.functional.pad(row, (0, LONGEST - len(row)), value=-1) for row in rows])
        news = [tokens.shape[1]] * len(rows) if cu_seqlens is None else cu_seqlens.diff().tolist()
        x = torch.cat([text.repeat(new, 1) for text, new in zip(texts, news, strict=True)])
        ends = torch.cat([torch.arange(end - new, end) for end, new in zip(lengths.tolist(), news, strict=True)])
        x[torch.arange(LONGEST) > ends[:, None]] = -1
        x = x.unflatten(0, tokens.shape)
        return x, State(lengths, None, (KeyValues(seen, seen),))

    def logits(self, x: Tensor) -> Tensor:
        """(N, LONGEST) texts -> (N, 257)."""
        logits = torch.zeros(len(x), 257)
        for row, text in enumerate(x.tolist()):
            logits[row, self._next(bytes(token for token in text if 0 <= token < 256).decode())] = 1.0
        return logits

    def _next(self, text: str) -> int:
        if self.marker not in text:
            return 256
        begun = text.rindex(self.marker) + len(self.marker)
        answer = self.answer(text[:begun]).encode()
        made = len(text[begun:].encode())
        return answer[made] if made < len(answer) else 256


@pytest.fixture
def finder() -> type[Finder]:
    """A model that says what a function makes of all text so far, behind its last marker."""
    return Finder
