"""What a server allows and how it protects itself."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from linscale.config import config


@config
class ServeOptions:
    """Limits of a server, and who may use it."""

    model_name: str | None = None
    """The name of the model to clients; by default that of the run folder."""
    api_key: tuple[str, ...] = ()
    """A key that clients must give; may be given several times. Others on this machine can see it: a file is better."""
    max_prompt_tokens: PositiveInt = 2_000_000
    """The most tokens of one prompt."""
    max_tokens: PositiveInt = 8192
    """The most tokens that a request may have written for each choice."""
    max_choices: PositiveInt = 16
    """The most texts that one request may ask for: prompts times n."""
    max_waiting: NonNegativeInt = 256
    """Texts that wait while all slots are taken; beyond them requests are told to come again (429)."""
    max_body_bytes: PositiveInt = 16 * 2**20
    """The largest request."""
    body_s: PositiveFloat = 60.0
    """Seconds in which a request must have arrived, and a client must have taken what it is sent."""
    drain_s: PositiveFloat = 30.0
    """Seconds that running texts have left when the server is asked to stop."""
    state_cache_bytes: NonNegativeInt = 2**30
    """Bytes of loaded states that are kept in memory, those used last."""
    allowed_host: tuple[str, ...] = ()
    """A name that requests may address the server by, besides localhost; may be given several times. A server that is
    bound to another address than this machine's own answers to all names unless some are given."""
    cors_origin: tuple[str, ...] = ()
    """An origin, such as https://example.com, whose pages may use the server; may be given several times."""
