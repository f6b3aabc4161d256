"""linscale generate: a continuation, as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from linscale.cli.output import Json, print_json, print_note
from linscale.cli.session import Store, open_session, open_store, read_prompt, text_stream
from linscale.config import UserError

if TYPE_CHECKING:
    from linscale.generate.session import Session


def generate(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    prompt: str | None = None,
    file: Path | None = None,
    state: str | None = None,
    save_state: str | None = None,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int | None = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Continue a prompt with a trained model, and print the text as it is made.

    Args:
        path: A run folder, or one of its checkpoints.
        prompt: The text to continue.
        file: A text file to continue instead, of any length (also .gz, .zst, .xz).
        state: A saved state to go on from: the prompt is read behind its text, and may be left out.
        save_state: A name to save the state behind the new text under.
        max_tokens: The most tokens to write.
        temperature: 0 always takes the most probable token.
        top_k: Draw among this many of the most probable tokens.
        seed: The same seed writes the same text; by default 0, and behind a state what an uninterrupted run would draw.
    """
    if prompt is not None and file is not None:
        raise UserError("prompt and file: both are given; expected one of them")
    if prompt is None and file is None and state is None:
        raise UserError("prompt: not given; expected --prompt TEXT, --file FILE or --state NAME")
    states = open_store(path, store)
    if save_state is not None:
        states.require_free(save_state)
    from linscale.generate.sample import check

    check([0], max_tokens, temperature, top_k, seed or 0)  # before a long prompt is read
    session = open_session(path, states, state)
    read_prompt(session, prompt, file)
    tokens = session.stream(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
    text = _show(None if json else prompt or "", text_stream(session, tokens, session.last))
    if save_state is not None:
        states.save(save_state, session.snapshot(), session.model, session.tokenizer)
    if json:
        print_json({"path": str(path), "prompt": prompt, "continuation": text, **_of(session, save_state)})
    elif save_state is not None:
        print_note(f"state '{save_state}' saved behind {session.length:,} tokens")


def _show(prompt: str | None, pieces: Iterator[str]) -> str:
    """The whole continuation, printed behind the prompt as it comes; not printed where prompt is None."""
    if prompt is None:
        return "".join(pieces)
    print(prompt, end="", flush=True)
    shown = []
    for piece in pieces:
        print(piece, end="", flush=True)
        shown.append(piece)
    print()
    return "".join(shown)


def _of(session: Session, name: str | None) -> dict[str, int | str | None]:
    return {"tokens": session.length, "state": name}
