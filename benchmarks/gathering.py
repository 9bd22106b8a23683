"""`inv gather` of 2 GB, and again with nothing new, beside rsync by hand to the same three hosts."""

import argparse
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.command import add_rounds, make_parser, run, whole
from benchmarks.common import check, in_turn, lab_with_user, machine, seconds, table
from benchmarks.peers import RSYNC, PeerError, find
from lab import Lab
from lab.ugro import Job, Ugro

SCRIPT = """
import os, pathlib, sys
size = int(sys.argv[sys.argv.index("--megabytes") + 1]) // 3
folder = pathlib.Path(os.environ["UGRO_OUTPUT_DIR"]) / "artifacts"
folder.mkdir(parents=True)
block = os.urandom(1 << 20)
for number in range(10):
    with (folder / f"part{number}-{os.environ['RANK']}.bin").open("wb") as file:
        for _ in range(size // 10):
            file.write(block)
"""


def by_hand(lab: Lab, rsync: Path, job: Job, to: Path) -> None:
    """Run three rsync at once, as one would type them."""
    copies = []
    for host in lab.hosts:
        folder = next(host.path("ugro/jobs").glob(f"{job.folder.name}.*")).name
        there = f"{host.address}:ugro/jobs/{folder}/output/artifacts"
        argv = [
            str(rsync),
            "-a",
            "-e",
            f"ssh -F {lab.ssh_config}",
            there,
            str(to / host.name),
        ]
        copies.append(subprocess.Popen(argv, env=lab.environ, stdin=subprocess.DEVNULL))
    for copy in copies:
        if copy.wait() != 0:
            raise PeerError(f"exit code {copy.returncode}")


def gather(ugro: Ugro, job: Job) -> None:
    """Fetch the outputs of the job."""
    done = ugro.run("gather", job.folder.name, timeout=300)
    check(["inv", "gather"], done.returncode, done.stdout + done.stderr)


def seconds_from_nothing(work: Callable[[], None], places: list[Path]) -> float:
    """Measure the work where nothing is there of what it brings."""
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    return seconds(work)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("gathering", __doc__)
    add_rounds(made)
    made.add_argument(
        "--megabytes",
        type=whole(30),
        default=2000,
        help="the outputs of the three ranks together",
    )
    return made


def main(rounds: int, megabytes: int) -> None:
    programs = find(RSYNC)
    with lab_with_user({"write.py": SCRIPT}) as (lab, ugro):
        words = [
            "launch",
            "--name",
            "big",
            "--script",
            "write.py",
            "--args",
            f"--megabytes {megabytes}",
        ]
        done = ugro.run(*words, timeout=300)
        check(["inv", *words], done.returncode, done.stdout + done.stderr)
        job = ugro.job("big")
        copies = ugro.folder / "copies"
        for host in lab.hosts:
            (copies / host.name).mkdir(parents=True)
        works = {"inv gather": partial(gather, ugro, job)}
        places = {"inv gather": [job.folder / "artifacts", job.folder / "ranks"]}
        if RSYNC.name in programs:
            works[RSYNC.name] = partial(by_hand, lab, programs[RSYNC.name], job, copies)
            places[RSYNC.name] = [
                copies / host.name / "artifacts" for host in lab.hosts
            ]
        missing = {RSYNC.name} - programs.keys()
        whole_copy = {
            name: partial(seconds_from_nothing, work, places[name])
            for name, work in works.items()
        }
        figures = in_turn(whole_copy, rounds)
        title = f"{megabytes} MB from three hosts, {rounds} rounds, {machine()}"
        table(title, figures, "inv gather", not_installed=missing)
        again = {name: partial(seconds, work) for name, work in works.items()}
        figures = in_turn(again, rounds)
        title = f"the same again, nothing new, {rounds} rounds, {machine()}"
        table(title, figures, "inv gather", not_installed=missing)


if __name__ == "__main__":
    run(parser(), main)
