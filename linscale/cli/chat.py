"""linscale chat: a conversation whose state is kept between turns."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from linscale.cli.output import print_note
from linscale.cli.session import Drawn, Store, open_session, open_store, read_prompt
from linscale.config import UserError
from linscale.generate.sampling import Sampling

if TYPE_CHECKING:
    from linscale.generate.jinja_template import ChatTemplate
    from linscale.generate.session import Session
    from linscale.generate.state_store import StateStore

DEFAULTS = Sampling(max_tokens=400, temperature=0.8)
HELP = "/save [NAME] saves the state, /fork NAME goes on in a copy, /quit ends; Ctrl-C ends an answer"


def chat(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    state: str | None = None,
    sampling: Drawn = DEFAULTS,
    store: Store = None,
) -> None:
    """Talk with a trained model. What was said is never read again: the state is kept between turns.

    Each line of standard input is a message. It is written by the chat template that came with an imported model, or
    else as "User: ..." and answered behind "Assistant:". /save NAME saves the state, /save alone under the last name
    again. /fork NAME saves it and goes on under that name, so that the other stays as it was last saved. /quit ends, as
    the end of the input does.

    Args:
        path: A run folder, or one of its checkpoints.
        state: A saved state to go on from.
        sampling: How tokens are drawn, and where an answer ends.
    """
    from linscale.generate.chat_template import STOP
    from linscale.generate.jinja_template import load_chat_template

    if sampling.logprobs is not None:
        raise UserError("logprobs: a conversation shows none; linscale generate --json gives them")
    states = open_store(path, store)
    session = open_session(path, states, state)
    template = load_chat_template(path, session.tokenizer)
    if template is None:
        sampling = replace(sampling, stop=(*STOP, *sampling.stop))
    else:
        sampling = replace(sampling, stop_tokens=(*template.stop_tokens, *sampling.stop_tokens))
    talk = Conversation(session, states, state, template)
    _converse(talk, sampling)


def _converse(talk: Conversation, sampling: Sampling) -> None:
    """Answer the lines of standard input."""
    terminal = sys.stdin.isatty()
    if terminal:
        print_note(HELP)
    while True:
        print("> " if terminal else "", end="", flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not UTF-8 ({error.reason} at byte {error.start})") from None
        words = line.split()
        if not line or words[:1] == ["/quit"]:
            return
        if line.startswith("/"):
            try:
                talk.command(words)
            except UserError as error:
                print_note(str(error))
        elif words:
            talk.answer(line.rstrip("\r\n"), sampling)
            sampling = replace(sampling, seed=None)  # the draws of one conversation follow each other


class Conversation:
    """A session that takes turns, and the name that its state is saved under."""

    def __init__(self, session: Session, states: StateStore, name: str | None, template: ChatTemplate | None) -> None:
        self.session, self.states, self.name, self.template = session, states, name, template

    def answer(self, message: str, sampling: Sampling) -> None:
        """Read a message and print the answer as it is made; Ctrl-C ends it, and what was made is kept.

        A message that was not read to its end is not part of the conversation."""
        session = self.session
        try:
            self._read(message)
            for piece in session.stream(sampling):
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            pass
        print(flush=True)

    def _read(self, message: str) -> None:
        from linscale.generate.chat_template import turn

        session, chat = self.session, [{"role": "user", "content": message}]
        if self.template is None:
            read_prompt(session, turn(message, session.tokenizer.decode(session.last)), None)
        elif session.length:
            session.read(self.template.tokens_behind(session.snapshot(), chat))
        else:
            session.read(self.template.tokens(chat))

    def command(self, words: list[str]) -> None:
        """Carry out /save or /fork. Raises UserError for another, and for a name that cannot be used."""
        verb, names = words[0], words[1:]
        if verb not in ("/save", "/fork") or len(names) > 1 or (verb == "/fork" and not names):
            raise UserError(f"{' '.join(words)}: not a command; {HELP}")
        name = names[0] if names else self.name
        if name is None:
            raise UserError("/save: a name is needed the first time: /save NAME")
        session, again = self.session, verb == "/save" and name == self.name
        self.states.save(name, session.snapshot(), session.model, session.tokenizer, replace=again)
        self.name = name
        print_note(f"state '{name}' saved behind {session.length:,} tokens")
