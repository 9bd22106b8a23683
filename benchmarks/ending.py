"""How soon all hosts are free: after one rank was killed, and after Ctrl-C; beside plain torchrun over ssh.

    python -m benchmarks.ending [ROUNDS]

A host is free when no process of the run is left on it. What torchrun's other hosts do is waited for half a minute.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.common import lab_with_user, machine, typed_torchruns
from tests.lab import Lab, LabHost
from tests.lab.tools import wait_until
from tests.launch.ugro import Ugro

PATIENCE_SECONDS = 30
SCRIPT = """
import datetime, os, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
print("rank", os.environ["RANK"], "meets the others", flush=True)
while True:  # as a training does: each step waits for all
    dist.all_reduce(torch.zeros(1))
    time.sleep(0.1)
"""


def running(hosts: list[LabHost]) -> list[tuple[LabHost, int]]:
    """The processes of the script, and the torchruns above them."""
    found = [(host, pid, words) for host in hosts for pid, words in host.processes()]
    return [(host, pid) for host, pid, words in found if any("endless.py" in word for word in words)]


def until_free(hosts: list[LabHost]) -> float:
    """Seconds, infinite where some are left after PATIENCE_SECONDS."""
    begun = time.monotonic()
    while running(hosts):
        if time.monotonic() - begun > PATIENCE_SECONDS:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - begun


def worker(host: LabHost) -> int:
    """The rank itself, not the torchrun above it."""
    lines = {pid: " ".join(words) for pid, words in host.processes()}
    return next(
        pid for pid, line in lines.items() if "endless.py" in line and "torch.distributed" not in line
    )


def launched(ugro: Ugro, lab: Lab, name: str) -> "subprocess.Popen[str]":
    command = ugro.start("launch", "--name", name, "--script", "endless.py")
    wait_until(lambda: any(ugro.experiments.glob(f"{name}_*")), "the job")
    job = ugro.job(name)
    for rank in range(len(lab.hosts)):
        job.wait_for_log("meets the others", rank, seconds=60)
    return command


def typed(lab: Lab, script: Path) -> "list[subprocess.Popen[bytes]]":
    terminals = typed_torchruns(lab, str(script), tty=True)
    for terminal in terminals:
        assert terminal.stdout is not None
        while b"meets the others" not in terminal.stdout.readline():
            assert terminal.poll() is None
    return terminals


def killed(lab: Lab) -> float:
    lab.hosts[1].kill(worker(lab.hosts[1]))
    return until_free(lab.hosts)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        script = Path(folder) / "endless.py"
        script.write_text(SCRIPT)
        figures: dict[str, list[float]] = {
            "rank killed, inv launch": [],
            "rank killed, torchrun over ssh": [],
        }
        figures["Ctrl-C to the proof, inv launch"] = []
        with lab_with_user(Path(folder)) as (lab, ugro):
            for number in range(rounds):
                command = launched(ugro, lab, f"killed{number}")
                figures["rank killed, inv launch"].append(killed(lab))
                command.communicate(timeout=60)
                terminals = typed(lab, script)
                figures["rank killed, torchrun over ssh"].append(killed(lab))
                for terminal in terminals:
                    terminal.kill()
                for host, pid in running(lab.hosts):
                    host.kill(pid)
                for terminal in terminals:
                    terminal.communicate()
                command = launched(ugro, lab, f"stopped{number}")
                figures["Ctrl-C to the proof, inv launch"].append(_stopped(command))
    print(f"\nuntil all three hosts are free, {rounds} rounds, {machine()}")
    for name, values in figures.items():
        print(f"{name:36} {min(values):6.2f} {median(values):6.2f} {max(values):6.2f} s")


def _stopped(command: "subprocess.Popen[str]") -> float:
    begun = time.monotonic()
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130, said
    return time.monotonic() - begun


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
