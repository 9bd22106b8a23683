"""UGRO's processes on this node: finding them, and ending them.

A process is a job's if it carries the job's token in its environment, if it descends from one that is, if the
supervisor remembers it as such, or if it is in the job's cgroup, where it has one (see `scope`). A program may
overwrite its environment (setproctitle), or be started with an empty one; as a subreaper the supervisor has it among
its descendants all the same. Nothing else is ever ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .files import Json, read_json, read_text, state_folder, write_json
from .protocol import MISLEADING

# The flag of a kernel thread, in field 9 of /proc/<pid>/stat.
PF_KTHREAD = 0x200000
# A process may fork and end between two scans of /proc, so "none" needs two empty scans.
SECOND_LOOK_SECONDS = 0.02
# For processes to end after KILL.
KILL_SECONDS = 5.0
MEMORY = re.compile(r"processes-.+\.json")
# <job_id>.<nonce>, with -<attempt> from the second attempt on, as in the tokens of its processes; and the
# node, but in folders of earlier versions.
ATTEMPT_NAME = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*_\d{8}_\d{6}\.[0-9A-Za-z]+)(-\d+)?(\.[A-Za-z0-9][A-Za-z0-9._-]*)?"
)
TOKEN = re.compile("(?:^|\0)UGRO_TOKEN=([^\0:]*:[^\0:]*:[^\0:]*)(?:\0|$)")
# Of a process written down: its pid, its start time, its token.
NOTED = [int, str, str]
# Of a scope of the systemd of user %d: only he can name it, and put processes into it.
SCOPE = r"/user@%d\.service/(?:.*/)?ugro-([^/:\n]*:[^/:\n]*:[^/:\n]*)\.scope(?:/|$)"


class Process(NamedTuple):
    """A living process of a job, or of another one of UGRO's works, with its token."""

    pid: int
    token: str
    command: str

    def facts(self) -> Json:
        """Return the process as sent to the controller, with its user if it is another one's."""
        user = user_of(self.pid)
        is_foreign = user is not None and user != os.getuid()
        foreign: Json = {"user": user_name(user)} if is_foreign else {}
        return dict(self._asdict(), job=job_of(self.token), **foreign)


def job_of(token: str) -> str:
    """Return the job id in <job_id>.<nonce>:<node>:<slot>."""
    return attempt_of(token).rpartition(".")[0]


def job_part(name: str) -> str:
    """Return <job_id>.<nonce> of the name of an attempt or its folder; what is no such name as it is."""
    match = ATTEMPT_NAME.fullmatch(name)
    return match[1] if match else name


def attempt_of(token: str) -> str:
    """Return the attempt, <job_id>.<nonce> or <job_id>.<nonce>-<number>, in a token."""
    return token.split(":")[0]


def slot_of(token: str) -> str:
    """Return the slot in <job_id>.<nonce>:<node>:<slot>."""
    return token.split(":")[2]


def user_of(pid: int) -> Optional[int]:
    """Return the real user of a process, whoever owns its files in /proc; None for no process."""
    found = re.search(r"^Uid:\s*(\d+)", read_text("/proc/%d/status" % pid), re.M)
    return int(found[1]) if found else None


def user_name(user_id: Optional[int]) -> str:
    """Return the name of a user of this machine, for showing."""
    import pwd  # late: few meet other people's files and processes

    try:
        return pwd.getpwuid(-1 if user_id is None else user_id).pw_name
    except (KeyError, OverflowError):
        return "user %s" % user_id


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


def is_paused(pid: int) -> bool:
    """Tell whether a signal such as SIGSTOP has halted a process."""
    return stat_of(pid)[:1] == ["T"]


def stat_of(pid: int) -> List[str]:
    """Return the fields of /proc/<pid>/stat from the third one, the state; [] for no process."""
    return read_text("/proc/%d/stat" % pid).rpartition(")")[2].split()


def identity(pid: int) -> Json:
    """Return the facts that distinguish a process from a later one with the same pid."""
    return {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}


def supervisor_of(folder: str) -> Optional[int]:
    """Return the pid of the living supervisor of a job's folder, else None."""
    was = read_json(os.path.join(folder, "supervisor.json")) or {}
    pid = was.get("pid")
    # A rank can write there as well.
    if not isinstance(pid, int) or identity(pid) != was:
        return None
    return pid


def supervisor_argv(program: str, folder: str) -> List[str]:
    """Return the command of a job's supervisor: node.zip with the job's folder."""
    return [sys.executable, "-ES", program, "supervise", folder]


def folder_of_supervisor(pid: int) -> Optional[str]:
    """Return the job's folder of a process started by `supervisor_argv`, None for any other process."""
    words = read_text("/proc/%d/cmdline" % pid).split("\0")
    is_supervisor = words[1:2] == ["-ES"] and words[3:4] == ["supervise"]
    return words[4] if is_supervisor and len(words) > 4 else None


def processes(wanted: Callable[[str], bool]) -> List[Process]:
    """Return the living processes with a wanted token, their own or an ancestor's, except this one."""
    found = []
    own_pid = os.getpid()
    for pid, token in sorted(tokens_of_all().items()):
        if pid == own_pid or not wanted(token):
            continue
        found.append(Process(pid, token, command_of(pid)))
    return found


def tokens_of_all() -> Dict[int, str]:
    """Return {pid: token} of each living process of UGRO's."""
    parents: Dict[int, int] = {}
    starts: Dict[int, str] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        fields = stat_of(int(name))
        if is_alive(fields):
            parents[int(name)] = int(fields[1])
            starts[int(name)] = fields[19]
    tokens: Dict[int, str] = {}
    for pid, start, token in noted_processes():
        if starts.get(pid) == start:
            tokens[pid] = token
    for pid in parents:
        match = TOKEN.search(environment_of(pid))
        if match:
            tokens[pid] = match[1]
    for pid in parents:
        # A job may be started by a rank of another one, in its cgroup.
        known = nearest_token(pid, parents, tokens) or token_of_scope(pid)
        if known:
            tokens.setdefault(pid, known)
    return {pid: token for pid, token in tokens.items() if start_time(pid) is not None}


def token_of_scope(pid: int) -> Optional[str]:
    """Return the token of the scope a process is in, see `scope.scope_argv`; None without one."""
    found = re.search(SCOPE % os.getuid(), read_text("/proc/%d/cgroup" % pid), re.M)
    return found[1] if found else None


def nearest_token(
    pid: int, parents: Dict[int, int], tokens: Dict[int, str]
) -> Optional[str]:
    """Return the token of a process or of its nearest ancestor with one."""
    seen: Set[int] = set()
    while pid in parents and pid not in seen:
        if pid in tokens:
            return tokens[pid]
        seen.add(pid)
        pid = parents[pid]
    return None


def command_of(pid: int) -> str:
    """Return the start of a process's command; its name in brackets if it shows none, "" if it has ended."""
    words = read_text("/proc/%d/cmdline" % pid).replace("\0", " ").strip()
    name = read_text("/proc/%d/comm" % pid).strip()
    return words[:200] or ("[%s]" % name if name else "")


# ---- what a supervisor remembers ----


def memory_path(slot: str) -> str:
    """Return the path of what the last supervisor in a slot remembers of its rank's processes."""
    return os.path.join(state_folder(), "processes-%s.json" % slot)


def note_processes(token: str) -> None:
    """Write down the processes of a rank, for whoever looks for them after its supervisor was killed."""
    found = [[one.pid, start_time(one.pid), one.token] for one in of_rank(token)]
    memory = {"boot_id": boot_id(), "processes": found}
    path = memory_path(slot_of(token))
    # Nothing depends on it but the aftermath of a kill.
    with contextlib.suppress(OSError):
        if read_json(path) != memory:
            write_json(path, memory)


def forget_processes(token: str) -> None:
    """Remove what is written down of a rank of which nothing is left."""
    with contextlib.suppress(OSError):
        os.unlink(memory_path(slot_of(token)))


def noted_processes() -> Iterator[Tuple[int, str, str]]:
    """Yield (pid, start time, token) of each process written down since this boot."""
    folder = state_folder()
    names: List[str] = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if MEMORY.fullmatch(name)]
    for name in names:
        memory = read_json(os.path.join(folder, name)) or {}
        if memory.get("boot_id") != boot_id():
            continue
        noted = memory.get("processes")
        for one in noted if isinstance(noted, list) else []:
            # A rank can write there as well, and none may keep others from being found.
            is_whole = isinstance(one, list) and [type(part) for part in one] == NOTED
            if is_whole and one[2].count(":") == 2:
                yield one[0], one[1], one[2]


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
                # One of another user, as by sudo, stays and is told of.
                with contextlib.suppress(ProcessLookupError, PermissionError):
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
