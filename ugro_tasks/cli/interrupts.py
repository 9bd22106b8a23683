"""Ctrl-C as something to ask for."""

from __future__ import annotations

import signal


class Interrupts:
    """Ctrl-C while this is entered. It must not strike between a job and the word about it."""

    def __init__(self) -> None:
        self._pressed = 0

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self._pressed += 1

    def take(self) -> bool:
        """Whether it was pressed since the last time."""
        pressed, self._pressed = self._pressed, 0
        return pressed > 0
