"""Processes that may be a rank's, by signs that prove nothing: they are named, and left alone.

One that another service has started for a rank (at, tmux, the user's systemd, a login to this same node) neither
descends from the supervisor nor carries the token.
"""

from __future__ import annotations

import os
from typing import Iterator, List, Optional, Set

from .files import Json
from .processes import (
    command_of,
    is_alive,
    noted_processes,
    stat_of,
    tokens_of_all,
    user_of,
)
from .protocol import PROCESSES_TOLD


def suspects(token: str, folder: str) -> List[Json]:
    """Return {pid, command, why} of this user's processes that began after this one, and may be of its rank."""
    since = int(stat_of(os.getpid())[19])
    noted = {pid for pid, _, of in noted_processes() if of == token}
    known = tokens_of_all()
    inside = os.path.realpath(folder)
    found = []
    for pid in younger(since):
        why = None if pid in known else suspicion(pid, inside, noted)
        if why:
            found.append({"pid": pid, "command": command_of(pid), "why": why})
    return found[:PROCESSES_TOLD]


def younger(since: int) -> Iterator[int]:
    """Yield the pids of this user's processes that began after a time, in clock ticks since boot."""
    for name in os.listdir("/proc"):
        fields = stat_of(int(name)) if name.isdigit() else []
        is_younger = is_alive(fields) and int(fields[19]) > since
        if is_younger and user_of(int(name)) == os.getuid():
            yield int(name)


def suspicion(pid: int, folder: str, noted: Set[int]) -> Optional[str]:
    """Return why a process may be of the rank of a folder, a real path; None if nothing says so."""
    fields = stat_of(pid)
    if fields and int(fields[3]) in noted:
        return "it is in a session of the job's"
    try:
        place = os.readlink("/proc/%d/cwd" % pid)
        with open("/proc/%d/environ" % pid, "rb"):
            pass
    except PermissionError:
        return None if is_of_login(pid) else "it may not be looked at"
    except OSError:
        return None
    is_inside = (place + "/").startswith(folder + "/")
    return "it is in the job's folder" if is_inside else None


def is_of_login(pid: int) -> bool:
    """Tell whether a process belongs to a login itself: root's sshd has started it, or the user's systemd for PAM."""
    fields = stat_of(pid)
    return bool(fields) and (
        user_of(int(fields[1])) != os.getuid() or command_of(pid) == "(sd-pam)"
    )
