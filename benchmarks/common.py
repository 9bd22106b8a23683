"""What the benchmarks share: a lab with a user on it, peers to stand beside, pairs of runs, medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tests.lab import Lab
from tests.launch.ugro import SCRIPTS, Ugro

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".ugro/env/bin/python"
PEERS = ROOT / ".ugro/peers"
INTERFACES = ("eth0", "enp3s0", "eno1")  # of the lab's hosts


@contextmanager
def lab_with_user(scripts: Path | None = None, hosts: int = 3) -> Iterator[tuple[Lab, Ugro]]:
    """Hosts, and UGRO with a folder of its own on the controller."""
    with Lab.up(hosts=hosts, owned=True) as lab, tempfile.TemporaryDirectory() as folder:
        lab.trust()
        ugro = Ugro(lab, Path(folder), scripts or SCRIPTS)
        try:
            yield lab, ugro
        finally:
            ugro.close()


def peer(name: str, *requirements: str, packages_of_training: bool = False) -> Path | None:
    """The bin folder of an environment with a peer in it, made where it is missing; None where it cannot be had.

    It is a folder of its own, so that no peer comes into the project's environment.
    """
    folder = PEERS / name
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        if packages_of_training:
            site = next((ROOT / ".ugro/env/lib").glob("python*/site-packages"))
            (next((folder / "lib").glob("python*")) / "site-packages/training.pth").write_text(f"{site}\n")
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *requirements], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{name} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
        (folder / "made").touch()
    return folder / "bin"


def quietly(argv: Sequence[str | Path], environ: Mapping[str, str], code: int | None = 0) -> None:
    """Run a program to its end; it must end with this exit code, where one is given."""
    done = subprocess.run(
        argv, env=environ, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert code in {None, done.returncode}, (
        f"{argv}: {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
    )


def typed_torchruns(
    lab: Lab, script: str, *, before: str = "", tty: bool = False, into: Sequence[BinaryIO] = ()
) -> list[subprocess.Popen[bytes]]:
    """`ssh HOST torchrun ...` in a terminal for each host, as one types it without UGRO.

    `script` is a path and its arguments, `before` what the shell does first. What the ranks say goes `into` these
    files, or can be read.
    """
    terminals = []
    for rank, host in enumerate(lab.hosts):
        command = (
            f"{before} export PYTHONUNBUFFERED=1 GLOO_SOCKET_IFNAME={INTERFACES[rank]}; "
            f"{PYTHON} -m torch.distributed.run --nnodes {len(lab.hosts)} --node-rank {rank} --nproc-per-node 1 "
            f"--master-addr {lab.hosts[0].address} --master-port 29510 --local-addr {host.address} --max-restarts 0 "
            f"{script}"
        )
        terminals.append(
            subprocess.Popen(
                ["ssh", *(["-tt"] if tty else []), "-F", str(lab.ssh_config), host.address, command],
                stdin=subprocess.DEVNULL, stdout=into[rank] if into else subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=lab.environ,
            )
        )  # fmt: skip
    return terminals


def machine() -> str:
    """What stands behind the figures."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender's figures: A B C A B C ..., after one round that does not count."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            figure = measure()
            if number:
                figures[name].append(figure)
    return figures


def table(title: str, figures: Mapping[str, Sequence[float]], ours: str, unit: str = "s") -> None:
    """Medians, and the median ratio of ours to each, pair by pair."""
    print(f"\n{title}\n{'':28} {'min':>8} {'median':>8} {'max':>8}   ratio of {ours!r} to it")
    for name, values in figures.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(figures[ours], values, strict=True))
        print(
            f"{name:28} {min(values):8.2f} {statistics.median(values):8.2f} {max(values):8.2f} {unit}"
            + ("" if name == ours else f"   {ratio:.2f}")
        )
