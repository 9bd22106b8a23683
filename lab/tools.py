"""What the lab needs of this machine: programs, rights, and a look at its processes."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# sbin is not on every root's PATH.
TOOL_PATH = (
    f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
)

# Program -> Debian package.
TOOLS = {
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "rsync": "rsync",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}

# What some test on the lab wants, which is left out where it is missing.
WISHES = {"tcsh": "tcsh"}

# What a kernel or a container says when root may not, or the kernel cannot.
REFUSALS = (
    "not permitted",
    "denied",
    "not supported",
    "No such device",
    "Unknown device type",
)


class LabError(Exception):
    """The lab itself, not what is tested on it, did not do as asked."""


class LabUnavailable(LabError):
    """This machine or user cannot have a lab; the message says why and what to do."""


def missing_packages() -> list[str]:
    """The Debian packages that the lab and its tests still need here, sorted."""
    return sorted(
        {package for tool, package in (TOOLS | WISHES).items() if which(tool) is None}
    )


def require_means() -> None:
    """Raise LabUnavailable unless we are root and have every program."""
    if os.geteuid() != 0:
        raise LabUnavailable(
            "the lab makes hosts out of kernel namespaces: run it as root"
        )
    missing = [tool for tool in TOOLS if which(tool) is None]
    if missing:
        packages = " ".join(missing_packages())
        raise LabUnavailable(
            f"not installed: {', '.join(missing)} (apt-get install {packages})"
        )


def which(tool: str) -> str | None:
    return shutil.which(tool, path=TOOL_PATH)


def lab_token(folder: Path) -> dict[str, str]:
    """What every process that belongs to the lab itself has in its environment, and only those."""
    return {"LAB_FOLDER_OF": str(folder)}


def lab_processes(folder: Path) -> list[int]:
    """The pids of the lab's own processes: the switch, each host's process 1, slow wires."""
    ((name, value),) = lab_token(folder).items()
    return [pid for pid in pids() if has_variable(pid, name, value)]


def has_variable(pid: int, name: str, value: object) -> bool:
    """Tell whether a process was started with this in its environment."""
    return f"{name}={value}".encode() in read_proc(pid, "environ").split(b"\0")


def pids() -> Iterator[int]:
    return (
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    )


def read_proc(pid: int, name: str) -> bytes:
    """A file of /proc/<pid>; empty when the process has ended or is closed even to root."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def checked(argv: Sequence[str], script: str = "") -> subprocess.CompletedProcess[str]:
    """A command that must succeed; else LabError has what it said."""
    done = subprocess.run(
        argv,
        input=script,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": TOOL_PATH},
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{shlex.join(argv)} failed ({done.returncode}): {said}")
    return done


def wait_until(met: Callable[[], bool], what: str, timeout_seconds: float = 30) -> None:
    """Return when the condition is met; LabError after timeout_seconds."""
    deadline = time.monotonic() + timeout_seconds
    while not met():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_seconds:g} s for {what}")
        time.sleep(0.005)
