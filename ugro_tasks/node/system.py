"""Files, processes and the lease of a node, as the other modules see them."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

Json = Dict[str, Any]
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


# ---- files ----


def expand(path: str) -> str:
    """A leading ~/ becomes this node's home."""
    return os.path.expanduser(path) if path.startswith("~/") else path


def read_text(path: str) -> str:
    """The file as text, invalid bytes replaced; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def read_json(path: str) -> Optional[Json]:
    """The object in a file of this package; None where there is none."""
    raw = read_text(path)
    return json.loads(raw) if raw else None


def write_json(path: str, value: Json) -> None:
    """Whole or not at all, readable by this user only."""
    temporary = "%s.%d" % (path, os.getpid())
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except OSError:  # the disk is full: no half of it may stay
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def state_folder() -> str:
    """~/.ugro: leases and what is remembered between requests. It may be missing where the home cannot be written."""
    path = os.path.expanduser("~/.ugro")
    with contextlib.suppress(OSError):  # who has to write into it says so
        os.makedirs(path, mode=0o700, exist_ok=True)
    return path


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


# ---- the lease ----


def lease_path(slot: str) -> str:
    """One lease a slot; a machine has one slot, the built-in local cluster one for each of its nodes."""
    return os.path.join(state_folder(), "lease-%s.json" % slot)


def take_lease(slot: str, holder: Json) -> Optional[io.TextIOWrapper]:
    """The locked lease file, which is the lease for as long as it is open; None where another process has it."""
    lease = open(os.open(lease_path(slot), os.O_RDWR | os.O_CREAT, 0o600), "r+")  # noqa: SIM115
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lease.close()
        return None
    lease.truncate(0)
    json.dump(holder, lease)
    lease.flush()
    return lease


def lease_holder(slot: str) -> Optional[Json]:
    """What the holder of the lease wrote into it; None where it is free."""
    try:
        with open(lease_path(slot)) as lease:
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return read_json(lease_path(slot)) or {}
    return None
