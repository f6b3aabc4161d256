"""What stands around the choices of an answer, and of every chunk of one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from linscale.serve.service import Service


class Envelope:
    """One answer's: its id and time are those of all its chunks."""

    def __init__(self, service: Service, prefix: str) -> None:
        """`prefix`: of its id."""
        self._service, self._id, self._created = service, f"{prefix}-{uuid4().hex}", int(time.time())

    def around(
        self, kind: str, choices: Sequence[Mapping[str, Any]], *, usage: Any = None, state: Any = None
    ) -> dict[str, Any]:
        """An object of a kind with these choices; usage and state where they are known."""
        found = {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.name,
            "system_fingerprint": self._service.states.identity.model,
            "choices": list(choices),
        }
        return found | ({} if usage is None else {"usage": usage}) | ({} if state is None else {"state": state})
