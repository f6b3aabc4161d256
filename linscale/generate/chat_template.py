"""The plain form of a conversation, for models without one of their own:

User: What is a state?
Assistant: All that a model remembers.
User:
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from linscale.config import UserError

USER, ASSISTANT = "User:", "Assistant:"
STOP = (f"\n{USER}",)
"""What ends the assistant's turn, besides the end-of-text token."""


def turn(message: str, before: str) -> str:
    """What is read behind `before`, the end of the conversation so far, to have the assistant answer `message`.

    Where the model itself has begun the user's turn, it is not begun again.
    """
    if before.endswith(f"\n{USER}"):
        return f" {message}\n{ASSISTANT}"
    line = "\n" if before and not before.endswith("\n") else ""
    return f"{line}{USER} {message}\n{ASSISTANT}"


def conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages, each with `role` and `content`, up to where the assistant's next answer begins.

    What the system says stands in front of the first turn, as it is. The space behind `Assistant:` is part of an
    answer. Raises UserError for a role that is not known.
    """
    text = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "user":
            text += f"{USER} {content}\n"
        elif role == "assistant":
            text += f"{ASSISTANT} {content}\n"
        elif role in ("system", "developer"):
            text += f"{content}\n"
        else:
            raise UserError(f"messages: role = {role!r}: expected one of system, developer, user, assistant")
    return f"{text}{ASSISTANT}"
