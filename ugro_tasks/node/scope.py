"""A cgroup of a job's own, without root: a scope of the user's systemd, see systemd.scope(5).

It does not end with the login that started it, and whatever starts in it stays in it, under any name and with any
environment. That holds only where the user lingers, see loginctl(1): else the user's systemd ends with his last login,
and its scopes with it.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Callable, List

from .files import Json
from .processes import user_name
from .programs import run_later

# See sd_booted(3).
SYSTEMD = "/run/systemd/system"
LINGERING = "/var/lib/systemd/linger"
# See systemd.unit(5).
UNIT_NAME_MAX = 255
LOGIND = (
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
)
# See logind.conf(5).
SETTINGS = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")
LIMIT_SECONDS = 5.0


def scope_argv(token: str) -> List[str]:
    """Return what stands before a command that is to run in the scope of a token; [] where there can be none.

    `processes.token_of_scope` finds the token again.
    """
    unit = "ugro-%s.scope" % token
    program = shutil.which("systemd-run")
    has_systemd = lingers() and os.path.isdir(runtime_folder() + "/systemd")
    if not (program and has_systemd and len(unit) <= UNIT_NAME_MAX):
        return []
    # Not every login is told where its systemd is.
    told = ["env", "XDG_RUNTIME_DIR=" + runtime_folder()]
    options = ["--user", "--scope", "--collect", "--quiet", "--unit=" + unit, "--"]
    return [*told, program, *options]


def runtime_folder() -> str:
    """Return the folder of this user's systemd, see pam_systemd(8)."""
    return "/run/user/%d" % os.getuid()


def lingers() -> bool:
    """Tell whether this user's systemd goes on without a login."""
    return os.path.exists(os.path.join(LINGERING, user_name(os.getuid())))


def look_at_logout() -> Callable[[], Json]:
    """Start to ask what becomes of this user's processes when the login ends that started them.

    Returns a function that waits for {kills, lingers, scope_error}: whether logind ends them, whether the user's
    systemd goes on, and why nothing can run in a scope of it; "" if it can, or need not.
    """
    if not os.path.isdir(SYSTEMD):
        return lambda: {"kills": False, "lingers": False, "scope_error": ""}
    asked = run_later(["busctl", "get-property", *LOGIND, *SETTINGS], LIMIT_SECONDS)

    def finish() -> Json:
        kills = is_killed(user_name(os.getuid()), asked()["stdout"])
        goes_on = lingers()
        error = error_of_scope() if kills and goes_on else ""
        return {"kills": kills, "lingers": goes_on, "scope_error": error}

    return finish


def is_killed(user: str, said: str) -> bool:
    """Tell whether logind ends a user's processes, by what busctl says of SETTINGS, a line each."""
    lines = said.splitlines()
    if len(lines) != len(SETTINGS) or lines[0] != "b true":
        return False
    only, but = (re.findall(r'"([^"]*)"', line) for line in lines[1:])
    return user not in but and (not only or user in only)


def error_of_scope() -> str:
    """Return why nothing can run in a scope of the user's systemd, "" if something can."""
    argv = scope_argv("probe-%d" % os.getpid())
    if not argv:
        return "systemd-run or the user's systemd is missing"
    tried = run_later([*argv, "true"], LIMIT_SECONDS)()
    return "" if tried["code"] == 0 else tried["stderr"].strip() or "systemd-run fails"
