"""The lab's needs of this machine: programs, rights, and access to its processes."""

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

# Programs of single tests, which are left out without them.
WISHES = {"tcsh": "tcsh"}

# Words of the kernel for operations that are forbidden or not supported.
REFUSALS = (
    "not permitted",
    "denied",
    "not supported",
    "No such device",
    "Unknown device type",
)


class LabError(Exception):
    """A failure of the lab itself, not of the code tested on it."""


class LabUnavailable(LabError):
    """No lab is possible for this machine or user; the message has the reason and a remedy."""


def missing_packages() -> list[str]:
    """Return the Debian packages missing for the lab and its tests, sorted."""
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
    """Return the variable in the environment of every process of the lab, and of no other."""
    return {"LAB_FOLDER_OF": str(folder)}


def lab_processes(folder: Path) -> list[int]:
    """Return the pids of the lab's own processes: the switch, each host's process 1, slow wires."""
    ((name, value),) = lab_token(folder).items()
    return [pid for pid in pids() if has_variable(pid, name, value)]


def has_variable(pid: int, name: str, value: object) -> bool:
    """Return whether a process was started with this variable in its environment."""
    return f"{name}={value}".encode() in read_proc(pid, "environ").split(b"\0")


def pids() -> Iterator[int]:
    return (
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    )


def read_proc(pid: int, name: str) -> bytes:
    """Read a file of /proc/<pid>; b"" if the process has ended or is closed even to root."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def checked(argv: Sequence[str], script: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command; raises LabError with its output if it fails."""
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
    """Wait until the condition is met; raises LabError after timeout_seconds."""
    deadline = time.monotonic() + timeout_seconds
    while not met():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_seconds:g} s for {what}")
        time.sleep(0.005)


def remove_in_use(folder: Path) -> None:
    """Remove a folder that somebody may still write into.

    A file that comes in between leaves it "not empty"; whoever reads that says it again.
    """

    def is_removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(is_removed, f"{folder} to be removed")
