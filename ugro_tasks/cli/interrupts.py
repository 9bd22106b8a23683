"""Turn SIGINT into a flag that a loop polls."""

from __future__ import annotations

import signal
import threading


class Interrupts:
    """A Ctrl-C handler: within `with`, Ctrl-C sets a flag and raises nothing.

    So it cannot strike between creating a job and printing its id. Only the main thread may handle
    signals; in another thread Ctrl-C is left as it is.
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
        """Return whether Ctrl-C was pressed since the last call."""
        pressed = self._pressed > 0
        self._pressed = 0
        return pressed
