"""`inv gather` of 2 GB, and again with nothing new, beside rsync by hand to the same three hosts.

python -m benchmarks.gathering [ROUNDS] [MEGABYTES]
"""

import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.common import in_turn, lab_with_user, machine, seconds, table
from tests.lab import Lab
from tests.launch.ugro import Job, Ugro

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


def by_hand(lab: Lab, job: Job, to: Path) -> None:
    """Three rsync at once, as one would type them."""
    copies = []
    for host in lab.hosts:
        folder = next(host.path("ugro/jobs").glob(f"{job.folder.name}.*")).name
        there = f"{host.address}:ugro/jobs/{folder}/output/artifacts"
        argv = ["rsync", "-a", "-e", f"ssh -F {lab.ssh_config}", there, str(to / host.name)]
        copies.append(subprocess.Popen(argv, env=lab.environ, stdin=subprocess.DEVNULL))
    for copy in copies:
        assert copy.wait() == 0


def gather(ugro: Ugro, job: Job) -> None:
    done = ugro.run("gather", job.folder.name, timeout=300)
    assert done.returncode == 0, done.stderr


def main(rounds: int, megabytes: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        (Path(folder) / "write.py").write_text(SCRIPT)
        with lab_with_user(Path(folder)) as (lab, ugro):
            done = ugro.run("launch", "--name", "big", "--script", "write.py", "--args", f"--megabytes {megabytes}",
                            timeout=300)  # fmt: skip
            assert done.returncode == 0, done.stderr
            job, copies = ugro.job("big"), ugro.folder / "copies"
            for host in lab.hosts:
                (copies / host.name).mkdir(parents=True)

            def anew(work: "partial[None]", *places: Path) -> float:
                for place in places:
                    shutil.rmtree(place, ignore_errors=True)
                return seconds(work)

            ours, theirs = partial(gather, ugro, job), partial(by_hand, lab, job, copies)
            homes = [job.folder / "artifacts", job.folder / "ranks"]
            figures = in_turn(
                {
                    "inv gather": lambda: anew(ours, *homes),
                    "rsync by hand": lambda: anew(
                        theirs, *(copies / host.name / "artifacts" for host in lab.hosts)
                    ),
                },
                rounds,
            )
            table(f"{megabytes} MB from three hosts, {rounds} rounds, {machine()}", figures, "inv gather")
            figures = in_turn(
                {"inv gather": lambda: seconds(ours), "rsync by hand": lambda: seconds(theirs)}, rounds
            )
            table(f"the same again, nothing new, {rounds} rounds, {machine()}", figures, "inv gather")


if __name__ == "__main__":
    main(*[int(word) for word in [*sys.argv[1:], *("5", "2000")[len(sys.argv) - 1 :]]])
