"""Log capture: 100 MB printed by each of three ranks, into the experiment folder; beside the same bytes by
`ssh HOST cat FILE > FILE`, three at once, and with Fabric's own `run`.
"""

import argparse
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

from benchmarks.command import BenchmarkError, add_rounds, make_parser, run, whole
from benchmarks.common import (
    check,
    in_turn,
    lab_with_user,
    machine,
    quietly,
    seconds,
    table,
)
from lab import Lab
from lab.ugro import Job, Ugro

FABRIC_MEGABYTES = 2


class Peak:
    """The peak resident memory of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def mib(self) -> float:
        """As of now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def captured(ugro: Ugro, megabytes: int, peaks: list[float]) -> float:
    """Measure the seconds from the first to the last byte in the experiment folder."""
    done = threading.Event()
    size = megabytes * 1_000_000
    begun = 0.0
    took = 0.0
    said = ""
    command = ugro.start(
        "launch", "--name", "capture", "--quiet", "--args", f"--bytes {size}"
    )

    def wait() -> None:
        nonlocal said
        said = "".join(command.communicate())
        done.set()

    threading.Thread(target=wait, daemon=True).start()
    while not done.wait(0.02):
        jobs = sorted(ugro.experiments.glob("capture_*"))
        logs = list(jobs[-1].glob("logs/*.log")) if jobs else []
        total = sum(path.stat().st_size for path in logs)
        if total > 100_000 and not begun:
            begun = time.monotonic()
        if total >= 3 * size and not took:
            took = time.monotonic() - begun
    check(["inv", "launch"], command.returncode, said)
    peaks.append(Peak(ugro.agent_pid()).mib)
    job = Job(ugro, jobs[-1])
    if not took or any(there != here for there, here in job.digests()):
        raise BenchmarkError(f"{job.folder} has not what the ranks have printed")
    for path in jobs[-1].glob("logs/*.log"):
        path.unlink()
    return took


def fetched(lab: Lab, folder: Path, megabytes: int) -> float:
    """Measure the seconds of the same by three ssh at once."""
    for rank, host in enumerate(lab.hosts):
        line = f"{rank:07d} " + "x" * 91
        host.run(
            [
                "sh",
                "-c",
                f"yes '{line}' | head -c {megabytes * 1_000_000} > /root/printed",
            ]
        )

    def fetch() -> None:
        copies = [
            subprocess.Popen(["ssh", "-F", str(lab.ssh_config), host.address, "cat", "/root/printed"],
                             stdin=subprocess.DEVNULL, stdout=(folder / host.name).open("wb"), env=lab.environ)
            for host in lab.hosts
        ]  # fmt: skip
        for copy in copies:
            copy.wait()

    took = seconds(fetch)
    for host in lab.hosts:
        there = hashlib.sha256(host.path("printed").read_bytes()).digest()
        if hashlib.sha256((folder / host.name).read_bytes()).digest() != there:
            raise BenchmarkError(f"ssh brought something else than lies on {host.name}")
    return took


def by_fabric(lab: Lab, folder: Path, megabytes: int) -> float:
    """Measure the MB/s of `Connection.run` as Fabric has it, on all hosts at once."""
    argv = [
        sys.executable,
        "-c",
        FABRIC,
        str(lab.known_hosts.parent / "id_ed25519"),
        str(folder),
        str(megabytes),
    ]
    addresses = [host.address for host in lab.hosts]
    return 3 * megabytes / seconds(lambda: quietly([*argv, *addresses], lab.environ))


FABRIC = """
import sys
from fabric import Connection, ThreadingGroup
key, folder, megabytes, *addresses = sys.argv[1:]
group = ThreadingGroup.from_connections(
    [Connection(address, user="root", connect_kwargs={"key_filename": key}) for address in addresses]
)
with open(f"{folder}/by-fabric", "w") as file:
    group.run(f"head -c {megabytes}000000 printed", hide=True, out_stream=file, in_stream=False)
"""


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("capture", __doc__)
    add_rounds(made)
    made.add_argument(
        "--megabytes",
        type=whole(2),
        default=100,
        help="what each of the three ranks prints",
    )
    return made


def main(rounds: int, megabytes: int) -> None:
    peaks: list[float] = []
    with lab_with_user() as (lab, ugro):
        figures = in_turn(
            {
                "inv launch": lambda: 3 * megabytes / captured(ugro, megabytes, peaks),
                "ssh cat > file": lambda: (
                    3 * megabytes / fetched(lab, ugro.folder, megabytes)
                ),
            },
            rounds,
        )
        # Fabric joins all that has come at each piece that comes: a hundred megabytes would take it hours.
        stock = median(
            by_fabric(lab, ugro.folder, FABRIC_MEGABYTES) for _ in range(rounds)
        )
    title = (
        f"capture of 3 x {megabytes} MB, {rounds} rounds, {machine()} (more is better)"
    )
    table(title, figures, "inv launch", "MB/s")
    print(f"stock Fabric run, 3 x {FABRIC_MEGABYTES} MB only: {stock:.2f} MB/s")
    print(
        f"peak memory of the agent: {max(peaks):.0f} MiB; sha256 equal in every round"
    )


if __name__ == "__main__":
    run(parser(), main)
