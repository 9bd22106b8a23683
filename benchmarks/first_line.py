"""From Enter to the script's first line on rank 0, three hosts: `inv launch` with its agent warm and cold, beside
three `ssh HOST torchrun ...` typed in three terminals at once, with the same flags, and torchrunx.

torchrunx wants names that resolve, so for it the hosts get them; its function begins when it has made a file there,
while the others must have brought a line to the terminal.
"""

import argparse
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.command import BenchmarkError, add_rounds, make_parser, run
from benchmarks.common import (
    check,
    in_turn,
    lab_with_user,
    machine,
    script_folder,
    table,
    typed_torchruns,
)
from benchmarks.peers import TORCHRUNX, PeerError, find, telling_line
from lab import Lab
from lab.tools import LabError, wait_until
from lab.ugro import Ugro

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
    """Measure three typed commands."""
    begun = time.monotonic()
    terminals = typed_torchruns(lab, str(script))
    took = first_line(terminals[0], begun)
    for terminal in terminals:
        terminal.communicate(timeout=60)
    return took


def by_torchrunx(lab: Lab, ugro: Ugro, python: Path) -> float:
    """Measure torchrunx. What it writes, and where it works, is below the benchmark's own folder."""
    scripts = script_folder(ugro)
    begun_file = lab.hosts[0].path("begun")
    begun_file.unlink(missing_ok=True)
    begun = time.monotonic()
    with (ugro.folder / "torchrunx.log").open("w+") as log:
        process = subprocess.Popen(
            [python, scripts / "by_torchrunx.py", lab.ssh_config, *(host.address for host in lab.hosts)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=scripts,
            env={
                **lab.environ,
                "GLOO_SOCKET_IFNAME": f"ulab{lab.number}",
                "TORCHRUNX_LOG_DIR": str(ugro.folder / "torchrunx_logs"),
            },
        )  # fmt: skip
        try:
            wait_until(
                lambda: begun_file.exists() or process.poll() is not None,
                "torchrunx to begin",
                120,
            )
            took = time.monotonic() - begun
            process.wait(timeout=120)
        except (LabError, subprocess.TimeoutExpired) as error:
            process.kill()
            process.wait()
            raise PeerError(str(error)) from None
        log.seek(0)
        if process.returncode != 0 or not begun_file.exists():
            raise PeerError(
                f"exit code {process.returncode}: {telling_line(log.read())}"
            )
    return took


def give_names(lab: Lab) -> None:
    """Let each host resolve its own name and the controller's, as torchrunx needs it."""
    controller = f"{lab.subnet.replace('.0/24', '.1')} {socket.getfqdn()}"
    names = "\n".join(
        [*(f"{host.address} {host.name}" for host in lab.hosts), controller]
    )
    for host in lab.hosts:
        host.run(
            [
                "sh",
                "-c",
                f"echo '{names}' > /run/hosts && mount --bind /run/hosts /etc/hosts",
            ]
        )


def launched(ugro: Ugro, *, warm: bool) -> float:
    """Measure `inv launch`, by an agent that is there, or has to be started."""
    if not warm:
        ugro.close()
    begun = time.monotonic()
    command = ugro.start("launch", "--name", "first", "--script", "first.py")
    took = first_line(command, begun)
    out, err = command.communicate(timeout=60)
    check(["inv", "launch"], command.returncode, out + err)
    return took


def first_line(
    process: "subprocess.Popen[bytes] | subprocess.Popen[str]", begun: float
) -> float:
    """Measure from `begun` to the first line of rank 0."""
    assert process.stdout
    said: list[str] = []
    for line in process.stdout:
        if "first line of rank 0" in str(line):
            return time.monotonic() - begun
        said.append(str(line).strip())
    raise BenchmarkError(
        f"the script did not print its line; the last was: {(said or ['none'])[-1]}"
    )


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    made = make_parser("first_line", __doc__)
    add_rounds(made)
    return made


def main(rounds: int) -> None:
    programs = find(TORCHRUNX)
    with lab_with_user({"first.py": SCRIPT, "by_torchrunx.py": RUNX}) as (lab, ugro):
        measures: dict[str, Callable[[], float]] = {
            "launch, agent warm": lambda: launched(ugro, warm=True),
            "three typed ssh": lambda: by_hand(lab, script_folder(ugro) / "first.py"),
            "launch, agent cold": lambda: launched(ugro, warm=False),
        }
        if TORCHRUNX.name in programs:
            give_names(lab)
            measures[TORCHRUNX.name] = partial(
                by_torchrunx, lab, ugro, programs[TORCHRUNX.name]
            )
        figures = in_turn(measures, rounds)
    title = f"from Enter to the first line, three hosts, {rounds} rounds, {machine()}"
    others = {
        name: values
        for name, values in figures.items()
        if not name.startswith("launch")
    }
    missing = {TORCHRUNX.name} - programs.keys()
    for ours in ("launch, agent warm", "launch, agent cold"):
        table(title, {ours: figures[ours], **others}, ours, not_installed=missing)


if __name__ == "__main__":
    run(parser(), main)
