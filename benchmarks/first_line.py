"""From Enter to the script's first line on rank 0, three hosts: `inv launch` with its agent warm and cold, beside
three `ssh HOST torchrun ...` typed in three terminals at once, with the same flags.

    python -m benchmarks.first_line [ROUNDS]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import PYTHON, in_turn, lab_with_user, table
from tests.lab import Lab
from tests.launch.ugro import Ugro

SCRIPT = "import os\nprint('first line of rank', os.environ['RANK'], flush=True)\n"
INTERFACES = ("eth0", "enp3s0", "eno1")


def by_hand(lab: Lab, script: Path) -> float:
    begun = time.monotonic()
    terminals = []
    for rank, host in enumerate(lab.hosts):
        command = (
            f"GLOO_SOCKET_IFNAME={INTERFACES[rank]} PYTHONUNBUFFERED=1 {PYTHON} -m torch.distributed.run "
            f"--nnodes 3 --node-rank {rank} --nproc-per-node 1 --master-addr {lab.hosts[0].address} "
            f"--master-port 29510 --local-addr {host.address} --max-restarts 0 {script}"
        )
        terminals.append(
            subprocess.Popen(
                ["ssh", "-F", str(lab.ssh_config), host.address, command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=lab.environ,
            )
        )  # fmt: skip
    took = first_line(terminals[0], begun)
    for terminal in terminals:
        terminal.communicate(timeout=60)
    return took


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
    for line in process.stdout:
        if "first line of rank 0" in str(line):
            return time.monotonic() - begun
    raise AssertionError("the script said nothing")


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        script = Path(folder) / "first.py"
        script.write_text(SCRIPT)
        with lab_with_user(Path(folder)) as (lab, ugro):
            figures = in_turn(
                {
                    "launch, agent warm": lambda: launched(ugro, warm=True),
                    "three typed ssh": lambda: by_hand(lab, script),
                    "launch, agent cold": lambda: launched(ugro, warm=False),
                },
                rounds,
            )
            title = f"from Enter to the first line, three hosts, {rounds} rounds, {os.cpu_count()} cores"
            hand = {"three typed ssh": figures["three typed ssh"]}
            for ours in ("launch, agent warm", "launch, agent cold"):
                table(title, {ours: figures[ours], **hand}, ours)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
