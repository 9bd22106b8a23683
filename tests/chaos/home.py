"""The controller of the suite: UGRO's commands and its agent, with a disk that can be filled and a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lab import Lab
from lab.proof import send_signal
from lab.tools import (
    LabError,
    checked,
    has_variable,
    lab_token,
    pids,
    read_proc,
    wait_until,
)
from lab.ugro import is_agent

SCRIPTS = Path(__file__).parent / "scripts"
DISK_FILES = 100_000
DISK_SIZE = "4g"  # a limit, not what is used
PAGE_BYTES = 4096
TIMEOUTS = {
    "connect_seconds": 3,
    "start_seconds": 15,
    "heartbeat_seconds": 0.5,
    "stop_grace_seconds": 2,
    "away_seconds": 6,
    "return_seconds": 12,
    "agent_linger_seconds": 20,
}
_MAKE_DISK = 'mount -t tmpfs -o size="$2",nr_inodes="$3",mode=700 chaos "$1" && echo ready && exec sleep infinity'


class Command:
    """A command of UGRO's that runs, with what it says read as it comes."""

    def __init__(self, argv: list[str], env: dict[str, str], *, terminal: bool) -> None:
        self.output = bytearray()
        self.complaint = bytearray()
        self.begun = time.monotonic()
        self.window_closed = False
        self._hung_up = False
        self._terminal: int | None = None
        if terminal:
            # A session and a terminal of its own; what closes it is the kernel's SIGHUP, not ours.
            self._terminal, slave = pty.openpty()
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *argv],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**env, "TERM": "xterm"},
            )
            os.close(slave)
            sources = {self._terminal: self.output}
        else:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                process_group=0,
            )
            assert self.process.stdout
            assert self.process.stderr
            sources = {
                self.process.stdout.fileno(): self.output,
                self.process.stderr.fileno(): self.complaint,
            }
        self._readers = [
            threading.Thread(target=self._read, args=item, daemon=True)
            for item in sources.items()
        ]
        for reader in self._readers:
            reader.start()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        """Everything that it said, as text."""
        return (self.output + self.complaint).decode("utf-8", "replace")

    def wait(self, seconds: float) -> int:
        """Its exit code; raises subprocess.TimeoutExpired."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        return code

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def press_ctrl_c(self) -> None:
        """By the terminal where it has one."""
        if self._terminal is not None:
            os.write(self._terminal, b"\x03")
        elif self.running:
            os.killpg(self.process.pid, signal.SIGINT)

    def close_terminal(self) -> None:
        """The window is closed: the kernel tells all that runs in it."""
        assert self._terminal is not None
        self.window_closed = self._hung_up = True
        for reader in self._readers:
            reader.join()
        os.close(self._terminal)
        self._terminal = None

    def close(self) -> None:
        """Ends it where it still runs, and lets go of its pipes."""
        if self.running:
            self.process.kill()
        self.process.wait()
        self._hung_up = True
        for reader in self._readers:
            reader.join(5)
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def _read(self, descriptor: int, into: bytearray) -> None:
        # Never in a blocked read: that would keep the terminal open behind the back of whoever closes it.
        with contextlib.suppress(OSError, ValueError):  # the other side has gone
            while not self._hung_up:
                if select.select([descriptor], [], [], 0.05)[0]:
                    if not (piece := os.read(descriptor, 1 << 16)):
                        return
                    into += piece


class Home:
    """A controller: cluster file, experiments folder, agent; its disk is a mount that nobody else sees."""

    def __init__(self, lab: Lab, name: str, scripts: Path = SCRIPTS) -> None:
        self.lab, self.name = lab, name
        self.disk = lab.folder / name
        self.disk.mkdir()
        self._holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", _MAKE_DISK, "sh", str(self.disk), DISK_SIZE, str(DISK_FILES)),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=os.environ | lab_token(lab.folder),
        )  # fmt: skip
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "ready\n", (
            "the controller's disk could not be mounted"
        )
        self.experiments = self.seen(self.disk / "experiments")
        self.logs = self.seen(self.disk / "logs")
        self.temporary = self.seen(self.disk / "tmp")
        for folder in (self.experiments, self.logs, self.temporary):
            folder.mkdir()
        document = yaml.safe_load(lab.cluster_file.read_text())
        document["paths"] = {
            "scripts": str(scripts),
            "experiments": str(self.disk / "experiments"),
            "logs": str(self.disk / "logs"),
        }
        document["timeouts"] = TIMEOUTS
        document["training"] = {"default_script": "workload.py"}
        self.cluster_file = lab.folder / f"{name}.yaml"
        self.cluster_file.write_text(yaml.safe_dump(document))

    def seen(self, path: Path) -> Path:
        """The path as it is in this controller's mounts."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    # Commands

    def command(
        self, *words: str, terminal: bool = False, version: Path | None = None
    ) -> Command:
        """`ugro ...`, running; with `version` that of the package in this folder."""
        argv = [
            *(
                "nsenter",
                f"--mount=/proc/{self._holder.pid}/ns/mnt",
                f"--wd={self.seen(self.disk)}",
            ),
            *(sys.executable, "-m", "ugro_tasks.cli.program", *words),
        ]
        own = {
            "UGRO_CLUSTER": str(self.cluster_file),
            "TMPDIR": str(self.disk / "tmp"),
            "CHAOS_HOME": str(self.disk),
        }
        if version:
            own["PYTHONPATH"] = str(version)
        return Command(argv, self.lab.environ | own, terminal=terminal)

    def run(
        self, *words: str, seconds: float = 60, version: Path | None = None
    ) -> Command:
        """`ugro ...`, to its end."""
        command = self.command(*words, version=version)
        try:
            command.wait(seconds)
        finally:
            command.close()
        return command

    # The record

    def job_folder(self, name: str) -> Path | None:
        """The one job of this name, None where there is none."""
        found = list(self.experiments.glob(f"{name}_*"))
        assert len(found) < 2, found
        return found[0] if found else None

    def state(self, name: str) -> dict[str, Any]:
        """state.json of the job, {} where there is none."""
        folder = self.job_folder(name)
        if folder is None:
            return {}
        for name in ("state.json", ".state.json.copy"):
            # One of them may be torn, or both moved at this moment.
            with contextlib.suppress(OSError, ValueError):
                state: dict[str, Any] = json.loads((folder / name).read_text())
                return state
        return {}

    # The agent, and whatever else runs here

    def agent_pid(self) -> int:
        """The pid of the living agent, 0 where there is none."""
        try:
            pid = int((self.experiments / ".agent.lock").read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0
        return pid if self._is_agent(pid) else 0

    def agent_is_of(self, version: Path) -> bool:
        """Tell whether the living agent runs the package in this folder: it works there."""
        pid = self.agent_pid()
        try:
            return pid != 0 and Path(f"/proc/{pid}/cwd").readlink() == version
        except OSError:
            return False

    def processes(self) -> dict[int, str]:
        """{pid: command} of all that this controller runs, the agent included."""
        found = {pid: read_proc(pid, "cmdline") for pid in pids() if self._is_own(pid)}
        return {
            pid: argv.replace(b"\0", b" ").decode("utf-8", "replace")
            for pid, argv in found.items()
            if argv
        }

    def kill_agent(self) -> bool:
        """kill -9; False where no agent lives."""
        pid = self.agent_pid()
        if pid:
            send_signal(pid, signal.SIGKILL, self._is_agent)
            wait_until(lambda: not self._is_agent(pid), "the agent to end")
        return bool(pid)

    def end_all(self) -> None:
        """Nothing of this controller runs any more."""
        for pid in self.processes():
            send_signal(pid, signal.SIGKILL, self._is_own)
        wait_until(lambda: not self.processes(), "the controller's processes to end")

    # The disk

    def fill_disk(self) -> None:
        """Not one page more goes onto the disk."""
        fill(
            self.seen(self.disk),
            lambda size: self._mount("-o", f"remount,size={size}", str(self.disk)),
        )

    def empty_disk(self) -> None:
        self._mount("-o", f"remount,size={DISK_SIZE}", str(self.disk))

    def take_inodes(self) -> None:
        """Not one file more can be made on the disk."""

        def take() -> None:
            facts = os.statvfs(self.seen(self.disk))
            used = facts.f_files - facts.f_ffree
            self._mount("-o", f"remount,nr_inodes={used}", str(self.disk))

        insist(take)

    def give_inodes(self) -> None:
        self._mount("-o", f"remount,nr_inodes={DISK_FILES}", str(self.disk))

    def unmount(self) -> None:
        """The path of the experiments folder leads to an empty one, as where its disk was unmounted."""
        folder = str(self.disk / "experiments")
        self._mount("-t", "tmpfs", "none", folder)

    def mount(self) -> None:
        self._inside("umount", "--lazy", str(self.disk / "experiments"))

    def make_read_only(self) -> None:
        """The experiments folder is as on a file system that the kernel has made read-only; open files stay open."""
        folder = str(self.disk / "experiments")
        self._mount("--bind", folder, folder)
        self._mount("-o", "remount,bind,ro", folder)

    def make_writable(self) -> None:
        self._inside("umount", "--lazy", str(self.disk / "experiments"))

    def close(self) -> None:
        """End all of it; the disk goes with the last process that sees it."""
        self.end_all()
        self._holder.kill()
        self._holder.communicate()

    def _is_own(self, pid: int) -> bool:
        """Tell whether a process has this controller's mark."""
        return has_variable(pid, "CHAOS_HOME", self.disk)

    def _is_agent(self, pid: int) -> bool:
        return is_agent(pid, self.disk / "experiments")

    def _mount(self, *words: str) -> None:
        self._inside("mount", *words)

    def _inside(self, *argv: str) -> None:
        checked(["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *argv])


def fill(mount_point: Path, resize: Callable[[int], object]) -> None:
    """Make a tmpfs as small as what is on it."""

    def shrink() -> None:
        facts = os.statvfs(mount_point)
        resize(max(PAGE_BYTES, (facts.f_blocks - facts.f_bfree) * facts.f_frsize))

    insist(shrink)


def insist(shrink: Callable[[], None]) -> None:
    """Make a tmpfs as small as what is on it. What is made meanwhile would not fit: then once more."""
    for last in (False, False, False, True):
        try:
            shrink()
        except (LabError, subprocess.CalledProcessError):
            if last:
                raise
        else:
            return
