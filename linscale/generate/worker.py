"""A thread that drives an engine: requests come from any thread, events go out from this one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from linscale.config import UserError
from linscale.generate.engine import Engine, Stats
from linscale.generate.request import Listener, Request
from linscale.generate.text import Text

STOPPING = "the engine takes no more requests: it is stopping"
logger = logging.getLogger(__name__)


class Ticket:
    """A request that a worker has taken."""

    def __init__(self, worker: Worker, text: Text) -> None:
        self._worker, self._text = worker, text

    def cancel(self) -> None:
        """Free the request's slot before the next step, from any thread, at any time. An event that is on its way may
        still come; a request that is over stays as it is."""
        self._worker.cancel(self._text)


class Worker:
    """Drives an engine from `start` to `close`; a context manager does both."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        """What stopped the engine for good."""
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._draining = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="linscale-engine", daemon=True)

    def start(self) -> Self:
        """Begin; the engine is warmed up first, while requests wait."""
        self._thread.start()
        return self

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Hand over a request; `listener` is called in the engine's thread, and must not keep it.

        Raises UserError for a request that cannot be served, and when no more are taken.
        """
        text = self.engine.prepare(request, listener)
        with self._changed:
            if self.failure is not None or self._draining or self._stopping:
                raise UserError(STOPPING)
            self._commands.append(lambda: self.engine.accept(text))
            self._changed.notify_all()
        return Ticket(self, text)

    def cancel(self, text: Text) -> None:
        """See Ticket.cancel."""
        with self._changed:
            self._commands.append(lambda: self.engine.cancel(text))
            self._changed.notify_all()

    def stats(self) -> Stats:
        """What the engine does now."""
        return self.engine.stats()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not (self._draining or self._stopping or self.failure is not None)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and wait for those that are under way; whether all came to their end."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._resting or not self._thread.is_alive(), timeout_s)

    def close(self) -> None:
        """Stop before the next step; requests under way fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def _resting(self) -> bool:
        return not self._commands and self.engine.idle

    def _work(self) -> None:
        try:
            self.engine.warm_up()
            while self._carry_out():
                self.engine.step()
        except BaseException as error:
            logger.exception("the engine has failed")
            self.failure = error
        finally:
            self.engine.give_up(STOPPING if self.failure is None else f"the engine has failed: {self.failure}")
            with self._changed:
                self._changed.notify_all()

    def _carry_out(self) -> bool:
        """Carry out what other threads asked for, once there is something to do; False when it is to stop."""
        with self._changed:
            while self._resting and not self._stopping:
                self._changed.notify_all()  # `drain` may be waiting for it
                self._changed.wait()
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        return not self._stopping
