"""From Enter to the script's first line on rank 0, three hosts: `inv launch` with its agent warm and cold, beside
three `ssh HOST torchrun ...` typed in three terminals at once, with the same flags, and torchrunx.

    python -m benchmarks.first_line [ROUNDS]

torchrunx wants names that resolve, so for it the hosts get them; its function begins when it has made a file there,
while the others must have brought a line to the terminal.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.common import in_turn, lab_with_user, machine, peer, table, typed_torchruns
from tests.lab import Lab
from tests.lab.tools import wait_until
from tests.launch.ugro import Ugro

SCRIPT = "import os\nprint('first line of rank', os.environ['RANK'], flush=True)\n"
RUNX = """
import os, sys
import torchrunx

def work():
    if os.environ["RANK"] == "0":
        open(os.path.expanduser("~/begun"), "w").close()

if __name__ == "__main__":
    config, *addresses = sys.argv[1:]
    torchrunx.Launcher(hostnames=addresses, workers_per_host=1, backend="gloo", ssh_config_file=config).run(work)
"""


def by_hand(lab: Lab, script: Path) -> float:
    begun = time.monotonic()
    terminals = typed_torchruns(lab, str(script))
    took = first_line(terminals[0], begun)
    for terminal in terminals:
        terminal.communicate(timeout=60)
    return took


def by_torchrunx(lab: Lab, script: Path, programs: Path) -> float:
    begun_file = lab.hosts[0].path("begun")
    begun_file.unlink(missing_ok=True)
    begun = time.monotonic()
    process = subprocess.Popen(
        [programs / "python", script, lab.ssh_config, *(host.address for host in lab.hosts)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**lab.environ, "GLOO_SOCKET_IFNAME": f"ulab{lab.number}"},
    )  # fmt: skip
    wait_until(begun_file.exists, "torchrunx to begin", 120)
    took = time.monotonic() - begun
    process.wait(timeout=120)
    return took


def give_names(lab: Lab) -> None:
    """Let each host resolve its own name and the controller's, as torchrunx needs it."""
    controller = f"{lab.subnet.replace('.0/24', '.1')} {socket.getfqdn()}"
    names = "\n".join([*(f"{host.address} {host.name}" for host in lab.hosts), controller])
    for host in lab.hosts:
        host.run(["sh", "-c", f"echo '{names}' > /run/hosts && mount --bind /run/hosts /etc/hosts"])


def launched(ugro: Ugro, *, warm: bool) -> float:
    if not warm:
        ugro.close()
    begun = time.monotonic()
    command = ugro.start("launch", "--name", "first", "--script", "first.py")
    took = first_line(command, begun)
    command.communicate(timeout=60)
    assert command.returncode == 0
    return took


def first_line(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", begun: float) -> float:
    assert process.stdout
    said = []
    for line in process.stdout:
        if "first line of rank 0" in str(line):
            return time.monotonic() - begun
        said.append(line)
    raise AssertionError(f"the script said nothing: {said}")


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        script = Path(folder) / "first.py"
        script.write_text(SCRIPT)
        with lab_with_user(Path(folder)) as (lab, ugro):
            measures: dict[str, Callable[[], float]] = {
                "launch, agent warm": lambda: launched(ugro, warm=True),
                "three typed ssh": lambda: by_hand(lab, script),
                "launch, agent cold": lambda: launched(ugro, warm=False),
            }
            if programs := peer("torchrunx", "torchrunx==0.4.0", packages_of_training=True):
                give_names(lab)
                other = Path(folder) / "by_torchrunx.py"
                other.write_text(RUNX)
                measures["torchrunx"] = partial(by_torchrunx, lab, other, programs)
            figures = in_turn(measures, rounds)
            title = f"from Enter to the first line, three hosts, {rounds} rounds, {machine()}"
            hand = {name: values for name, values in figures.items() if not name.startswith("launch")}
            for ours in ("launch, agent warm", "launch, agent cold"):
                table(title, {ours: figures[ours], **hand}, ours)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
