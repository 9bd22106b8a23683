"""TERM for a rank inside a collective, where no Python signal handler runs.

stop = Stop(say, agree_seconds=lambda: 3.0)
... each step: send stop.asked to the other ranks; once all know of it: stop.agreed.set()
... save a checkpoint; stop.saved.set(); sys.exit(STOPPED_BY_TERM)
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

STOPPED_BY_TERM = 128 + signal.SIGTERM
# From TERM to KILL: torchrun's time for its workers, as set by UGRO, less a little to end before it.
GRACE_SECONDS = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "15")) - 1.0


class Stop:
    """The state of a stop by TERM.

    `asked` is set by TERM, `agreed` by the caller once all ranks know, `saved` once the checkpoint is whole. If the
    ranks do not agree within `agree_seconds`, because a peer is gone, or if the checkpoint takes longer than the grace
    time, this rank says so and ends with STOPPED_BY_TERM.
    """

    def __init__(
        self, say: Callable[[str], None], *, agree_seconds: Callable[[], float]
    ) -> None:
        self.asked = threading.Event()
        self.agreed = threading.Event()
        self.saved = threading.Event()
        self._say = say
        self._agree_seconds = agree_seconds
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # The C handler writes to it, even while Python is inside a collective.
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._watch, name="watch-for-term", daemon=True).start()

    def _watch(self) -> None:
        while os.read(self._reader, 1)[0] != signal.SIGTERM:
            pass
        deadline = time.monotonic() + GRACE_SECONDS
        self.asked.set()
        agree_seconds = min(self._agree_seconds(), GRACE_SECONDS)
        if not self.agreed.wait(agree_seconds):
            self._leave("with no step in common, so without a checkpoint")
        seconds_left = max(0.0, deadline - time.monotonic())
        if not self.saved.wait(seconds_left):
            self._leave("before all ranks had saved")

    def _leave(self, how: str) -> None:
        self._say(f"rank {os.environ.get('RANK', '0')}: stopped by TERM {how}")
        os._exit(STOPPED_BY_TERM)
