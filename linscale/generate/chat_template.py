"""The plain form of a conversation, for models without one of their own:

User: What is a state?
Assistant: All that a model remembers.
User:
"""

from __future__ import annotations

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
