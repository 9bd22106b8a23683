"""Writing into an experiment folder without anybody waiting for its disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

RETRY_SECONDS = 1.0

Write = Callable[[], None]


class WriteBehind:
    """Does one write after the other in a thread of its own, each for as long as it takes.

    A full disk, one that is read-only or out of inodes, a folder that was moved or unmounted: nothing that acts on
    nodes waits for it, and nothing is left out once it is back. `recover` is called after each failure, and writes are
    dropped where `is_in_vain` says that nothing can ever be written.
    """

    def __init__(
        self,
        log: logging.Logger,
        recover: Callable[[], None],
        is_in_vain: Callable[[], bool],
    ) -> None:
        self._log = log
        self._recover = recover
        self._is_in_vain = is_in_vain
        self._waiting: deque[tuple[Write, str | None]] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_abandoned = False
        self._fault: Exception | None = None

    def put(self, write: Write, *, of: str | None = None) -> None:
        """Have this written, after all that was put before it.

        `of` names what is written whole: a write of it that waits as the last one is left out, since this one has all
        that it had. Raises the exception of an earlier write that is no OSError.
        """
        with self._changed:
            self._raise_fault()
            if of and self._waiting and self._waiting[-1][1] == of:
                self._waiting.pop()
            self._waiting.append((write, of))
            if not self._is_writing:
                self._is_writing = True
                self._begin()

    def settle(self) -> None:
        """Wait until all is written, for as long as it takes; raises as `put` does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_writing)
            self._raise_fault()

    def abandon(self) -> None:
        """Drop what is not written, and return when nothing is being written any more."""
        with self._changed:
            self._waiting.clear()
            self._is_abandoned = True
            self._changed.wait_for(lambda: not self._is_writing)

    def _begin(self) -> None:
        """Begin to write what waits."""
        threading.Thread(target=self._run, name="writing", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._fault:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                write, _ = self._waiting.popleft()
            try:
                self._insist(write)
            except Exception as error:  # a thread's edge
                self._fault = error

    def _insist(self, write: Write) -> None:
        warned = False
        while True:
            try:
                return write()
            except OSError as error:
                if not warned:
                    self._log.error(
                        "%s: %s; trying again", error.filename, error.strerror
                    )
                warned = True
                self._recover()
                if self._is_abandoned or self._is_in_vain():
                    return None
                time.sleep(RETRY_SECONDS)

    def _raise_fault(self) -> None:
        if self._fault:
            raise self._fault
