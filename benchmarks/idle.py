"""What the agent takes while one job runs and says little: CPU and memory; and what is on a node.

python -m benchmarks.idle [SECONDS]
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import lab_with_user, machine
from tests.lab import LabHost

TICKS = os.sysconf("SC_CLK_TCK")


Reading = Callable[[str], str]  # a file of a process in /proc -> its text


def cpu_seconds(read: Reading) -> float:
    """User and system."""
    fields = read("stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(read: Reading) -> float:
    """Resident."""
    return int(read("status").split("VmRSS:")[1].split()[0]) / 1024


def here(pid: int) -> Reading:
    return lambda name: Path(f"/proc/{pid}/{name}").read_text()


def there(host: LabHost, pid: int) -> Reading:
    return lambda name: host.run(["cat", f"/proc/{pid}/{name}"]).stdout


def main(span_seconds: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        (Path(folder) / "quiet.py").write_text(f"import time\ntime.sleep({span_seconds + 60})\n")
        measure(Path(folder), span_seconds)


def measure(scripts: Path, span_seconds: int) -> None:
    with lab_with_user(scripts) as (lab, ugro):
        ugro.set_timeouts(heartbeat_seconds=2.0)  # that of a cluster file that says nothing of it
        done = ugro.run("launch", "--name", "quiet", "--script", "quiet.py", "--detach")
        assert done.returncode == 0, done.stderr
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
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
