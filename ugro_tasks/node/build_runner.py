"""A program that takes long, for a controller that wants to hear how it goes, and that may be gone before it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from typing import Dict, Generator, List, Optional

from .files import Json, read_text
from .processes import end_all, of_rank

PROGRESS_SECONDS = 0.5
POLL_SECONDS = 0.05
TAIL_CHARACTERS = 6000
PR_SET_PDEATHSIG = 1


class Runner:
    """Runs programs one after the other, with what they say in one log.

    Whoever asked must be heard of on stdin at least every `silence_seconds`; else, and where stdin ends, this process
    ends and takes the program with it. All that runs carries `token`.
    """

    def __init__(self, log: str, token: str, silence_seconds: float) -> None:
        self.log, self.token, self.silence_seconds = log, token, silence_seconds
        self.begun = self.heard = time.monotonic()
        self.bytes = 0  # written by the programs so far

    def call(
        self, phase: str, argv: List[str], variables: Dict[str, str], folder: str
    ) -> "Generator[Json, None, Optional[int]]":
        """Progress until the program has ended; give its exit code to `yield from`."""
        with open(self.log, "ab") as log:
            log.write(("$ %s\n" % " ".join(argv)).encode())
            log.flush()
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                env=dict(variables, UGRO_TOKEN=self.token), start_new_session=True, preexec_fn=be_a_child,
            )  # fmt: skip
        before, told = self.bytes, 0.0
        code: Optional[int] = None
        try:
            while code is None:
                if time.monotonic() - told >= PROGRESS_SECONDS:
                    self.bytes = before + bytes_written(child.pid)
                    yield self.progress(phase)
                    told = time.monotonic()
                self.listen(POLL_SECONDS)
                code = child.poll()
        finally:
            if code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGTERM)
                end_all(lambda: of_rank(self.token), 1.0)
        return code

    def listen(self, seconds: float) -> None:
        """Wait so long, and end where nobody is there any more."""
        if select.select([0], [], [], seconds)[0]:
            if not os.read(0, 4096):
                raise SystemExit(0)
            self.heard = time.monotonic()
        if time.monotonic() - self.heard > self.silence_seconds:
            raise SystemExit(0)

    def progress(self, phase: str) -> Json:
        """How it goes: {"progress": {phase, seconds, bytes, line}}; the line is the log's last."""
        lines = self.tail()[-1000:].split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        seconds = time.monotonic() - self.begun
        return {
            "progress": {
                "phase": phase,
                "seconds": seconds,
                "bytes": self.bytes,
                "line": last,
            }
        }

    def tail(self) -> str:
        """The end of the log."""
        return read_text(self.log)[-TAIL_CHARACTERS:]


def be_a_child() -> None:
    """Between fork and exec: end with the process that asked."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def bytes_written(pid: int) -> int:
    """What a process has written so far, to files and pipes."""
    found = re.search(r"wchar: (\d+)", read_text("/proc/%d/io" % pid))
    return int(found[1]) if found else 0
