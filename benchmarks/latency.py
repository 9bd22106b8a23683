"""How long a line takes from the script to the terminal: `inv launch` beside `ssh HOST tail -f`, at the same time.

    python -m benchmarks.latency [LINES]

On the lab's layered file systems `tail` gets no notice of what is written and looks itself; here it looks every 10 ms.
The script prints the time at which it prints; all clocks here are one. Both readers note when a line has come to them.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import quantiles

from benchmarks.common import lab_with_user, machine
from tests.lab.tools import wait_until

SCRIPT = """
import os, sys, time
for _ in range(int(sys.argv[sys.argv.index("--lines") + 1])):
    time.sleep(0.05)
    if os.environ["RANK"] == "0":
        print("said at", time.time(), flush=True)
"""


def read(lines: Iterable[str], late_seconds: list[float]) -> None:
    for line in lines:
        if "said at " in line:
            late_seconds.append(time.time() - float(line.rpartition(" ")[2]))


def main(lines: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        (Path(folder) / "speak.py").write_text(SCRIPT)
        with lab_with_user(Path(folder)) as (lab, ugro):
            ours: list[float] = []
            theirs: list[float] = []
            launch = ugro.start(
                "launch", "--name", "speak", "--script", "speak.py", "--args", f"--lines {lines}"
            )
            assert launch.stdout is not None
            reader = threading.Thread(target=read, args=(launch.stdout, ours))
            reader.start()
            logs = lab.hosts[0].path("ugro/jobs")
            wait_until(lambda: any(logs.glob("speak_*/log")), "the job to begin", 60)
            log = next(logs.glob("speak_*/log")).name
            where = f"ugro/jobs/{next(logs.glob('speak_*/log')).parent.name}/{log}"
            tail = subprocess.Popen(
                ["ssh", "-F", str(lab.ssh_config), lab.hosts[0].address, "tail", "-s", "0.01", "-n", "0", "-f", where],
                env=lab.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert tail.stdout is not None
            other = threading.Thread(target=read, args=(tail.stdout, theirs))
            other.start()
            reader.join()
            launch.wait()
            tail.terminate()
            other.join()
            assert launch.returncode == 0
    print(f"\nfrom print() to the reader, {machine()}")
    print(f"{'':16} {'lines':>6} {'p50':>8} {'p99':>8} {'max':>8}")
    for name, late in (("inv launch", ours), ("ssh tail -f", theirs)):
        cuts = [1000 * cut for cut in quantiles(late, n=100)]
        print(f"{name:16} {len(late):6} {cuts[49]:8.1f} {cuts[98]:8.1f} {1000 * max(late):8.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
