"""linscale generate: a continuation, shown as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.cli.output import Json, print_json, print_note
from linscale.cli.session import Device, Drawn, Run, Store, note_length, open_session, open_store, read_prompt
from linscale.config import UserError
from linscale.generate.sampling import Sampling

if TYPE_CHECKING:
    from linscale.data.tokenizer import Tokenizer
    from linscale.generate.continuation import Piece

DEFAULTS = Sampling(temperature=0.8)


def generate(
    path: Run,
    *,
    prompt: str | None = None,
    file: Path | None = None,
    state: str | None = None,
    save_state: str | None = None,
    sampling: Drawn = DEFAULTS,
    device: Device = None,
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
        sampling: How tokens are drawn, and where the text ends.
    """
    if prompt is not None and file is not None:
        raise UserError("prompt and file: both are given; expected one of them")
    if prompt is None and file is None and state is None:
        raise UserError("prompt: not given; expected --prompt TEXT, --file FILE or --state NAME")
    if sampling.logprobs is not None and not json:
        raise UserError("logprobs: not part of the text; add --json to get them")
    states = open_store(path, store)
    if save_state is not None:
        states.require_free(save_state)
    session = open_session(path, states, state, device=device)
    read_prompt(session, prompt, file)
    note_length(session, path, sampling.max_tokens)
    from linscale.generate.end_tokens import end_tokens, ended_by

    pieces = session.stream(ended_by(sampling, end_tokens(path, session.tokenizer)))
    made = list(pieces if json else _shown(prompt or "", pieces))
    if save_state is not None:
        states.save(save_state, session.snapshot(), session.model, session.tokenizer)
    if json:
        behind = {"length": session.length, "state": save_state}
        print_json({"path": str(path), "prompt": prompt, **record(session.tokenizer, made, sampling), **behind})
    elif save_state is not None:
        print_note(f"state '{save_state}' saved behind {session.length:,} tokens")


def _shown(prompt: str, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, each printed as it comes, behind the prompt."""
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece.text, end="", flush=True)
        yield piece
    print()


def record(tokenizer: Tokenizer, pieces: list[Piece], sampling: Sampling) -> dict[str, Any]:
    """A continuation as JSON values; log-probabilities where they were asked for."""
    values: dict[str, Any] = {
        "continuation": "".join(piece.text for piece in pieces),
        "finish_reason": pieces[-1].finish_reason,
        "tokens": [piece.token for piece in pieces],
    }
    if sampling.logprobs is not None:
        values["logprobs"] = [piece.logprob for piece in pieces]
        values["top_logprobs"] = [
            [{"token": token, "text": tokenizer.decode([token]), "logprob": nats} for token, nats in piece.alternatives]
            for piece in pieces
        ]
        values["offsets"] = [piece.offset for piece in pieces]
    return values
