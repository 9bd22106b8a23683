"""What the agent takes while one job runs and says little: CPU and memory; and what is on a node."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.command import make_parser, run, whole
from benchmarks.common import check, lab_with_user, machine
from lab import LabHost

TICKS = os.sysconf("SC_CLK_TCK")

Reading = Callable[[str], str]  # a file of a process in /proc -> its text


def cpu_seconds(read: Reading) -> float:
    """Read the CPU time, user and system."""
    fields = read("stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(read: Reading) -> float:
    """Read the resident memory."""
    return int(read("status").split("VmRSS:")[1].split()[0]) / 1024


def here(pid: int) -> Reading:
    return lambda name: Path(f"/proc/{pid}/{name}").read_text()


def there(host: LabHost, pid: int) -> Reading:
    return lambda name: host.run(["cat", f"/proc/{pid}/{name}"]).stdout


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("idle", __doc__)
    made.add_argument(
        "--seconds",
        dest="span_seconds",
        metavar="S",
        type=whole(1),
        default=60,
        help="how long it is measured",
    )
    return made


def main(span_seconds: int) -> None:
    script = f"import time\ntime.sleep({span_seconds + 60})\n"
    with lab_with_user({"quiet.py": script}) as (lab, ugro):
        # That of a cluster file that says nothing of it.
        ugro.set_timeouts(heartbeat_seconds=2.0)
        done = ugro.run("launch", "--name", "quiet", "--script", "quiet.py", "--detach")
        check(["inv", "launch"], done.returncode, done.stdout + done.stderr)
        time.sleep(5)
        who = {"agent": here(ugro.agent_pid())}
        host = lab.hosts[0]
        for pid, words in host.processes():
            line = " ".join(words)
            if "supervise" in line:
                who["supervisor on a node"] = there(host, pid)
            elif "memfd_create" in line and "python" in words[0]:
                who["follow on a node"] = there(host, pid)
        before = {name: cpu_seconds(read) for name, read in who.items()}
        time.sleep(span_seconds)
        print(f"\none quiet job on three hosts, {span_seconds} s, {machine()}")
        for name, read in who.items():
            percent = 100 * (cpu_seconds(read) - before[name]) / span_seconds
            print(f"{name:24} {percent:6.2f} % of a core {memory_mib(read):8.1f} MiB")
        ugro.run("stop", "quiet")


if __name__ == "__main__":
    run(parser(), main)
