"""The processes of this node that belong to UGRO, found by their token, and ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .files import Json, read_json, read_text
from .protocol import MISLEADING

PF_KTHREAD = 0x200000  # a kernel thread, in field 9 of /proc/<pid>/stat
# A process may fork and end between two looks at the process table; only twice nothing is nothing.
SECOND_LOOK_SECONDS = 0.02
TOKEN = re.compile("(?:^|\0)UGRO_TOKEN=([^\0:]*:[^\0:]*:[^\0:]*)(?:\0|$)")


class Process(NamedTuple):
    """A living process that carries a UGRO token."""

    pid: int
    token: str
    command: str

    def facts(self) -> Json:
        """As it travels to the controller."""
        return dict(self._asdict(), job=job_of(self.token))


def job_of(token: str) -> str:
    """The job id in <job_id>.<nonce>:<node>:<slot>."""
    return token.split(":")[0].rpartition(".")[0]


def slot_of(token: str) -> str:
    """The slot in <job_id>.<nonce>:<node>:<slot>."""
    return token.split(":")[2]


# ---- processes ----


def boot_id() -> str:
    """Changes at each boot of the node."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def start_time(pid: int) -> Optional[str]:
    """Clock ticks since boot (field 22 of /proc/<pid>/stat); None where there is no such process or only a zombie."""
    fields = stat_of(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def stat_of(pid: int) -> List[str]:
    """/proc/<pid>/stat from its third field, the state, on; [] where there is no such process."""
    return read_text("/proc/%d/stat" % pid).rpartition(")")[2].split()


def identity(pid: int) -> Json:
    """What tells a process from a later one with the same pid."""
    return {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}


def supervisor_of(folder: str) -> Optional[int]:
    """The pid of the living supervisor of a job's folder."""
    was = read_json(os.path.join(folder, "supervisor.json"))
    return was["pid"] if was and identity(was["pid"]) == was else None


def processes(wanted: Callable[[str], bool]) -> List[Process]:
    """Every living process of this user with a token that is wanted; never this one."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        match = TOKEN.search(environment_of(int(entry)))
        if match and wanted(match[1]) and start_time(int(entry)) is not None:
            command = read_text("/proc/%s/cmdline" % entry).replace("\0", " ").strip()
            found.append(Process(int(entry), match[1], command[:200]))
    return found


def environment_of(pid: int) -> str:
    """The environment that a process of this user was started with; "" where it cannot be known.

    In the midst of an execve it reads as empty, so that is read again for some milliseconds.
    """
    path = "/proc/%d/environ" % pid
    try:
        if os.stat(path).st_uid != os.getuid():
            return ""
    except OSError:
        return ""
    for _ in range(5):
        raw = read_text(path)
        fields = stat_of(pid)
        if raw or not fields or fields[0] in "ZX" or int(fields[6]) & PF_KTHREAD:
            return raw
        time.sleep(0.001)
    return ""


def clean_environment() -> Dict[str, str]:
    """This process's environment without what would mislead torchrun."""
    return {
        key: value for key, value in os.environ.items() if not MISLEADING.match(key)
    }


def of_rank(token: str) -> List[Process]:
    """The living processes of one rank."""
    return processes(lambda found: found == token)


def of_slot(slot: str) -> List[Process]:
    """The living processes of any rank in a slot."""
    return processes(lambda found: slot_of(found) == slot)


def end_all(find: Callable[[], List[Process]], grace_seconds: float) -> List[Process]:
    """TERM to all that `find` finds, KILL after the grace, until nothing is found; gives what would not go."""
    for signum, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        told: Set[int] = set()
        while True:
            list(reap())
            found = find()
            if not found:
                time.sleep(SECOND_LOOK_SECONDS)
                found = find()
                if not found:
                    return []
            for process in found:
                if process.pid not in told:
                    told.add(process.pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signum)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
    return find()


def reap() -> Iterator[Tuple[int, int]]:
    """(pid, wait status) of each child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, status
