"""How long a line takes from the script to the terminal: `inv launch` beside `ssh HOST tail -f`, at the same time.

On the lab's layered file systems `tail` gets no notice of what is written and looks itself; here it looks every 10 ms.
The script prints the time at which it prints; all clocks here are one. Both readers note when a line has come to them.
"""

import argparse
import subprocess
import threading
import time
from collections.abc import Iterable
from statistics import quantiles

from benchmarks.command import BenchmarkError, make_parser, run, whole
from benchmarks.common import check, lab_with_user, machine
from lab.tools import wait_until

FEWEST = 20
SCRIPT = """
import os, sys, time
for _ in range(int(sys.argv[sys.argv.index("--lines") + 1])):
    time.sleep(0.05)
    if os.environ["RANK"] == "0":
        print("said at", time.time(), flush=True)
"""


def read(lines: Iterable[str], late_seconds: list[float], others: list[str]) -> None:
    """Note how late each line of the script comes, and what else is said."""
    for line in lines:
        if "said at " in line:
            late_seconds.append(time.time() - float(line.rpartition(" ")[2]))
        else:
            others.append(line)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("latency", __doc__)
    made.add_argument(
        "--lines",
        type=whole(100),
        default=400,
        help="that the script prints, twenty a second",
    )
    return made


def main(lines: int) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    said: list[str] = []
    with lab_with_user({"speak.py": SCRIPT}) as (lab, ugro):
        words = [
            "launch",
            "--name",
            "speak",
            "--script",
            "speak.py",
            "--args",
            f"--lines {lines}",
        ]
        launch = ugro.start(*words)
        reader = threading.Thread(
            target=read, args=(launch.stdout, ours, said), daemon=True
        )
        reader.start()
        logs = lab.hosts[0].path("ugro/jobs")
        wait_until(lambda: any(logs.glob("speak_*/log")), "the job to begin", 60)
        job = next(logs.glob("speak_*/log")).parent.name
        follow = ["tail", "-s", "0.01", "-n", "0", "-f", f"ugro/jobs/{job}/log"]
        tail = subprocess.Popen(
            ["ssh", "-F", str(lab.ssh_config), lab.hosts[0].address, *follow],
            env=lab.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        other = threading.Thread(
            target=read, args=(tail.stdout, theirs, []), daemon=True
        )
        other.start()
        reader.join()
        launch.wait()
        tail.terminate()
        other.join()
        check(["inv", *words], launch.returncode, "".join(said))
    print(f"\nfrom print() to the reader, {machine()}")
    print(f"{'':16} {'lines':>6} {'p50':>8} {'p99':>8} {'max':>8}")
    for name, late in (("inv launch", ours), ("ssh tail -f", theirs)):
        if len(late) < FEWEST:
            raise BenchmarkError(
                f"{name} saw {len(late)} lines of {lines}: give more --lines"
            )
        cuts = [1000 * cut for cut in quantiles(late, n=100)]
        print(
            f"{name:16} {len(late):6} {cuts[49]:8.1f} {cuts[98]:8.1f} {1000 * max(late):8.1f} ms"
        )


if __name__ == "__main__":
    run(parser(), main)
