"""UGRO's processes on this node: finding them by their token, and ending them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .files import Json, read_json, read_text
from .protocol import MISLEADING

# The flag of a kernel thread, in field 9 of /proc/<pid>/stat.
PF_KTHREAD = 0x200000
# A process may fork and end between two scans of /proc, so "none" needs two empty scans.
SECOND_LOOK_SECONDS = 0.02
# For processes to end after KILL.
KILL_SECONDS = 5.0
TOKEN = re.compile("(?:^|\0)UGRO_TOKEN=([^\0:]*:[^\0:]*:[^\0:]*)(?:\0|$)")


class Process(NamedTuple):
    """A living process with a UGRO token."""

    pid: int
    token: str
    command: str

    def facts(self) -> Json:
        """Return the process as sent to the controller."""
        return dict(self._asdict(), job=job_of(self.token))


def job_of(token: str) -> str:
    """Return the job id in <job_id>.<nonce>:<node>:<slot>."""
    return token.split(":")[0].rpartition(".")[0]


def slot_of(token: str) -> str:
    """Return the slot in <job_id>.<nonce>:<node>:<slot>."""
    return token.split(":")[2]


def boot_id() -> str:
    """Return an id that changes at each boot of the node."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def start_time(pid: int) -> Optional[str]:
    """Return a process's start in clock ticks since boot; None for no process or a zombie.

    It is field 22 of /proc/<pid>/stat, see proc(5).
    """
    fields = stat_of(pid)
    return fields[19] if is_alive(fields) else None


def is_alive(fields: List[str]) -> bool:
    """Tell whether the fields of `stat_of` are of a process that is neither a zombie nor dead."""
    return bool(fields) and fields[0] not in "ZX"


def stat_of(pid: int) -> List[str]:
    """Return the fields of /proc/<pid>/stat from the third one, the state; [] for no process."""
    return read_text("/proc/%d/stat" % pid).rpartition(")")[2].split()


def identity(pid: int) -> Json:
    """Return the facts that distinguish a process from a later one with the same pid."""
    return {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}


def supervisor_of(folder: str) -> Optional[int]:
    """Return the pid of the living supervisor of a job's folder, else None."""
    was = read_json(os.path.join(folder, "supervisor.json"))
    if not was or identity(was["pid"]) != was:
        return None
    pid: int = was["pid"]
    return pid


def supervisor_argv(program: str, folder: str) -> List[str]:
    """Return the command of a job's supervisor: node.zip with the job's folder."""
    return [sys.executable, "-ES", program, "supervise", folder]


def folder_of(process: Process) -> Optional[str]:
    """Return the job's folder of a supervisor, None for any other process."""
    if not is_supervisor(process.pid):
        return None
    words = read_text("/proc/%d/cmdline" % process.pid).split("\0")
    return words[4] if len(words) > 4 else None


def is_supervisor(pid: int) -> bool:
    """Tell whether a process was started by `supervisor_argv`."""
    words = read_text("/proc/%d/cmdline" % pid).split("\0")
    return words[1:2] == ["-ES"] and words[3:4] == ["supervise"]


def processes(wanted: Callable[[str], bool]) -> List[Process]:
    """Return this user's living processes with a wanted token, except this one."""
    found = []
    own_pid = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        if pid == own_pid:
            continue
        match = TOKEN.search(environment_of(pid))
        if not match or not wanted(match[1]):
            continue
        if start_time(pid) is None:
            continue
        argv = read_text("/proc/%d/cmdline" % pid)
        command = argv.replace("\0", " ").strip()
        found.append(Process(pid, match[1], command[:200]))
    return found


def environment_of(pid: int) -> str:
    """Return the environment a process of this user was started with; "" if unknown.

    During an execve it reads as empty, so it is read again for some milliseconds.
    """
    path = "/proc/%d/environ" % pid
    try:
        if os.stat(path).st_uid != os.getuid():
            return ""
    except OSError:
        return ""
    for _ in range(5):
        raw = read_text(path)
        if raw:
            return raw
        fields = stat_of(pid)
        is_kernel_thread = bool(fields) and int(fields[6]) & PF_KTHREAD
        if not is_alive(fields) or is_kernel_thread:
            return ""
        time.sleep(0.001)
    return ""


def clean_environment() -> Dict[str, str]:
    """Return this process's environment without variables misleading torchrun."""
    kept = {}
    for key, value in os.environ.items():
        if not MISLEADING.match(key):
            kept[key] = value
    return kept


def of_rank(token: str) -> List[Process]:
    """Return the living processes of one rank."""
    return processes(lambda found: found == token)


def of_slot(slot: str) -> List[Process]:
    """Return the living processes of any rank in a slot."""
    return processes(lambda found: slot_of(found) == slot)


def end_all(find: Callable[[], List[Process]], grace_seconds: float) -> List[Process]:
    """Send TERM to all processes found by `find`, and KILL after the grace, until none is found.

    Returns the processes still alive after that.
    """
    steps = ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, KILL_SECONDS))
    for signum, seconds in steps:
        deadline = time.monotonic() + seconds
        signalled: Set[int] = set()
        while True:
            # Zombies among this process's children would be found forever.
            list(reap())
            found = find()
            if not found:
                time.sleep(SECOND_LOOK_SECONDS)
                found = find()
            if not found:
                return []
            for process in found:
                if process.pid in signalled:
                    continue
                signalled.add(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signum)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
    return find()


def reap() -> Iterator[Tuple[int, int]]:
    """Yield (pid, wait status) of each child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, status
