"""What worked once with a host, remembered between commands as an empty file."""

from __future__ import annotations

import contextlib
import hashlib
import os

from ..files import state_home


class Remembered:
    """Whether something worked. Where nothing can be stored, it is tried anew each time."""

    def __init__(self, what: str, with_: str) -> None:
        name = hashlib.sha256(with_.encode()).hexdigest()
        self._file = state_home() / "ugro" / what / name

    @property
    def holds(self) -> bool:
        """Tell whether it worked."""
        return self._file.exists()

    def note(self) -> None:
        """Remember that it worked."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_WRONLY, 0o600))

    def forget(self) -> None:
        """Try it anew next time."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
