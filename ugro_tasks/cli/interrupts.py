"""Ctrl-C as something to ask for."""

from __future__ import annotations

import signal
import threading


class Interrupts:
    """Ctrl-C while this is entered. It must not strike between a job and the word about it.

    In a thread of somebody's program there is none: only the main thread may handle signals.
    """

    def __init__(self) -> None:
        self._pressed = 0
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interrupts:
        if self._in_main:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self._pressed += 1

    def take(self) -> bool:
        """Whether it was pressed since the last time."""
        pressed, self._pressed = self._pressed, 0
        return pressed > 0
