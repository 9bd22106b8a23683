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
# For the first look at a request to stop; a disk that does not answer is not waited for.
FIRST_LOOK_SECONDS = 1.0

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
        self._events: queue.SimpleQueue[E | StopAsked | Exception] = queue.SimpleQueue()

    def run(self, state: S, until: Callable[[S], bool]) -> S:
        """Let one event after the other change the state, until it is a wanted one; give that.

        Raises the exception of a thread: a missing result proves nothing.
        """
        watch = self._watch()
        event: E | Common = Begin()
        try:
            while True:
                state, acts = self._step(state, event, self._now())
                for act in acts:
                    self._carry_out(act)
                if until(state):
                    return state
                event = self._next()
        finally:
            watch.end()

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

    def _now(self) -> float:
        return time.monotonic()

    def _watch(self) -> StopWatch:
        return StopWatch(self._journal, self._events.put)

    def _next(self) -> E | StopAsked | Tick:
        try:
            event = self._events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return Tick()
        if isinstance(event, Exception):
            raise event
        return event


class StopWatch:
    """Looks for a request to stop in a thread of its own, since a disk may keep whoever looks waiting."""

    def __init__(self, journal: Journal, tell: Callable[[StopAsked], None]) -> None:
        self._journal = journal
        self._tell = tell
        self._looked = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="stop-watch", daemon=True).start()
        self._looked.wait(FIRST_LOOK_SECONDS)

    def end(self) -> None:
        """Tell nothing more."""
        self._ended.set()

    def _run(self) -> None:
        told: StopAsked | None = None
        while not self._ended.is_set():
            if self._journal.stop_asked:
                asked = StopAsked(given_up=self._journal.given_up)
                if asked != told and not self._ended.is_set():
                    told = asked
                    self._tell(asked)
            self._looked.set()
            self._ended.wait(TICK_SECONDS)
