"""Samples of SCROLLS: from its own files, from QMSum's and from L-Eval's, with lm-evaluation-harness's prompts.

A prompt is a document and what is asked behind it (lm_eval 0.4.13, tasks/scrolls/task.py; no shot, nothing in front):

    summary       DOCUMENT \\n\\n Question: What is a summary of the preceding text? \\n Answer:
    question      DOCUMENT \\n\\n Question: QUESTION \\n Answer:
    hypothesis    DOCUMENT \\n\\n Hypothesis: HYPOTHESIS \\n Conclusion:

It is answered by greedy generation, or by the likeliest of `choices`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from linscale.config import UserError
from linscale.data.decompress import DECOMPRESSORS, decompress
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.overlap import normalize
from linscale.evaluate.prompts import Prompts, Sample, encode

Record: TypeAlias = Mapping[str, Any]
Reader: TypeAlias = Callable[[Iterable[Record]], list[Sample]]
"""Records of a file to samples. Raises KeyError, TypeError or ValueError where they are not in its form."""
Asker: TypeAlias = Callable[[str, str, Sequence[str]], Sample]
"""Document, what is asked of it ("" where nothing is) and references to a sample."""
CONCLUSIONS = ("Not mentioned", "Entailment", "Contradiction")
CHOICE = re.compile(r" *\([A-D]\) *")
SUMMARY = "What is a summary of the preceding text?"


def summary(document: str, asked: str, references: Sequence[str]) -> Sample:
    """Asked in the same words of all documents, also where L-Eval has words of its own."""
    return question(document, SUMMARY, references)


def question(document: str, asked: str, references: Sequence[str]) -> Sample:
    return Sample(document, f"\n\nQuestion: {asked}\nAnswer:", tuple(references))


def qasper(document: str, asked: str, references: Sequence[str]) -> Sample:
    """A question whose references are all yes or no is answered by the likelier of both: this looks at the references,
    as the harness does."""
    sample = question(document, asked, references)
    if all(normalize(reference) in ("yes", "no") for reference in references):
        return replace(sample, choices=("no", "yes"), per_character=False)
    return sample


def hypothesis(document: str, asked: str, references: Sequence[str]) -> Sample:
    _expect(references[0] in CONCLUSIONS, f"output {references[0]!r} is none of {', '.join(CONCLUSIONS)}")
    return Sample(document, f"\n\nHypothesis: {asked}\nConclusion:", tuple(references), CONCLUSIONS)


def quality(document: str, asked: str, references: Sequence[str]) -> Sample:
    """The document begins with four choices, an empty line behind them; they are not in the prompt."""
    end = document.find("\n\n", max(0, document.find("(D)")))
    _expect(end >= 0, "no empty line between choices and document")
    return _choose(document[end:].strip(), asked, document[:end], references[0])


def leval_quality(document: str, asked: str, references: Sequence[str]) -> Sample:
    """The question ends with its four choices, the reference begins with the letter of one."""
    place = max(0, asked.find("(A)"))
    return _choose(document, asked[:place].strip(), asked[place:], CHOICE.sub("", references[0], count=1))


def _choose(document: str, asked: str, listed: str, answer: str) -> Sample:
    choices = tuple(_words(choice) for choice in CHOICE.split(listed)[1:])
    _expect(len(choices) == 4, f"{len(choices)} choices from (A) to (D), expected 4")
    _expect(_words(answer) in choices, f"output {answer!r} is none of the choices")
    return replace(question(document, asked, [_words(answer)]), choices=choices)


def _words(text: str) -> str:
    return " ".join(text.split())


def scrolls(ask: Asker, question_first: bool = True) -> Reader:
    """Of SCROLLS' lines: id, input, output. Lines with one id are references of one sample. The input is a question,
    an empty line and the document, or the document alone."""

    def read(records: Iterable[Record]) -> list[Sample]:
        found: dict[str, tuple[str, str, list[str]]] = {}
        known: dict[str, str] = {}  # a document is held once, however many lines have it
        for record in records:
            _expect(isinstance(record["output"], str), "an output is null; use a split with outputs, as validation")
            asked, gap, document = record["input"].partition("\n\n") if question_first else ("", "\n", record["input"])
            _expect(bool(gap), "an input has no empty line between question and document")
            document = known.setdefault(document, document)
            found.setdefault(record["id"], (document, asked, []))[2].append(record["output"])
        return [ask(*sample) for sample in found.values()]

    return read


def qmsum(records: Iterable[Record]) -> list[Sample]:
    """Of QMSum's meetings: context, queries (query, answer)."""
    pairs = [(record["context"], pair) for record in records for pair in record["queries"]]
    return [question(context, pair["query"], [pair["answer"]]) for context, pair in pairs]


def leval(ask: Asker) -> Reader:
    """Of L-Eval's lines: input, instructions and as many outputs."""

    def read(records: Iterable[Record]) -> list[Sample]:
        return [
            ask(record["input"], asked, [output])
            for record in records
            for asked, output in zip(record["instructions"], record["outputs"], strict=True)
        ]

    return read


def _expect(fine: bool, otherwise: str) -> None:
    if not fine:
        raise ValueError(otherwise)


def look_for(folder: Path, name: str) -> Path | None:
    """The file NAME.jsonl in a folder, whole or compressed, or None."""
    paths = [folder / f"{name}.jsonl{compression}" for compression in ("", *DECOMPRESSORS)]
    return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class SampleFile:
    """A file of JSON lines, whole or compressed; read once, and cut into tokens once a tokenizer."""

    path: Path
    read: Reader
    limit: int | None = None
    """The first samples alone."""
    _encoded: dict[str, Prompts] = field(default_factory=dict, compare=False, repr=False)

    @property
    def samples(self) -> list[Sample]:
        """Raises UserError where the file is not in its form, or holds no sample."""
        return self._content[0]

    @property
    def digest(self) -> str:
        """Sixteen hex digits of the sha256 of its lines, decompressed."""
        return self._content[1]

    def prompts(self, tokenizer: Tokenizer) -> Prompts:
        if tokenizer.fingerprint not in self._encoded:
            self._encoded.clear()  # runs of a study share a tokenizer
            self._encoded[tokenizer.fingerprint] = encode(self.samples, tokenizer)
        return self._encoded[tokenizer.fingerprint]

    @cached_property
    def _content(self) -> tuple[list[Sample], str]:
        found = hashlib.sha256()
        try:
            samples = self.read(self._records(found))[: self.limit]
            _expect(bool(samples), "no samples")
            _expect(all(sample.document.strip() for sample in samples), "an empty document")
        except KeyError as error:
            raise UserError(f"{self.path}: a line has no field {error}; see docs/reference/evaluate.md") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: {error}; see docs/reference/evaluate.md for its form") from None
        return samples, found.hexdigest()[:16]

    def _records(self, found: Any) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), 1):
            found.update(line.rstrip(b"\n") + b"\n")
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from None

    def _lines(self) -> Iterator[bytes]:
        _, _, compression = self.path.name.partition(".jsonl")
        with self.path.open("rb") as file:
            if not compression:
                yield from file
                return
            rest = b""
            for chunk in decompress(str(self.path), compression, file):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
            if rest:
                yield rest
