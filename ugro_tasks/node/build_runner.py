"""A runner of long programs, with progress for a controller that may disconnect."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import select
import signal
import subprocess
import time
from typing import Any, Dict, Generator, Iterator, List, Optional

from .files import NO_LOCKS, Json, read_end, read_text
from .processes import end_all, of_rank

PROGRESS_SECONDS = 0.5
POLL_SECONDS = 0.05
TAIL_BYTES = 6000
PR_SET_PDEATHSIG = 1


class Runner:
    """Runs programs one after the other, with their output in one log.

    The controller must send a byte on stdin at least every `silence_seconds`. Otherwise, or if
    stdin is closed, this process ends together with the program. Every program has `token` in its
    environment.
    """

    def __init__(self, log: str, token: str, silence_seconds: float) -> None:
        self.log = log
        self.token = token
        self.silence_seconds = silence_seconds
        self.begun = time.monotonic()
        self.heard = self.begun
        # Written by the programs so far.
        self.bytes = 0

    def take_lock(self, lock: Any) -> Iterator[Json]:
        """Lock a file, yielding progress until another build has released it.

        Where the file system has no locks, the leases of this machine have to do.
        """
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                return None
            yield self.progress("waiting for another build")
            self.listen(PROGRESS_SECONDS)

    def call(
        self, phase: str, argv: List[str], variables: Dict[str, str], folder: str
    ) -> "Generator[Json, None, Optional[int]]":
        """Run a program, yielding progress; returns its exit code, for `yield from`."""
        with open(self.log, "ab") as log:
            log.write(("$ %s\n" % " ".join(argv)).encode())
            log.flush()
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=dict(variables, UGRO_TOKEN=self.token),
                start_new_session=True,
                preexec_fn=be_a_child,
            )
        bytes_before = self.bytes
        told_at = 0.0
        code: Optional[int] = None
        try:
            while code is None:
                if time.monotonic() - told_at >= PROGRESS_SECONDS:
                    self.bytes = bytes_before + bytes_written(child.pid)
                    yield self.progress(phase)
                    told_at = time.monotonic()
                self.listen(POLL_SECONDS)
                code = child.poll()
        finally:
            if code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGTERM)
                end_all(lambda: of_rank(self.token), 1.0)
        return code

    def listen(self, seconds: float) -> None:
        """Wait for a while, and exit if the controller is gone."""
        readable, _, _ = select.select([0], [], [], seconds)
        if readable:
            if not os.read(0, 4096):
                raise SystemExit(0)
            self.heard = time.monotonic()
        if time.monotonic() - self.heard > self.silence_seconds:
            raise SystemExit(0)

    def progress(self, phase: str) -> Json:
        """Return {"progress": {phase, seconds, bytes, line}}; `line` is the log's last one."""
        lines = self.tail()[-1000:].strip().split("\n")
        facts = {
            "phase": phase,
            "seconds": time.monotonic() - self.begun,
            "bytes": self.bytes,
            "line": lines[-1].strip(),
        }
        return {"progress": facts}

    def tail(self) -> str:
        """Return the end of the log."""
        return read_end(self.log, TAIL_BYTES)


def be_a_child() -> None:
    """Make a child end with its parent; called between fork and exec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def bytes_written(pid: int) -> int:
    """Return the bytes written by a process so far, to files and pipes."""
    text = read_text("/proc/%d/io" % pid)
    found = re.search(r"wchar: (\d+)", text)
    return int(found[1]) if found else 0
