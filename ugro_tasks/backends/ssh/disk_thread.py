"""Work on a disk of this machine, waited for only so long."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# A disk that takes longer for one piece of a stream does not answer: a server that is gone, a stick that was pulled.
ANSWER_SECONDS = 3.0


class DiskThread:
    """Does one piece of work after the other in a thread of its own, which may be left behind."""

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self._todo: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = (
            queue.SimpleQueue()
        )
        self._is_late = False
        threading.Thread(target=self._run, name="disk", daemon=True).start()

    def do(self, work: Callable[[], T]) -> T:
        """Return what the work gives, or raise what it raises.

        Raises OSError if it takes too long, and from then on until that is done after all.
        """
        if self._is_late:
            self._take(0.0)
        self._todo.put(work)
        result, error = self._take(self._answer_seconds)
        if error:
            raise error
        done: T = result
        return done

    def close(self) -> None:
        """End the thread once its work is done; nobody waits for it."""
        self._todo.put(None)

    def _take(self, seconds: float) -> tuple[Any, BaseException | None]:
        try:
            done = (
                self._done.get(timeout=seconds) if seconds else self._done.get_nowait()
            )
        except queue.Empty:
            self._is_late = True
            raise OSError(errno.ETIMEDOUT, "the disk does not answer") from None
        self._is_late = False
        return done

    def _run(self) -> None:
        for work in iter(self._todo.get, None):
            try:
                self._done.put((work(), None))
            except BaseException as error:  # it is raised where it is waited for
                self._done.put((None, error))
