"""Proofs that a process or path belongs to a lab, before it is ended, changed or deleted.

A pid may have come to name another process; a mount may be gone, or may never have been made. A
command meant for a host would then hit this machine, as root. So every such command is preceded by
a proof. LabError names the missing proof; nothing was done then.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from lab.tools import LabError, has_variable, lab_token, read_proc

NAMESPACES = ("mnt", "pid", "net", "uts", "ipc")
"""The namespaces that each host has of its own; see `Lab`."""
NOTES = "run/lab/places.json"
"""A file on a host: the mounts of its process 1, and the paths shared by all; see init.py."""


def outside() -> dict[str, int]:
    """Return {namespace: inode} of this process."""
    return {name: Path(f"/proc/self/ns/{name}").stat().st_ino for name in NAMESPACES}


def namespace(pid: int, name: str) -> int | None:
    """Return the inode of a process's namespace; None if it has ended or is not readable."""
    try:
        return Path(f"/proc/{pid}/ns/{name}").stat().st_ino
    except OSError:
        return None


def inner_pid(pid: int) -> int | None:
    """Return a process's pid in its own pid namespace; None if it has ended."""
    lines = read_proc(pid, "status").decode(errors="replace").splitlines()
    found = [line.split()[-1] for line in lines if line.startswith("NSpid:")]
    return int(found[0]) if found else None


def is_of_lab(pid: int, folder: Path) -> bool:
    """Return whether a process is one of the lab's own, by the lab's token."""
    ((name, value),) = lab_token(folder).items()
    return has_variable(pid, name, value)


def prove_process_1(pid: int, folder: Path) -> None:
    """Raise LabError unless this is process 1 of a host of the lab in `folder`."""
    _prove_of_lab(pid, folder)
    _prove_apart(pid, NAMESPACES)
    if inner_pid(pid) != 1:
        raise LabError(
            f"process {pid} is not process 1 of a lab host: nothing was done"
        )


def prove_switch(pid: int, folder: Path) -> None:
    """Raise LabError unless this process holds the network namespace of the lab's switch."""
    _prove_of_lab(pid, folder)
    _prove_apart(pid, ["net"])


def prove_place(pid: int, place: str) -> int:
    """Return the device of a host's own file system at `place`; `pid` is the host's process 1.

    Raises LabError unless the lab itself mounted it, and it is mounted nowhere on this machine.
    """
    noted = _notes(pid)["places"].get(place)
    device = Path(f"/proc/{pid}/root{place}").stat().st_dev
    is_ours = device == Path(place).stat().st_dev or device in _own_devices()
    if noted != device or is_ours:
        raise LabError(
            f"{place} of process {pid} is not what the lab mounted there: nothing was done"
        )
    return device


def prove_removable(pid: int, path: str) -> None:
    """Raise LabError if `path` of a host contains, or is in, a path shared with this machine."""
    for kept in shared_paths(pid):
        if kept.is_relative_to(path) or Path(path).is_relative_to(kept):
            raise LabError(
                f"{path} is shared with this machine by way of {kept}: nothing was done"
            )


def shared_paths(pid: int) -> list[Path]:
    """Return what a host shares with this machine, at the same paths; `pid` is its process 1."""
    return [Path(path) for path in _notes(pid)["keep"]]


def mounts_below(folder: Path) -> list[Path]:
    """List the mounts in a folder, itself included; removing it would empty them."""
    found = []
    for line in _mount_lines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point.is_relative_to(folder.resolve()):
            found.append(point)
    return found


def send_signal(pid: int, sig: int, is_meant: Callable[[int], bool]) -> bool:
    """Send a signal to a process if `is_meant` says so; return False if not, or if it has ended.

    A pidfd holds the process meanwhile, so its pid cannot become another's.
    """
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_meant(pid):
            return False
        signal.pidfd_send_signal(held, sig)
    except ProcessLookupError:
        return False
    finally:
        os.close(held)
    return True


def _prove_of_lab(pid: int, folder: Path) -> None:
    if not is_of_lab(pid, folder):
        raise LabError(
            f"process {pid} does not belong to the lab in {folder}: nothing was done"
        )


def _prove_apart(pid: int, names: tuple[str, ...] | list[str]) -> None:
    ours = outside()
    shared = [name for name in names if namespace(pid, name) in (ours[name], None)]
    if shared:
        raise LabError(
            f"process {pid} has no {', '.join(shared)} namespace of its own: nothing was done"
        )


def _notes(pid: int) -> dict[str, dict[str, int]]:
    path = Path(f"/proc/{pid}/root/{NOTES}")
    try:
        notes: dict[str, dict[str, int]] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(
            f"process {pid}: {NOTES} of its host cannot be read ({error}): nothing was done"
        ) from error
    return notes


def _own_devices() -> set[int]:
    """Return the devices of all file systems mounted on this machine."""
    numbers = [line.split()[2].split(":") for line in _mount_lines()]
    return {os.makedev(int(major), int(minor)) for major, minor in numbers}


def _mount_lines() -> list[str]:
    return Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
