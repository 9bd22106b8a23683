"""Misfortunes of the machine: disks, memory, clock, limits, and what was left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.chaos.nodes import COMPILER, begin_own_clock, end_own_clock, set_clock
from tests.hosts.helpers import background, login_runs, mounted
from tests.preflight.stage import Misfortune, Named, Stage, afterwards, project_of

LATE_SECONDS = 300
DEAD_JOB = "exp7_20260101_000000"
LATE_PYTHON = (
    f"import time\nreal = time.time\ntime.time = lambda: real() - {LATE_SECONDS}\n"
)


def project_on(options: str) -> Callable[[Stage], AbstractContextManager[None]]:
    """lab1's project folder is on such a disk."""

    @contextmanager
    def make(stage: Stage) -> Iterator[None]:
        host = stage.hosts[1]
        with mounted(
            host, "-t", "tmpfs", "-o", options, "lab", project_of(stage, host)
        ):
            yield

    return make


@contextmanager
def home_read_only(stage: Stage) -> Iterator[None]:
    host = stage.hosts[1]
    own = f"{host.home}/.ugro"
    host.run(["mkdir", "-p", own])
    with mounted(host, "-t", "tmpfs", "-o", "ro,size=9g", "lab", own):
        yield


@contextmanager
def little_shared_memory(stage: Stage) -> Iterator[None]:
    with mounted(stage.hosts[1], "-t", "tmpfs", "-o", "size=8m", "lab", "/dev/shm"):
        yield


@contextmanager
def clock_late(stage: Stage) -> Iterator[None]:
    """The clock of all that logs in there; without a C compiler only that of the Python which UGRO is given."""
    if COMPILER:
        try:
            begin_own_clock(stage.hosts[1])
            set_clock(stage.hosts[1], -LATE_SECONDS)
            yield
        finally:
            end_own_clock(stage.hosts[1])
        return
    (stage.folder / "sitecustomize.py").write_text(LATE_PYTHON)
    python = stage.folder / "python"
    # Without the flags that would keep sitecustomize out.
    python.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={stage.folder} exec python3 "$@"\n'
    )
    python.chmod(0o755)
    stage.nodes[1]["python"] = str(python)
    yield


def limited(words: str) -> Callable[[Stage], AbstractContextManager[None]]:
    """Logins to lab0 have this ulimit."""

    @contextmanager
    def make(stage: Stage) -> Iterator[None]:
        with login_runs(stage.hosts[0], f"ulimit {words}"):
            yield

    return make


@contextmanager
def leftover_process(stage: Stage) -> Iterator[None]:
    with background(
        stage.hosts[1], f"env UGRO_TOKEN={DEAD_JOB}.5f2c:lab1:node sleep 60"
    ):
        yield


@contextmanager
def leftover_lease(stage: Stage) -> Iterator[None]:
    """As a supervisor leaves it that is killed: nobody holds its lock."""
    host = stage.hosts[2]
    lease = f"{host.home}/.ugro/lease-node.json"
    with afterwards(host, f"rm {lease}"):
        host.run(["mkdir", "-p", f"{host.home}/.ugro"])
        host.run(["tee", lease], input=f'{{"job": "{DEAD_JOB}", "pid": 1}}')
        yield


MACHINE = [
    Misfortune(
        key="disk-full",
        words="the disk of the project folder is nearly full",
        make=project_on("size=1g"),
        named=Named("lab1", "disk", "1.0 GiB free", "free some space on lab1"),
    ),
    Misfortune(
        key="disk-inodes",
        words="that disk has room, but takes no more files",
        make=project_on("size=9g,nr_inodes=50"),
        named=Named("lab1", "disk", "files more", "df -i"),
    ),
    Misfortune(
        key="disk-read-only",
        words="the project folder cannot be written",
        make=project_on("ro,size=9g"),
        named=Named("lab1", "disk", "not writable", "make /root/ugro writable"),
    ),
    Misfortune(
        key="home-read-only",
        words="the home folder cannot be written",
        make=home_read_only,
        named=Named("lab1", "home", "/root/.ugro, not writable", "sudo dmesg"),
    ),
    Misfortune(
        key="shm",
        words="/dev/shm has 8 MiB, as in a container",
        make=little_shared_memory,
        named=Named("lab1", "shared memory", "8 MiB in /dev/shm", "remount,size=1G"),
    ),
    Misfortune(
        key="clock",
        words="a clock is five minutes late",
        make=clock_late,
        named=Named("lab1", "clock", "-", "timedatectl"),
    ),
    Misfortune(
        key="nofile-hard",
        words="at most 128 open files, and the user may not raise that",
        make=limited("-n 128"),
        named=Named("lab0", "open files", "128 at most", "limits.conf"),
    ),
    Misfortune(
        key="nofile-soft",
        words="at most 128 open files, unless one raises that",
        make=limited("-Sn 128"),
    ),
    Misfortune(
        key="memlock",
        words="8 KiB of locked memory (only InfiniBand needs more)",
        make=limited("-l 8"),
    ),
    Misfortune(
        key="leftovers",
        words="a process of a dead job goes on",
        make=leftover_process,
        named=Named(
            "lab1", "leftovers", f"of job {DEAD_JOB}", "inv reset --nodes lab1"
        ),
        not_bare="a process of UGRO's",
    ),
    Misfortune(
        key="stale-lease",
        words="a lease file of a dead job lies about",
        make=leftover_lease,
        not_bare="a file of UGRO's",
    ),
]
