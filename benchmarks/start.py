"""How long a command takes to start, beside `inv --version`, which loads Invoke and nothing of UGRO.

Seconds of a busy machine say little of so short a run, so CPU seconds (user and system) are given, too.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.command import BenchmarkError, add_rounds, make_parser, run
from benchmarks.common import in_turn, machine, seconds, table
from benchmarks.peers import ROOT

INV = Path(sys.executable).with_name("inv")


def measured(*words: str, environ: dict[str, str]) -> tuple[float, float]:
    """Measure the (wall, CPU) seconds of one command in the checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(
        lambda: subprocess.run(
            [INV, *words],
            cwd=ROOT,
            env=environ,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("start", __doc__)
    add_rounds(made, default=15)
    return made


def main(rounds: int) -> None:
    if not INV.exists():
        raise BenchmarkError(
            f"{INV} is missing: run the benchmark by the Python of .venv, which bin/ugro makes"
        )
    commands = {
        "inv --list": ["--list"],
        "inv status": ["status"],
        "inv --version": ["--version"],
    }
    with tempfile.TemporaryDirectory(prefix="ugro-bench-") as folder:
        cluster = Path(folder) / "cluster.yaml"
        cluster.write_text("cluster: {master: {hostname: m, ip: 10.0.0.1}}\n")
        environ = {**os.environ, "UGRO_CLUSTER": str(cluster)}
        walls: dict[str, list[float]] = {name: [] for name in commands}

        def cpu_of(name: str) -> float:
            wall, cpu = measured(*commands[name], environ=environ)
            walls[name].append(wall)
            return cpu * 1000

        cpus = in_turn({name: partial(cpu_of, name) for name in commands}, rounds)
    for ours in ("inv --list", "inv status"):
        pair = {name: cpus[name] for name in (ours, "inv --version")}
        table(f"start, CPU, {rounds} rounds, {machine()}", pair, ours, "ms")
        pair = {
            name: [1000 * wall for wall in walls[name][1:]]
            for name in (ours, "inv --version")
        }
        table(f"start, wall, {rounds} rounds, {machine()}", pair, ours, "ms")


if __name__ == "__main__":
    run(parser(), main)
