"""What an engine is asked for, and what it tells while it works on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from linscale.generate.continuation import Piece
from linscale.generate.sampling import Sampling
from linscale.generate.snapshot import Snapshot


@dataclass(frozen=True)
class Request:
    """A text to read, and to continue."""

    tokens: Sequence[int] | np.ndarray
    """Read behind `state`, or as a new text, which begins with the tokenizer's bos_id. May be empty behind a state."""
    sampling: Sampling | None
    """None: the text is only read, to make a state."""
    state: Snapshot | None = None
    """What the text goes on from; nothing in it is changed."""
    keep: bool = False
    """Hand over a Snapshot at the end. A text that is only read always gives one."""
    keep_tokens: bool = False
    """The Snapshot has all tokens of the text."""


class Progress(NamedTuple):
    """A part of the text was read."""

    read: int
    """Tokens of `Request.tokens` so far."""
    total: int


class Finished(NamedTuple):
    """The last event of a request that came to its end."""

    snapshot: Snapshot | None
    """The text as it stands, where it was asked for."""
    length: int
    """Tokens of the text, with those before it."""


class Failed(NamedTuple):
    """The last event of a request that could not come to its end; others go on."""

    message: str


Event: TypeAlias = Progress | Piece | Finished | Failed
Listener: TypeAlias = Callable[[Event], None]
