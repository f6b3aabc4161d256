"""Overlap of an answer's words with those of references: exact match, F1 and ROUGE as SCROLLS defines them, 0 to 100.

Exact match and F1 are SQuAD's (arXiv 1606.05250), ROUGE the rouge-score package's without stemming. Of several
references the best one counts, for each metric by itself (arXiv 2201.03533, section 4).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from linscale.config import UserError

ROUGE = ("rouge1", "rouge2", "rougeL")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Text in lower case without ASCII punctuation, then without articles, words one space apart."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """100 where the prediction is one of the references, both normalized; else 0."""
    return 100.0 * (normalize(prediction) in map(normalize, references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """100 times the harmonic mean of precision and recall of normalized words; 0 where none is shared, also by two
    empty texts, as in SQuAD 1.1."""
    return 100.0 * max(_f1(normalize(prediction).split(), normalize(reference).split()) for reference in references)


def _f1(words: Sequence[str], expected: Sequence[str]) -> float:
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected)) if shared else 0.0


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """100 times the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L. Raises UserError when rouge-score is not installed."""
    best = rouge_scorer().score_multi(references, prediction)
    return {metric: 100.0 * float(best[metric].fmeasure) for metric in ROUGE}


@cache
def rouge_scorer() -> Any:
    """The package's scorer. Raises UserError when it is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE needs rouge-score, which is not installed: pip install 'linscale[eval]'") from None
    return RougeScorer(ROUGE, use_stemmer=False)
