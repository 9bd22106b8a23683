"""What the suite does to a host of the lab and reads there, beyond what `LabHost` can do."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lab import Lab, LabHost
from lab.host import TCP_LISTEN
from lab.tools import checked, read_proc
from tests.chaos.home import DISK_SIZE, fill

DISK = "/run/lab/disk"
CLOCK = "/run/lab/clock"
LIBRARY = "/run/lab/clock.so"
COMPILER = shutil.which("cc")
# Read by bash in each session over SSH. Root obeys the modes of files there, as a user who trains does: else nothing
# could be unreadable.
AS_A_USER = """
if [ -z "$CHAOS_USER" ] && [ -n "$BASH_EXECUTION_STRING" ]; then
    export CHAOS_USER=1
    exec setpriv --bounding-set=-dac_override,-dac_read_search /bin/bash -c "$BASH_EXECUTION_STRING"
fi
"""
# So a clock can be stepped for whatever starts on a host from then on.
OWN_CLOCK = f"export LD_PRELOAD={LIBRARY} LAB_CLOCK={CLOCK}\n"
TORCHRUN = "torch.distributed.run"
HEAD_BYTES = 1 << 14
TAIL_BYTES = 1 << 12
# Waits until a job is prepared here, then takes the port that was free when the launch was planned.
SQUAT = """
import socket, sys, glob, time
address, port, pattern = sys.argv[1], int(sys.argv[2]), sys.argv[3]
deadline = time.monotonic() + 20
while not glob.glob(pattern):
    if time.monotonic() > deadline:
        sys.exit("no launch came")
    time.sleep(0.003)
listener = socket.create_server((address, port))
print("took it", flush=True)
held = []
while True:
    held.append(listener.accept())
"""


class Attempt(NamedTuple):
    """One attempt of a job on one host, as its folder there has it."""

    number: int
    folder: Path
    log: bytes
    exit: dict[str, Any] | None

    def stream(self, name: str) -> bytes:
        """Another file of the folder, b"" where there is none."""
        return _content(self.folder / name)


def project_of(lab: Lab) -> str:
    """UGRO's folder in a host's home."""
    return lab.project.removeprefix("~/")


def give_disk(lab: Lab, host: LabHost) -> None:
    """A disk of its own for what UGRO has on the host, which can be filled."""
    project = project_of(lab)
    script = (
        f"mkdir -p {DISK} ~/{project} ~/.ugro && mount -t tmpfs -o size={DISK_SIZE},mode=700 disk {DISK} && "
        f"mkdir {DISK}/project {DISK}/own && mount --bind {DISK}/project ~/{project} && mount --bind {DISK}/own ~/.ugro"
    )
    host.run(["sh", "-c", script])


def share_home(lab: Lab, common: Path) -> None:
    """Put one folder under what UGRO has on all hosts, as over NFS."""
    for name in (project_of(lab), ".ugro"):
        (common / name).mkdir(exist_ok=True)
        for host in lab.hosts:
            host.run(["mount", "--bind", str(common / name), f"{host.home}/{name}"])


def end_shared_home(lab: Lab) -> None:
    """Give each host its own again; what still runs there keeps what it has open."""
    for name in (project_of(lab), ".ugro"):
        for host in lab.hosts:
            host.run(["umount", "--lazy", f"{host.home}/{name}"])


def obey_modes(host: LabHost) -> None:
    """Whoever logs in to the host from now on may read what the modes of files allow, and no more."""
    host.path(".bashrc").write_text(AS_A_USER)


def fill_disk(host: LabHost) -> None:
    """Not one page more goes onto the host's disk."""
    fill(
        Path(f"/proc/{host.pid}/root{DISK}"),
        lambda size: host.run(["mount", "-o", f"remount,size={size}", DISK]),
    )


def empty_disk(host: LabHost) -> None:
    host.run(["mount", "-o", f"remount,size={DISK_SIZE}", DISK])


def begin_own_clock(host: LabHost) -> None:
    """What starts on the host from now on has a clock of its own, which `set_clock` steps. See clock.c."""
    assert COMPILER
    source = Path(__file__).with_name("clock.c")
    library = Path(f"/proc/{host.pid}/root{LIBRARY}")
    if not library.exists():
        checked([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)])
    set_clock(host, 0)
    host.path(".bashrc").write_text(AS_A_USER + OWN_CLOCK)


def set_clock(host: LabHost, seconds: float) -> None:
    """The host's clock is off by so much."""
    new = Path(f"/proc/{host.pid}/root{CLOCK}.new")
    new.write_text(f"{seconds:.0f}\n")
    new.rename(new.with_suffix(""))


def end_own_clock(host: LabHost) -> None:
    """All is right with what starts from now on, and with what still runs."""
    obey_modes(host)
    set_clock(host, 0)


def squat(host: LabHost, port: int, job_pattern: str) -> subprocess.Popen[str]:
    """A foreign process that takes the port as soon as a job is prepared on the host, and says so."""
    argv = [sys.executable, "-c", SQUAT, host.address, str(port), job_pattern]
    return subprocess.Popen(
        host.entered("--mount", "--pid", "--net", *argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_squatter(host: LabHost) -> None:
    """nsenter forks to enter a pid namespace, so that the process itself is not the child of whoever started it."""
    for pid, argv in host.processes():
        if SQUAT in argv:
            with contextlib.suppress(ProcessLookupError):
                host.kill(pid)


def kill_sshd(host: LabHost) -> None:
    """kill -9 of sshd and of every session's sshd."""
    host.stop_sshd(sessions=True)


def signal_one(host: LabHost, job_id: str, word: str, signum: int) -> int:
    """Send a signal to the job's process whose command has the word; its pid there, 0 where there is none."""
    for pid, argv in reversed(host.processes(token=f"UGRO_TOKEN={job_id}".encode())):
        # torchrun's command names the script, too.
        if any(word in part for part in argv) and (
            word in TORCHRUN or TORCHRUN not in argv
        ):
            with contextlib.suppress(ProcessLookupError):
                host.kill(pid, signum)
                return pid
    return 0


# ---- reading ----


def attempts(lab: Lab, host: LabHost, job_id: str) -> list[Attempt]:
    """The job's attempts on the host, the first one first."""
    found = []
    for folder in host.path(f"{project_of(lab)}/jobs").glob(f"{job_id}.*.{host.name}"):
        number = int((re.findall(r"\.\w+-(\d+)\.", folder.name) or ["1"])[0])
        record = _content(folder / "exit.json")
        found.append(
            Attempt(
                number,
                folder,
                _content(folder / "log"),
                json.loads(record) if record else None,
            )
        )
    return sorted(found)


def has_begun(lab: Lab, host: LabHost, job_id: str) -> bool:
    """Whether the job's script has said its first word on the host, in any attempt."""
    return any(b" begins at " in head for head in _ends(lab, host, job_id, first=True))


def has_ended(lab: Lab, host: LabHost, job_id: str) -> bool:
    """Whether the job's script has said its last word on the host, in any attempt."""
    return any(
        b" ends well\n" in tail or b"had enough\n" in tail
        for tail in _ends(lab, host, job_id, first=False)
    )


def _ends(lab: Lab, host: LabHost, job_id: str, *, first: bool) -> list[bytes]:
    pieces = []
    for path in host.path(f"{project_of(lab)}/jobs").glob(
        f"{job_id}.*.{host.name}/log"
    ):
        if not path.is_file():
            continue  # but a pipe, by a rank that is hostile
        with contextlib.suppress(OSError), path.open("rb") as file:
            if first:
                pieces.append(file.read(HEAD_BYTES))
            else:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                pieces.append(file.read())
    return pieces


def listening(host: LabHost) -> set[int]:
    """The TCP ports on which something listens there, sshd's aside."""
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in read_proc(host.pid, f"net/{table}").decode().splitlines()[1:]:
            words = line.split()
            if words[3] == TCP_LISTEN:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports - {22}


def leases_held(host: LabHost) -> list[str]:
    """The names of the leases that somebody holds there."""
    sockets = Path(f"/proc/{host.pid}/net/unix").read_text()
    return re.findall(r"@(ugro/lease/\S+)$", sockets, re.M)


def _content(path: Path) -> bytes:
    """Return what is in a regular file; b"" for anything else, as a rank may put it there."""
    if not path.is_file():
        return b""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""
