"""linscale state: what a model has read, by name."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from linscale.cli.output import Json, duration, file_size, print_json, print_table
from linscale.cli.session import Device, Run, Store, note_length, open_session, open_store, read_prompt
from linscale.config import UserError, to_dict

if TYPE_CHECKING:
    from linscale.generate.saved_state import StateRecord
    from linscale.generate.state_store import StateStore

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


def create(
    path: Run,
    *,
    name: str,
    prompt: str | None = None,
    file: Path | None = None,
    state: str | None = None,
    keep_tokens: bool = False,
    bf16: bool = False,
    replace: bool = False,
    device: Device = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Read a text once and save the state behind it, to go on from in milliseconds.

    A text of any length is read in memory that does not grow with it, but by softmax layers.

    Args:
        path: A run folder, or one of its checkpoints.
        name: Letters, digits, '.', '_' and '-'.
        prompt: The text.
        file: A text file instead (also .gz, .zst, .xz).
        state: A saved state to read the text behind.
        keep_tokens: Keep the tokens of the text in the file; without it the text cannot be had back.
        bf16: Save half the bytes, rounded: what is made from it is no longer the same to the bit.
        replace: Replace a state of the same name.
    """
    if (prompt is None) == (file is None):
        raise UserError("prompt, file: expected one of --prompt TEXT and --file FILE")
    states = open_store(path, store)
    states.require_free(name, replace=replace)
    began = time.monotonic()
    session = open_session(path, states, state, keep_tokens=keep_tokens, device=device)
    read_prompt(session, prompt, file)
    note_length(session, path)
    states.save(name, session.snapshot(), session.model, session.tokenizer, bf16=bf16, replace=replace)
    described = _described(states, name, states.show(name))
    if json:
        print_json(described)
    else:
        size = file_size(described["bytes"])
        print(f"state '{name}': {session.length:,} tokens in {size}, in {duration(time.monotonic() - began)}")


def list_states(path: Run, *, store: Store = None, json: Json = False) -> None:
    """The saved states of a run.

    Args:
        path: A run folder, or one of its checkpoints.
    """
    states = open_store(path, store)
    found = [_described(states, name, record) for name, record in states.list().items()]
    if json:
        print_json(found)
        return
    columns = ("state", "model", "tokens", "size", "dtype", "saved")
    rows = [
        [each["name"], each["model_name"], f"{each['tokens']:,}", file_size(each["bytes"]), each["dtype"], _date(each)]
        for each in found
    ]
    print_table(str(states.folder), columns, rows, left=2)


def show(path: Run, name: Name, *, store: Store = None, json: Json = False) -> None:
    """What is recorded of a state, without loading it.

    Args:
        path: A run folder, or one of its checkpoints.
        name: The state.
    """
    states = open_store(path, store)
    described = _described(states, name, states.show(name))
    if json:
        print_json(described)
        return
    rounded = "" if not described["rounded"] else ", rounded from " + ", ".join({*described["rounded"].values()})
    for word, value in (
        ("state", name),
        ("tokens", f"{described['tokens']:,}" + (", kept" if described["kept"] else "")),
        ("model", f"{described['model']} ({described['model_name']})"),
        ("tokenizer", f"{described['tokenizer']} ({described['tokenizer_name']})"),
        ("dtype", described["dtype"] + rounded),
        ("saved", f"{_date(described)} by linscale {described['code']}"),
        ("file", f"{described['file']} ({file_size(described['bytes'])})"),
    ):
        print(f"{word:<10}{value}")


def fork(
    path: Run,
    name: Name,
    new: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")],
    *,
    replace: bool = False,
    store: Store = None,
) -> None:
    """Copy a state to another name.

    Args:
        path: A run folder, or one of its checkpoints.
        name: The state.
        new: The name of the copy.
        replace: Replace a state of that name.
    """
    open_store(path, store).fork(name, new, replace=replace)
    print(f"state '{new}': a copy of '{name}'")


def delete(path: Run, name: Name, *, store: Store = None) -> None:
    """Delete a state.

    Args:
        path: A run folder, or one of its checkpoints.
        name: The state.
    """
    open_store(path, store).delete(name)
    print(f"state '{name}': deleted")


def _described(states: StateStore, name: str, record: StateRecord) -> dict[str, Any]:
    file = states.path(name)
    return {"name": name, "file": str(file), "bytes": file.stat().st_size, **to_dict(record)}


def _date(described: dict[str, Any]) -> str:
    return datetime.fromtimestamp(described["created"]).strftime("%Y-%m-%d %H:%M")
