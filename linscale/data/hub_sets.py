"""Evaluation sets from the Hugging Face Hub: the data sets there, and how their records become ours, byte for byte.

The same works on a folder of data sets that were fetched from the Hub: FOLDER/ORG/NAME is then what ORG/NAME is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.data.faults import LOOK_UP_WAITS_S, persist
from linscale.data.hub import no_progress

Record = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class HubSet:
    """A split of a data set on the Hub."""

    dataset: str
    """ORG/NAME."""
    config: str | None
    split: str
    to_content: Callable[[Iterable[Record]], bytes]
    """Its records as the bytes of our file."""

    def __str__(self) -> str:
        return ":".join(filter(None, (self.dataset, self.config, self.split)))


def _lines(convert: Callable[[Record], Record], records: Iterable[Record]) -> bytes:
    """Records as JSON lines."""
    return "".join(json.dumps(convert(record), ensure_ascii=False) + "\n" for record in records).encode()


def _fields(names: tuple[str, ...], record: Record) -> Record:
    """These fields in this order."""
    return {name: record[name] for name in names}


def _choices(record: Record, *keys: str) -> Record:
    return {key: list(record["choices"][key]) for key in keys}


def _arc(record: Record) -> Record:
    """Choices as A, B, C, ...: some records have them as 1, 2, 3, ..."""
    choices = _choices(record, "text", "label")
    letters = list(LETTERS[: len(choices["label"])])
    answer = letters[choices["label"].index(record["answerKey"])]
    kept = _fields(("id", "question"), record)
    return {**kept, "choices": {"text": choices["text"], "label": letters}, "answerKey": answer}


def _openbookqa(record: Record) -> Record:
    kept = _fields(("id", "question_stem"), record)
    return {**kept, "choices": _choices(record, "text", "label"), "answerKey": record["answerKey"]}


def _commonsense_qa(record: Record) -> Record:
    kept = _fields(("id", "question", "question_concept"), record)
    return {**kept, "choices": _choices(record, "label", "text"), "answerKey": record["answerKey"]}


def _wikitext(records: Iterable[Record]) -> bytes:
    """Lines of text: an empty one is stored without its space and line end."""
    return "".join(record["text"] or " \n" for record in records).encode()


def _plain(*names: str) -> Callable[[Iterable[Record]], bytes]:
    return partial(_lines, partial(_fields, names))


HELLASWAG = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "source_id", "split", "split_type", "label")
MMLU = ("question", "subject", "choices", "answer")
SCIQ = ("question", "distractor3", "distractor1", "distractor2", "correct_answer", "support")
HUB_SETS = {
    "arc_challenge_test": HubSet("allenai/ai2_arc", "ARC-Challenge", "test", partial(_lines, _arc)),
    "arc_easy_test": HubSet("allenai/ai2_arc", "ARC-Easy", "test", partial(_lines, _arc)),
    # super_glue's copy, which the harness's own file of the task names, has each passage behind its title.
    "boolq_dev": HubSet("google/boolq", None, "validation", _plain("question", "answer", "passage")),
    "commonsense_qa_dev": HubSet("tau/commonsense_qa", None, "validation", partial(_lines, _commonsense_qa)),
    "hellaswag_val": HubSet("Rowan/hellaswag", None, "validation", _plain(*HELLASWAG)),
    "lambada_openai_test": HubSet("EleutherAI/lambada_openai", "default", "test", _plain("text")),
    "mmlu_dev": HubSet("cais/mmlu", "all", "dev", _plain(*MMLU)),
    "mmlu_test": HubSet("cais/mmlu", "all", "test", _plain(*MMLU)),
    "openbookqa_test": HubSet("allenai/openbookqa", "main", "test", partial(_lines, _openbookqa)),
    "piqa_valid": HubSet("baber/piqa", None, "validation", _plain("goal", "sol1", "sol2", "label")),
    "sciq_validation": HubSet("allenai/sciq", None, "validation", _plain(*SCIQ)),
    "wikitext2_raw_test": HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", "test", _wikitext),
    "winogrande_xl_dev": HubSet(
        "allenai/winogrande", "winogrande_xl", "validation", _plain("sentence", "option1", "option2", "answer")
    ),
}
"""By our name of a set; the data sets are those that lm-evaluation-harness 0.4.13 reads, but for two. SciQ's split is
the one that could be had when checksums were taken."""


def from_hub(name: str, folder: Path | None = None) -> bytes:
    """The content of a set from the Hub, or from its copy in `folder`. Raises UserError where `datasets` is not
    installed, the data set is out of reach, or a field is missing."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name}: needs the package datasets: pip install 'linscale[data]'") from None
    source = HUB_SETS[name]
    place = str(folder / source.dataset) if folder else source.dataset
    load = partial(datasets.load_dataset, place, source.config, split=source.split)
    with no_progress(datasets):
        records = persist(load, LOOK_UP_WAITS_S, f"{name} ({source}): ", UserError, "")
        try:
            return source.to_content(records)
        except (KeyError, ValueError, TypeError) as error:
            found = ", ".join(records.column_names)
            raise UserError(f"{name} ({source}): a record without {error} (fields: {found})") from None
