"""How soon all hosts are free: after one rank was killed, and after Ctrl-C; beside plain torchrun over ssh.

A host is free when no process of the run is left on it. What torchrun's other hosts do is waited for half a minute.
"""

import argparse
import signal
import subprocess
import time
from pathlib import Path
from statistics import median

from benchmarks.command import BenchmarkError, make_parser, run, whole
from benchmarks.common import (
    check,
    lab_with_user,
    machine,
    script_folder,
    typed_torchruns,
)
from lab import Lab, LabHost
from lab.tools import wait_until
from lab.ugro import Ugro

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
    """Find the processes of the script, and the torchruns above them."""
    found = [(host, pid, words) for host in hosts for pid, words in host.processes()]
    return [
        (host, pid)
        for host, pid, words in found
        if any("endless.py" in word for word in words)
    ]


def until_free(hosts: list[LabHost]) -> float:
    """Measure the seconds, infinite where some are left after PATIENCE_SECONDS."""
    begun = time.monotonic()
    while running(hosts):
        if time.monotonic() - begun > PATIENCE_SECONDS:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - begun


def worker(host: LabHost) -> int:
    """Find the rank itself, not the torchrun above it."""
    lines = {pid: " ".join(words) for pid, words in host.processes()}
    return next(
        pid
        for pid, line in lines.items()
        if "endless.py" in line and "torch.distributed" not in line
    )


def launched(ugro: Ugro, lab: Lab, name: str) -> "subprocess.Popen[str]":
    """Launch the script and wait until all ranks have met."""
    command = ugro.start("launch", "--name", name, "--script", "endless.py")
    wait_until(lambda: any(ugro.experiments.glob(f"{name}_*")), "the job")
    job = ugro.job(name)
    for rank in range(len(lab.hosts)):
        job.wait_for_log("meets the others", rank, seconds=60)
    return command


def typed(lab: Lab, script: Path) -> "list[subprocess.Popen[bytes]]":
    """Type the same for torchrun and wait until all ranks have met."""
    terminals = typed_torchruns(lab, str(script), tty=True)
    for terminal in terminals:
        assert terminal.stdout is not None
        if not any(b"meets the others" in line for line in terminal.stdout):
            raise BenchmarkError("torchrun by hand ended before its ranks had met")
    return terminals


def killed(lab: Lab) -> float:
    """Kill one rank and measure until all hosts are free."""
    lab.hosts[1].kill(worker(lab.hosts[1]))
    return until_free(lab.hosts)


def stopped(command: "subprocess.Popen[str]") -> float:
    """Press Ctrl-C and measure until the command has ended, with its proof."""
    begun = time.monotonic()
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    check(["inv", "launch"], command.returncode, out + err, expected=130)
    return time.monotonic() - begun


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("ending", __doc__)
    made.add_argument(
        "--rounds",
        type=whole(1),
        default=5,
        help="how often each of the three is measured",
    )
    return made


def main(rounds: int) -> None:
    by_launch: list[float] = []
    by_hand: list[float] = []
    by_ctrl_c: list[float] = []
    with lab_with_user({"endless.py": SCRIPT}) as (lab, ugro):
        for number in range(rounds):
            command = launched(ugro, lab, f"killed{number}")
            by_launch.append(killed(lab))
            command.communicate(timeout=60)
            terminals = typed(lab, script_folder(ugro) / "endless.py")
            by_hand.append(killed(lab))
            for terminal in terminals:
                terminal.kill()
            for host, pid in running(lab.hosts):
                host.kill(pid)
            for terminal in terminals:
                terminal.communicate()
            command = launched(ugro, lab, f"stopped{number}")
            by_ctrl_c.append(stopped(command))
    print(f"\nuntil all three hosts are free, {rounds} rounds, {machine()}")
    figures = {
        "rank killed, inv launch": by_launch,
        "rank killed, torchrun over ssh": by_hand,
        "Ctrl-C to the proof, inv launch": by_ctrl_c,
    }
    for name, values in figures.items():
        print(
            f"{name:36} {min(values):6.2f} {median(values):6.2f} {max(values):6.2f} s"
        )


if __name__ == "__main__":
    run(parser(), main)
