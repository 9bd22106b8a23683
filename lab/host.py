"""One host of the lab, controlled from this machine."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from lab.proof import (
    inner_pid,
    namespace,
    prove_place,
    prove_process_1,
    prove_removable,
    prove_switch,
    send_signal,
)
from lab.tools import LabError, checked, lab_token, pids, read_proc, wait_until

HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"
PRIVATE = "run/lab"  # of a host: see init.py
# From TERM to KILL, as a machine that is in a hurry has it.
SHUTDOWN_SECONDS = 1.0
VOLATILE = ("/tmp", "/dev/shm")
SSH_PORT_HEX = "0016"
TCP_LISTEN = "0A"
# `kill -1` reaches its whole pid namespace, so the shell checks that just before.
KILL_ALL = 'test "$(readlink /proc/self/ns/pid)" = "pid:[$1]" || exit 77; kill -KILL -1 2>/dev/null; true'
OUTSIDE = 77
# The shell checks its own folder, so a later mount over the path does no harm.
EMPTY = """
cd "$1" && test "$(stat -c %d .)" = "$2" && shift 2 && exec find . -xdev -mindepth 1 "$@" -delete
"""


class Process(NamedTuple):
    """A process of a host: its pid there, its pid here, and its command line."""

    pid: int
    outer_pid: int
    argv: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabHost:
    """A host: namespaces of its own with process 1 at `pid`, at `address` on the lab's network."""

    name: str
    address: str
    interface: str
    """The host's network interface; each host has another name for it, as real ones do."""
    pid: int
    """The host's process 1, as the controller sees it."""
    switch_pid: int
    """The process holding the network namespace of the switch."""
    home: str
    ssh_config: Path
    environ: dict[str, str]
    """The environment of commands, as after a login over SSH."""

    # Commands

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - subprocess.run's name
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, in its home, regardless of link and sshd."""
        return subprocess.run(
            self.entered("--mount", "--uts", "--ipc", "--pid", "--net", "--wd", *argv),
            check=check,
            input=input,
            timeout=timeout,
            env=self.environ,
            capture_output=True,
            text=True,
        )

    def ssh(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        user: str = "root",
        input: str | None = None,  # noqa: A002
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over OpenSSH, with the lab's key; needs `Lab.trust()` first."""
        ssh = ["ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes"]
        return subprocess.run(
            [*ssh, f"{user}@{self.address}", shlex.join(argv)],
            check=check,
            input=input,
            timeout=timeout,
            capture_output=True,
            text=True,
        )

    def path(self, relative_to_home: str | Path) -> Path:
        """Return the path here of a file in the host's home.

        Raises LabError if the host has no home of its own: the file would be this machine's.
        """
        root = self._root
        prove_place(self.pid, self.home)
        return root / self.home.lstrip("/") / relative_to_home

    def remove(self, relative_to_home: str | Path, *, check: bool = True) -> None:
        """Remove a file or a folder of the host's home, if there is one."""
        prove_process_1(self.pid, self._lab_folder)
        prove_place(self.pid, self.home)
        path = os.path.normpath(Path(self.home, relative_to_home))
        prove_removable(self.pid, path)
        self.run(["rm", "-rf", "--one-file-system", "--", path], check=check)

    def empty(self, place: str, *which: str, check: bool = True) -> None:
        """Empty /tmp, /dev/shm or another place of the host's own, or remove `find`'s matches."""
        prove_process_1(self.pid, self._lab_folder)
        device = prove_place(self.pid, place)
        self.run(["sh", "-c", EMPTY, "sh", place, str(device), *which], check=check)

    # Processes

    def processes(self, token: bytes | None = None) -> list[tuple[int, list[str]]]:
        """Return pid (on the host) and argv of all processes but process 1 and sshd's own.

        With `token`, only those with it in their environment. Processes left by `run` are included,
        zombies are not.
        """
        found = []
        for process in self._all_processes():
            is_sshd = process.argv[0].startswith(("sshd:", "/usr/sbin/sshd"))
            if process.pid == 1 or is_sshd:
                continue
            if token is None or token in read_proc(process.outer_pid, "environ"):
                found.append((process.pid, process.argv))
        return found

    def kill(self, pid: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to a process by its pid on the host."""
        for process in self._all_processes():
            if process.pid == pid and self._signal(process, sig):
                return
        raise ProcessLookupError(f"{self.name} has no process {pid}")

    def kill_all(self) -> None:
        """Kill everything on the host but process 1; sshd ends as well."""
        inode = str(namespace(self.pid, "pid"))
        done = self.run(["sh", "-c", KILL_ALL, "sh", inode], check=False)
        if done.returncode == OUTSIDE:
            raise LabError(
                f"{self.name}: the shell did not come into the host's processes; nothing was killed"
            )
        # Process 1 removes the file when sshd has ended; only then can it start another.
        wait_until(lambda: not self._sshd_pid.exists(), f"{self.name}'s sshd to end")
        wait_until(lambda: len(self._all_processes()) == 1, f"{self.name} to be empty")

    # Link

    def cut(self) -> None:
        """Pull the cable: both ends lose their carrier without any packet."""
        self._switch(f"link set {self.name} down")

    def mend(self) -> None:
        """Plug the cable in again."""
        self._switch(f"link set {self.name} up")

    def slow(self, delay_ms: float = 0, loss_percent: float = 0) -> None:
        """Delay every packet to and from the host by delay_ms, and drop some."""
        self.fast()
        near = f"{self.name}.near"
        far = f"{self.name}.far"
        self._switch(
            f"link add {near} type veth peer name {far}",
            f"link set {far} master sw up",
            f"link set {near} up",
        )
        prove_switch(self.switch_pid, self._lab_folder)
        # It runs in the background and ends with its port.
        enter = ["nsenter", f"--target={self.switch_pid}", "--net", "setsid", "--fork"]
        program = [sys.executable, "-I", str(HERE / "slow.py")]
        words = [
            self.name,
            near,
            str(delay_ms),
            str(loss_percent),
            str(self.switch_pid),
        ]
        wire = subprocess.Popen(
            [*enter, *program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=self.environ | lab_token(self._lab_folder),
        )
        said, _ = wire.communicate(timeout=10)
        if said != b"ready\n":
            raise LabError(f"{self.name}: slow.py did not start")
        self._switch(f"link set {self.name} nomaster")

    def fast(self) -> None:
        """Undo `slow`."""
        ports = self._switch("-o link show").stdout
        if f"{self.name}.near@" in ports:
            self._switch(
                f"link set {self.name} master sw", f"link del {self.name}.near"
            )

    def firewall(self, port: int) -> None:
        """Drop packets for a TCP port silently, as most firewalls do."""
        self._iptables("-A", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP")

    def unfirewall(self, port: int | None = None) -> None:
        """Accept packets for a TCP port again, by default for all."""
        if port is None:
            self._iptables("-F", "INPUT")
        else:
            self._iptables(
                "-D", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP"
            )

    # sshd and the machine

    @property
    def public_key(self) -> str:
        """Return the host key in the form of known_hosts: type and base64."""
        text = (self._root / PRIVATE / "ssh_host_ed25519_key.pub").read_text("utf-8")
        return " ".join(text.split()[:2])

    @property
    def boot_id(self) -> str:
        return (self._root / PRIVATE / "boot_id").read_text("ascii").strip()

    def listens(self) -> bool:
        """Return whether sshd accepts connections, be the host reachable or not."""
        sockets = read_proc(self.pid, "net/tcp").decode().splitlines()[1:]
        for line in sockets:
            _, address, _, state, *_ = line.split()
            if address.endswith(f":{SSH_PORT_HEX}") and state == TCP_LISTEN:
                return True
        return False

    def start_sshd(self) -> None:
        """Start sshd if it does not run, and wait until it listens."""
        told_at = 0.0

        def listens() -> bool:
            nonlocal told_at
            # Once more after a while: one that is ending counts as running until process 1 has seen its end.
            if time.monotonic() - told_at > 1.0:
                told_at = time.monotonic()
                self._tell_process_1(signal.SIGUSR1)
            return self.listens()

        wait_until(listens, f"{self.name}'s sshd to listen")

    def stop_sshd(self, *, sessions: bool = False) -> None:
        """End sshd, with `sessions` its sessions as well; their processes go on."""
        self._tell_process_1(signal.SIGUSR2)
        # Process 1 removes the file when sshd has ended; only then can it start another.
        wait_until(lambda: not self._sshd_pid.exists(), f"{self.name}'s sshd to end")
        if not sessions:
            return
        for process in self._all_processes():
            if process.argv[0].startswith("sshd:"):
                self._signal(process, signal.SIGKILL)

    def end_sessions(self, sig: int = signal.SIGTERM) -> None:
        """Send a signal to all processes but process 1, as a shutdown and the end of a session do."""
        for process in self._all_processes():
            if process.pid != 1:
                self._signal(process, sig)

    def shut_down(self) -> None:
        """Shut down in good order and start again: each process gets TERM, and a second later KILL."""
        self.end_sessions()
        time.sleep(SHUTDOWN_SECONDS)
        self.reboot()

    def reboot(self) -> None:
        """Power off and on: no process is left, the boot id is new, /tmp is empty; the disk stays.

        The link is down meanwhile, so that lost connections are not reported to their other ends.
        """
        # One that dies has its mounts for a moment longer than its link.
        prove_process_1(self.pid, self._lab_folder)
        for place in VOLATILE:
            prove_place(self.pid, place)
        self.cut()
        self.kill_all()
        (self._root / PRIVATE / "boot_id").write_text(f"{uuid4()}\n", "ascii")
        for place in VOLATILE:
            self.empty(place, "-type", "f")
        self.start_sshd()
        self.mend()

    def new_host_key(self) -> None:
        """Give the host a new host key, as a reinstalled machine has."""
        key = f"/{PRIVATE}/ssh_host_ed25519_key"
        self.run(["rm", key, f"{key}.pub"])
        self.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", key]
        )
        self.stop_sshd()
        self.start_sshd()

    def nvidia_smi(self, recording: str | Path | None) -> None:
        """Put a stand-in nvidia-smi with a recording on the host's PATH; None removes it.

        A recording is the name of a file in lab/recordings, or a path.
        """
        folder = self._root / PRIVATE / "bin"
        (folder / "nvidia-smi").unlink(missing_ok=True)
        if recording is None:
            return
        if isinstance(recording, str):
            recording = RECORDINGS / f"{recording}.json"
        shutil.copyfile(recording, folder / "gpus.json")
        program = folder / "nvidia-smi"
        text = (HERE / "nvidia_smi.py").read_text("utf-8")
        program.write_text(f"#!{sys.executable} -I\n{text}", "utf-8")
        program.chmod(0o755)

    def reset(self) -> None:
        """Undo every fault above except a new host key, a reboot and written files."""
        self.fast()
        self.mend()
        self.unfirewall()
        self.nvidia_smi(None)
        self.start_sshd()

    # Helpers

    @property
    def _lab_folder(self) -> Path:
        return self.ssh_config.parents[2]

    @property
    def _root(self) -> Path:
        prove_process_1(self.pid, self._lab_folder)
        return Path(f"/proc/{self.pid}/root")

    @property
    def _sshd_pid(self) -> Path:
        return self._root / PRIVATE / "sshd.pid"

    def entered(self, *words: str) -> list[str]:
        """Return `nsenter` for this host with these words; raises LabError if the host is gone."""
        prove_process_1(self.pid, self._lab_folder)
        return ["nsenter", f"--target={self.pid}", *words]

    def _tell_process_1(self, sig: int) -> None:
        prove_process_1(self.pid, self._lab_folder)
        send_signal(self.pid, sig, lambda pid: inner_pid(pid) == 1)

    def _signal(self, process: Process, sig: int) -> bool:
        """Send a signal to a process of the host; return False if it has ended."""
        prove_process_1(self.pid, self._lab_folder)
        own = namespace(self.pid, "pid")
        return send_signal(
            process.outer_pid,
            sig,
            lambda pid: namespace(pid, "pid") == own and inner_pid(pid) == process.pid,
        )

    def _iptables(self, *words: str) -> None:
        checked(self.entered("--net", "iptables", "--wait", *words))

    def _switch(self, *lines: str) -> subprocess.CompletedProcess[str]:
        prove_switch(self.switch_pid, self._lab_folder)
        ip = ["nsenter", f"--target={self.switch_pid}", "--net", "ip"]
        if len(lines) == 1:
            return checked([*ip, *lines[0].split()])
        return checked([*ip, "-batch", "-"], "\n".join(lines))

    def _all_processes(self) -> list[Process]:
        """Return all processes of the host, process 1 and sshd included, zombies not."""
        prove_process_1(self.pid, self._lab_folder)
        own = namespace(self.pid, "pid")
        found = []
        for outer_pid in pids():
            if own is None or namespace(outer_pid, "pid") != own:
                continue
            inner = inner_pid(outer_pid)
            command = read_proc(outer_pid, "cmdline").decode(errors="replace")
            argv = command.rstrip("\0").split("\0")
            if inner is not None and argv != [""]:
                found.append(Process(inner, outer_pid, argv))
        return found
