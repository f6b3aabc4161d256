"""What the commands that read and continue text share: a session from a run and a state, prompts, options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from linscale.cli.output import ProgressBar, print_note
from linscale.config import UserError
from linscale.distributed import cores, limit_threads
from linscale.generate.sampling import Sampling
from linscale.run_folder import CHECKPOINTS, CONFIG, read_json

if TYPE_CHECKING:
    import torch

    from linscale.generate.session import Session
    from linscale.generate.state_store import StateStore

Drawn = Annotated[Sampling, tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction]
"""The fields of Sampling as options."""
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Device = Annotated[Literal["cpu", "cuda"] | None, tyro.conf.arg(help="By default a GPU where there is one.")]
Store = Annotated[
    Path | None, tyro.conf.arg(help="The folder of the states; by default states in the run folder.", metavar="DIR")
]


def open_store(path: Path, store: Path | None) -> StateStore:
    """The states of a run folder or checkpoint folder, or those of another folder."""
    from linscale.generate.state_store import StateStore, states_folder

    if store is None and not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run folder or a checkpoint folder")
    return StateStore(states_folder(path) if store is None else store)


def open_session(
    path: Path, store: StateStore, state: str | None, *, keep_tokens: bool = False, device: Device = None
) -> Session:
    """A session of the model of a run or checkpoint folder, from a state of the store or an empty text."""
    where = chosen_device(device)
    if state is not None:
        store.show(state)  # what is wrong with a name is said before a model is loaded
    import torch

    from linscale.checkpoint import load
    from linscale.generate.session import Session

    limit_threads(cores())
    model, tokenizer = load(path)
    model = model.to(where)
    snapshot = None if state is None else store.load(state, model, tokenizer)
    dtype = torch.bfloat16 if where.type == "cuda" else None
    return Session(model, tokenizer, snapshot, keep_tokens=keep_tokens, dtype=dtype)


def chosen_device(name: Device) -> torch.device:
    """The device of a name, or a GPU where there is one. Raises UserError for a GPU that is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': no GPU that torch can use on this machine; linscale doctor says why")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def trained_length(path: Path) -> tuple[int | None, bool]:
    """Tokens of a text that the model of a run or checkpoint folder was trained for, where the run says so, and whether
    the model was imported: then that is what it was made for (max_position_embeddings)."""
    resolved = path.resolve()
    file = (resolved.parent.parent if resolved.parent.name == CHECKPOINTS else resolved) / CONFIG
    settings = read_json(file) if file.is_file() else {}
    length = (settings.get("train") or {}).get("length")
    return length if isinstance(length, int) else None, (settings.get("data") or {}).get("path") is None


def note_length(session: Session, path: Path, more: int = 0) -> bool:
    """Say so, and return True, where a text with `more` tokens to come is longer than a model with softmax layers was
    trained for."""
    length, _ = trained_length(path)
    beyond = length is not None and session.length + more > length and session.grows
    if beyond:
        text = f"{session.length:,} tokens" + (f" and {more:,} to come" if more else "")
        print_note(f"{text} are more than the {length:,} that this model was trained for; it may write nonsense there")
    return beyond


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
