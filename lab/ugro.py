"""UGRO on the lab as a user runs it: the program itself, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from lab import Lab, LabHost
from lab.proof import send_signal
from lab.tools import LabError, read_proc, wait_until

SCRIPTS = Path(__file__).parent / "scripts"
TIMEOUTS = {
    "heartbeat_seconds": 0.5,
    "stop_grace_seconds": 4,
    "agent_linger_seconds": 20,
}


def is_agent(pid: int, experiments: Path) -> bool:
    """Return whether a process is an agent of this experiments folder."""
    words = read_proc(pid, "cmdline").split(b"\0")
    return b"ugro_tasks.agent" in words and str(experiments).encode() in words


class Ugro:
    """The commands, with a cluster file, an experiments folder and an agent of their own."""

    def __init__(
        self, lab: Lab, folder: Path, scripts: Path = SCRIPTS, hosts: int | None = None
    ) -> None:
        self.lab = lab
        self.folder = folder
        self.hosts = lab.hosts[:hosts]
        self.environ: dict[str, str] = {}
        self.experiments = folder / "experiments"
        document = yaml.safe_load(lab.cluster_file.read_text())
        document["paths"] = {
            "scripts": str(scripts), "experiments": str(self.experiments), "logs": str(folder / "logs"),
        }  # fmt: skip
        document["timeouts"] = TIMEOUTS
        document["workers"] = document["workers"][: len(self.hosts) - 1]
        if scripts == SCRIPTS:
            document["training"] = {"default_script": "rehearse.py"}
        self.cluster_file = folder / "cluster.yaml"
        self.cluster_file.write_text(yaml.safe_dump(document))

    def set_timeouts(self, **seconds: float) -> None:
        """Change timeouts in the cluster file."""
        document = yaml.safe_load(self.cluster_file.read_text())
        document["timeouts"].update(seconds)
        self.cluster_file.write_text(yaml.safe_dump(document))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "ugro_tasks.cli.program", *words],
            env={**self.lab.environ, "UGRO_CLUSTER": str(self.cluster_file), **self.environ},
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, process_group=0,
        )  # fmt: skip

    def run(
        self, *words: str, timeout: float = 150
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(
                f"{words}: still running; said {process.communicate()}"
            ) from None
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def launch(
        self, name: str, args: str = "", *more: str
    ) -> subprocess.CompletedProcess[str]:
        """Launch a job and follow it to its end."""
        words = ["launch", "--name", name]
        if args:
            words += ["--args", args]
        return self.run(*words, *more)

    def detach(self, name: str, args: str, *more: str) -> Job:
        """Launch a job without following it."""
        done = self.launch(name, args, "--detach", *more)
        assert done.returncode == 0, done.stderr + done.stdout
        return self.job(name)

    def job(self, name: str) -> Job:
        """Return the newest job of this name."""
        return Job(self, max(self.experiments.glob(f"{name}_*")))

    def agent_pid(self) -> int:
        """Return the pid of this folder's running agent, 0 without one."""
        try:
            pid = int((self.experiments / ".agent.lock").read_text() or 0)
        except FileNotFoundError:
            return 0
        return pid if is_agent(pid, self.experiments) else 0

    def kill_agent(self) -> int:
        """Kill the running agent with SIGKILL; return its pid, 0 without one."""
        pid = self.agent_pid()
        if not pid:
            return 0
        killed = send_signal(
            pid, signal.SIGKILL, lambda pid: is_agent(pid, self.experiments)
        )
        return pid if killed else 0

    def close(self) -> None:
        """End the agent of this folder."""
        self.kill_agent()
        wait_until(lambda: not self.agent_pid(), "the agent to end")


class Job:
    """One experiment folder, and the same job on the hosts."""

    def __init__(self, ugro: Ugro, folder: Path) -> None:
        self.ugro = ugro
        self.folder = folder

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def wait_for(self, *states: str, seconds: float = 120) -> dict[str, Any]:
        """Wait until the job is in one of these states; return state.json."""
        try:
            wait_until(
                lambda: self.state()["state"] in states,
                f"the job to be {states}",
                seconds,
            )
        except LabError as error:
            raise LabError(f"{error}; it is {self.state()}") from None
        return self.state()

    def wait_for_log(self, words: str, rank: int = 0, seconds: float = 90) -> None:
        """Wait until the gathered log of a rank contains the words."""
        path = self.folder / "logs" / f"training_rank{rank}.log"
        wait_until(
            lambda: path.exists() and words in path.read_text(errors="replace"),
            words,
            seconds,
        )

    def digests(self) -> list[tuple[str, str]]:
        """Return the sha256 of each rank's log on the node and of the gathered one."""
        pairs = []
        for rank, host in enumerate(self.ugro.hosts):
            [there] = host.path("ugro/jobs").glob(f"{self.folder.name}.*/log")
            here = self.folder / "logs" / f"training_rank{rank}.log"
            pairs.append((_sha256(there), _sha256(here)))
        return pairs

    def processes(self, host: LabHost) -> list[tuple[int, list[str]]]:
        """Return the job's processes on a host."""
        return host.processes(token=f"UGRO_TOKEN={self.folder.name}".encode())

    def pid(self, host: LabHost, word: str) -> int:
        """Return the pid of the job's process on the host with this word in its command."""
        pids = []
        for pid, argv in self.processes(host):
            if any(word in part for part in argv):
                pids.append(pid)
        assert pids, (word, self.processes(host))
        return pids[-1]

    def left(self) -> list[tuple[int, list[str]]]:
        """Return all processes of the job on all hosts."""
        found = []
        for host in self.ugro.lab.hosts:
            found += self.processes(host)
        return found

    def seconds_until_gone(self, limit: float = 20) -> float:
        """Wait until no process of the job is left; return the seconds."""
        begun = time.monotonic()
        wait_until(lambda: not self.left(), f"{self.left()} to end", limit)
        return time.monotonic() - begun


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
