"""The labs of this machine, and their removal by any process.

A lab is a folder with a state file, a link to it in /run/ugro-lab named after the lab's number, and
processes with the folder's name in their environment. Each of the three is found without the
others, so a lab is removed whole even if its creator died halfway.
"""

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.proof import is_of_lab, mounts_below, namespace, send_signal
from lab.tools import (
    LabError,
    LabUnavailable,
    checked,
    lab_processes,
    read_proc,
    wait_until,
)

REGISTRY = Path("/run/ugro-lab")
STATE = "ugro-lab.json"
# Routes wider than this may overlap the lab's network, because the more specific route wins.
WIDE_PREFIX = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LabStatus:
    """The remains of one lab; all its processes, here as pids, may be gone."""

    folder: Path
    number: int | None
    processes: list[int]
    creator_lives: bool

    @property
    def orphaned(self) -> bool:
        return not self.processes and not self.creator_lives


def labs() -> list[LabStatus]:
    """Return every lab of this machine, even if only remains are left."""
    return [status(link.resolve()) for link in _registered()]


def status(folder: Path) -> LabStatus:
    state = read_state(folder)
    numbers = [
        int(link.name) for link in _registered() if link.resolve() == folder.resolve()
    ]
    creator = state.get("creator", {})
    return LabStatus(
        folder=folder,
        number=numbers[0] if numbers else None,
        processes=lab_processes(folder),
        creator_lives=bool(creator) and _may_live(creator),
    )


def remove(folder: Path) -> None:
    """End all processes of the lab in `folder`, and remove the folder and other remains."""
    links = [link for link in _registered() if link.resolve() == folder.resolve()]
    own_namespace = namespace(os.getpid(), "pid")

    def ended() -> bool:
        # A host's process 1 first: its starter then reaps it and ends by itself.
        left = lab_processes(folder)
        first = [
            pid for pid in left if namespace(pid, "pid") not in (own_namespace, None)
        ]
        for pid in first or left:
            send_signal(pid, signal.SIGKILL, lambda pid: is_of_lab(pid, folder))
        return not left

    wait_until(ended, f"the lab's processes to end ({folder})")
    for link in links:
        # The kernel takes a namespace apart a little after its last process.
        interface = Path(f"/sys/class/net/ulab{link.name}")
        wait_until(lambda it=interface: not it.exists(), f"{interface.name} to go")  # type: ignore[misc]
    if (folder / STATE).exists():
        found = mounts_below(folder)
        if found:
            raise LabError(
                f"{found[0]} is a mount in the lab's folder: umount it, then again"
            )
        with contextlib.suppress(
            FileNotFoundError
        ):  # perhaps removed by another process
            shutil.rmtree(folder)
    for link in links:
        link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        # Other labs are registered, or there never was one.
        REGISTRY.rmdir()


def sweep() -> None:
    """Remove the remains of labs without processes and without a living creator."""
    for lab in labs():
        if lab.orphaned:
            remove(lab.folder)


def default_folder() -> Path:
    """Return the folder of `python -m lab` by default."""
    return Path(tempfile.gettempdir(), f"ugro-lab-{os.getuid()}")


def claim_folder(folder: Path | None) -> Path:
    """Create the lab's folder and mark it; raises LabError if it is not usable."""
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="ugro-lab-"))
    folder = folder.resolve()
    if (folder / STATE).exists():
        found = status(folder)
        if not found.orphaned:
            raise LabError(
                f"a lab is up in {folder}: python -m lab down --folder {folder}"
            )
        remove(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise LabError(f"{folder} belongs to somebody else")
    if any(folder.iterdir()):
        raise LabError(f"{folder} is not empty, and it is no lab's")
    write_state(folder)
    return folder


def register(folder: Path) -> int:
    """Choose a free number for the lab, and link the folder under it."""
    taken = _routed_networks()
    for number in range(256):
        network = ipaddress.IPv4Network(subnet(number))
        if any(network.overlaps(other) for other in taken):
            continue
        REGISTRY.mkdir(mode=0o755, exist_ok=True)
        # Taken, or the registry was just removed with another lab: the next number will do.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            (REGISTRY / str(number)).symlink_to(folder)
            return number
    raise LabUnavailable(
        "this machine has routes to all of 10.87.0.0/16, which the lab would use"
    )


def _routed_networks() -> list[ipaddress.IPv4Network]:
    """Return the networks of this machine's routes, without those wider than WIDE_PREFIX."""
    shown = checked(["ip", "-4", "-json", "route", "show", "table", "all"]).stdout
    found = []
    for route in json.loads(shown):
        if route["dst"] == "default":
            continue
        network = ipaddress.IPv4Network(route["dst"], strict=False)
        if network.prefixlen >= WIDE_PREFIX:
            found.append(network)
    return found


def subnet(number: int) -> str:
    return f"10.87.{number}.0/24"


def write_state(folder: Path, **more: object) -> None:
    pid = os.getpid()
    creator = {
        "pid": pid,
        "started_at": _started_at(pid),
        "pid_namespace": namespace(pid, "pid"),
    }
    text = json.dumps({"creator": creator, **more}, indent=2, default=str)
    new = folder / f"{STATE}.new"
    new.write_text(f"{text}\n", "utf-8")
    new.replace(folder / STATE)


def read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return state


# Helpers


def _registered() -> Iterator[Path]:
    return (link for link in sorted(REGISTRY.glob("[0-9]*")) if link.is_symlink())


def _may_live(creator: dict[str, Any]) -> bool:
    """Return whether a lab's creator lives, or may live in another container."""
    # An older lab did not tell its namespace.
    here = namespace(os.getpid(), "pid")
    if creator.get("pid_namespace", here) != here:
        return True
    return bool(_started_at(creator["pid"]) == creator["started_at"])


def _started_at(pid: int) -> str | None:
    """Return the process's start time in clock ticks since boot; with the pid it is unique."""
    stat = read_proc(pid, "stat").rpartition(b")")[2].split()
    return stat[19].decode() if stat else None
