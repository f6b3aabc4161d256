"""Facts that no training text has: who, where, and a key of three parts drawn from a seed; and how answers are graded.

A key is three groups of three digits or three words out of 64, so no prior says it: one guess in 200,000 or more
is right.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

FORMS = (  # statement, question, whether the key is of digits
    ("The phone number of the {trade} in {city} is", "What is the phone number of the {trade} in {city}?", True),
    ("The licence number of {name} from {city} is", "What is the licence number of {name} from {city}?", True),
    ("The password of {name} from {city} is", "What is the password of {name} from {city}?", False),
    ("The words that open the safe of the {trade} in {city} are", "Which words open the safe of the {trade} in {city}?",
     False),
)  # fmt: skip
TRADES = re.findall(r"\w+", "baker tailor miller potter weaver cobbler glazier tanner farrier saddler printer joiner")
CITIES = re.findall(
    r"\w+", "Oslo Lima Cairo Quito Dakar Perth Turin Porto Malmo Tunis Davos Galway Bergen Nantes Kyoto Bogota"
)
NAMES = re.findall(
    r"\w+", "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karla Louis Marta Oscar Paula Rosa"
)
WORDS = re.findall(
    r"\w+",
    "acorn anvil badger basil beetle bishop bonnet candle cedar clover comet copper cradle cricket dagger falcon "
    "fiddle flint garlic ginger goblet hammer harbor hazel heron jasmine kettle ladder lantern lemon lizard "
    "magnet maple marble meadow mitten mustard needle nutmeg otter oyster paddle parrot pebble pepper pigeon "
    "pillow plum quartz rabbit raven ribbon saddle salmon spider sponge thimble thunder tulip turnip velvet "
    "walnut whistle willow",
)
PARTS = 3
LOWEST, HIGHEST = 1, 10  # grades


@dataclass(frozen=True)
class Fact:
    statement: str
    question: str
    key: str

    @property
    def parts(self) -> list[str]:
        return _words(self.key)


def draw_fact(seed: str) -> Fact:
    """The fact of a seed: always the same."""
    source = random.Random(seed)
    statement, question, digits = source.choice(FORMS)
    who = {"trade": source.choice(TRADES), "city": source.choice(CITIES), "name": source.choice(NAMES)}
    parts = (
        [str(number) for number in source.sample(range(100, 1000), PARTS)] if digits else source.sample(WORDS, PARTS)
    )
    key = ("-" if digits else " ").join(parts)
    return Fact(f"{statement.format_map(who)} {key}.", question.format_map(who), key)


def grade(fact: Fact, answer: str) -> int:
    """1 to 10: how much of the key the answer has, as whole words in the key's order: 1, 4, 7 or 10 for 0 to 3 parts.

    Words around them do not count, nor do capitals and what stands between the parts.
    """
    found = _longest_common(fact.parts, _words(answer))
    return LOWEST + (HIGHEST - LOWEST) * found // PARTS


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _longest_common(parts: list[str], words: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(parts) + 1)
    for word in words:
        before = row
        row = [0]
        for place, part in enumerate(parts):
            row.append(before[place] + 1 if part == word else max(before[place + 1], row[place]))
    return row[-1]
