"""Texts that begin alike, as trees of a trunk and branches: what is read once, what is read of each, what is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from linscale.models import LanguageModelConfig
from linscale.models.count import state_elements

WORTH = 8  # tokens that a branch must save: about what a fork of the state costs
Text: TypeAlias = tuple[int, ...]


class Tree(NamedTuple):
    """Texts that begin with the same `trunk` tokens, at least one; none of them ends inside of it."""

    trunk: int
    texts: list[int]
    "Their numbers."


def trees_of(texts: Sequence[Text], firsts: Sequence[int]) -> list[Tree]:
    """Every text that has something to score in one tree, which saves tokens over reading each by itself; the longest
    trunk first. In sorted order a text begins like its neighbours, and joins them while that saves WORTH or more."""
    order = sorted((n for n, text in enumerate(texts) if len(text) > firsts[n]), key=lambda n: texts[n])
    trees: list[Tree] = []
    for number in order:
        if trees:
            trunk, members = trees[-1]
            alike = min(trunk, _common(texts[members[-1]], texts[number]), len(texts[number]) - 1)
            shorter = (len(members) - 1) * (trunk - alike)
            if alike - shorter >= WORTH:
                trees[-1] = Tree(alike, [*members, number])
                continue
        trees.append(Tree(len(texts[number]) - 1, [number]))
    return sorted(trees, key=lambda tree: -tree.trunk)


def _common(a: Text, b: Text) -> int:
    """How many tokens two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def batches_of(
    config: LanguageModelConfig, trees: Sequence[Tree], texts: Sequence[Text], most_tokens: int, elements: int
) -> Iterator[list[Tree]]:
    """Trees that are scored together; one whose branches are too many for a batch comes in several parts. A batch has
    `most_tokens` tokens, but where one text alone is over it, and states of `elements` elements."""
    batch: list[Tree] = []
    room = states = 0
    for tree in trees:
        most_states = max(1, elements // max(1, state_elements(config, batch[0].trunk if batch else tree.trunk)))
        part: list[int] = []
        for number in tree.texts:
            branch = len(texts[number]) - 1 - tree.trunk
            cost = branch + (0 if part else tree.trunk)
            if (batch or part) and (cost > room or states >= most_states):
                if part:
                    batch.append(Tree(tree.trunk, part))
                yield batch
                batch, part, cost = [], [], branch + tree.trunk
            if not batch and not part:
                room, states = most_tokens, 0
            part.append(number)
            room, states = room - cost, states + 1
        batch.append(Tree(tree.trunk, part))
    if batch:
        yield batch


def scored(
    trees: Sequence[Tree], texts: Sequence[Text], firsts: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Of all scored tokens, text by text: the place among trunks and then branches whose logits foretell it, and the
    token; and of every text how many there are."""
    places: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    start, place = 0, sum(tree.trunk for tree in trees)
    for trunk, numbers in trees:
        for number in numbers:
            text, first = texts[number], firsts[number]
            # The token t is foretold where t - 1 is read: in the trunk up to t = trunk, and else in the branch.
            places += range(start + first - 1, start + min(len(text) - 1, trunk))
            places += range(place + max(0, first - 1 - trunk), place + len(text) - 1 - trunk)
            targets += text[first:]
            lengths.append(len(text) - first)
            place += len(text) - 1 - trunk
        start += trunk
    return places, targets, lengths
