"""Evaluation sets of invented records, with the fields of the real ones and what is awkward in them."""

import dataclasses
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from linscale.data.sets import SETS
from linscale.evaluate.mmlu import SUBJECTS
from linscale.evaluate.questions import FORMS

RECORDS = 40
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
