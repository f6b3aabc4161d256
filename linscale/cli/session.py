"""What the commands that read and continue text share: a session from a run and a state, prompts, options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from linscale.cli.output import ProgressBar
from linscale.config import UserError
from linscale.distributed import cores, limit_threads
from linscale.generate.sampling import Sampling

if TYPE_CHECKING:
    from linscale.generate.session import Session
    from linscale.generate.state_store import StateStore

Drawn = Annotated[Sampling, tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction]
"""The fields of Sampling as options."""
Store = Annotated[
    Path | None, tyro.conf.arg(help="The folder of the states; by default states in the run folder.", metavar="DIR")
]


def open_store(path: Path, store: Path | None) -> StateStore:
    """The states of a run folder or checkpoint folder, or those of another folder."""
    from linscale.generate.state_store import StateStore, states_folder

    if store is None and not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run folder or a checkpoint folder")
    return StateStore(states_folder(path) if store is None else store)


def open_session(path: Path, store: StateStore, state: str | None, *, keep_tokens: bool = False) -> Session:
    """A session of the model of a run or checkpoint folder, from a state of the store or an empty text."""
    if state is not None:
        store.show(state)  # what is wrong with a name is said before a model is loaded
    from linscale.checkpoint import load
    from linscale.generate.session import Session

    limit_threads(cores())
    model, tokenizer = load(path)
    snapshot = None if state is None else store.load(state, model, tokenizer)
    return Session(model, tokenizer, snapshot, keep_tokens=keep_tokens)


def read_prompt(session: Session, prompt: str | None, file: Path | None) -> None:
    """Have a session read a text, or a file with progress; a text that begins is opened by the token for it."""
    from linscale.generate.sample import encoded, opened

    if file is not None:
        _read_file(session, file, [] if session.length else session.tokenizer.opening)
    else:
        session.read((encoded if session.length else opened)(session.tokenizer, prompt or ""))


def _read_file(session: Session, file: Path, opening: Sequence[int]) -> None:
    """In chunks that are those of the same text given whole, so that both give the same numbers."""
    import numpy as np

    from linscale.data.text_file import file_tokens

    total = file.stat().st_size if file.is_file() else 0
    left, before = np.array(opening, dtype=np.int64), 0
    with ProgressBar() as bar:
        for tokens, read in file_tokens(session.tokenizer, file):
            left = np.concatenate([left, tokens])
            count = len(left)
            while len(left) > session.chunk:
                session.read(left[: session.chunk])
                left = left[session.chunk :]
                bar.update(f"reading {file}", read - (read - before) * len(left) / count, total)
            before = read
        session.read(left)
        if session.length > session.chunk:
            bar.update(f"reading {file}", total, total)
