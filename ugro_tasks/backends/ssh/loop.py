"""The loop around a pure step: it brings events and carries out acts.

A step is `step(state, event, now) -> state, acts`, with times in seconds of one clock that never goes back. The step
decides everything and does nothing; its acts run in threads, and each thread ends as an event.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

from ...jobs.journal import Journal

# A request to stop, or the end of a pause, is noticed within this time.
TICK_SECONDS = 0.1

S = TypeVar("S")
E = TypeVar("E")
A = TypeVar("A")


class Begin(Struct, frozen=True):
    """The first event of a run."""


class StopAsked(Struct, frozen=True):
    """A request to stop; `given_up`: without waiting for nodes out of reach."""

    given_up: bool = False


class Tick(Struct, frozen=True):
    """Time went by."""


Common = Begin | StopAsked | Tick
"""The events that any step takes."""


class Say(Struct, frozen=True):
    """An act of any step: tell the people watching."""

    words: str
    node: str | None = None


class Loop(Generic[S, E, A]):
    """Runs `step`, and calls `carry_out` with each act."""

    def __init__(
        self,
        step: Callable[[S, E | Common, float], tuple[S, list[A]]],
        carry_out: Callable[[A], None],
        journal: Journal,
    ) -> None:
        self._step = step
        self._carry_out = carry_out
        self._journal = journal
        self._events: queue.SimpleQueue[E | Exception] = queue.SimpleQueue()
        self._told: StopAsked | None = None

    def run(self, state: S, until: Callable[[S], bool]) -> S:
        """Let one event after the other change the state, until it is a wanted one; give that.

        Raises the exception of a thread: a missing result proves nothing.
        """
        self._told = None
        event: E | Common = Begin()
        while True:
            state, acts = self._step(state, event, time.monotonic())
            for act in acts:
                self._carry_out(act)
            if until(state):
                return state
            event = self._stop_request() or self._next()

    def put(self, event: E) -> None:
        """Bring an event; any thread may."""
        self._events.put(event)

    def in_thread(self, name: str, work: Callable[[], E]) -> None:
        """Do the work in a thread; its result is an event."""

        def run() -> None:
            try:
                self._events.put(work())
            except Exception as error:  # a thread's edge
                self._events.put(error)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _stop_request(self) -> StopAsked | None:
        """Give the event of a new request to stop, if there is one."""
        if not self._journal.stop_asked:
            return None
        asked = StopAsked(given_up=self._journal.given_up)
        if asked == self._told:
            return None
        self._told = asked
        return asked

    def _next(self) -> E | Tick:
        try:
            event = self._events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return Tick()
        if isinstance(event, Exception):
            raise event
        return event
