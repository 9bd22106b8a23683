"""What the benchmarks stand UGRO beside: which of it is here, how the rest is installed, and what pip can install.

The packages are listed once: those of Debian in requirements/bench.debian.txt, which a benchmark only names because
it does not change the machine; those of PyPI in requirements/bench.txt, of which each peer gets an environment of its
own in .ugro/peers, so that nothing of it comes into UGRO's and none is slowed down by what another has.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import BenchmarkError

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".ugro/env/bin/python"
DEBIAN = ROOT / "requirements/bench.debian.txt"
PINS = ROOT / "requirements/bench.txt"
PEERS = ROOT / ".ugro/peers"
PIP_SECONDS = 600


class PeerError(Exception):
    """A peer cannot be installed or did not do its work; the message says why in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A program that a user could take instead."""

    name: str
    """As the tables have it."""
    package: str
    """Which brings it: a line of one of the two lists."""
    program: str
    """What is looked for."""
    trains: bool = False
    """Whether it uses the packages of the training environment beside its own."""


ANSIBLE = Peer(name="ansible", package="ansible-core", program="ansible")
PARALLEL_SSH = Peer(name="parallel-ssh", package="pssh", program="parallel-ssh")
PDSH = Peer(name="pdsh", package="pdsh", program="pdsh")
PYINFRA = Peer(name="pyinfra", package="pyinfra", program="pyinfra")
RSYNC = Peer(name="rsync by hand", package="rsync", program="rsync")
TORCHRUNX = Peer(name="torchrunx", package="torchrunx", program="python", trains=True)
ALL = (ANSIBLE, PARALLEL_SSH, PDSH, PYINFRA, RSYNC, TORCHRUNX)


def find(*peers: Peer) -> dict[str, Path]:
    """Find the program of each peer, by the peer's name; say in one line of each that is missing how it is installed.

    A peer from PyPI that is not installed yet is installed first.
    """
    found = {}
    for peer in peers:
        try:
            found[peer.name] = _program(peer)
        except PeerError as error:
            say(f"{peer.name}: not installed, and so left out; {error}")
    return found


def need_training_environment() -> None:
    """Raise BenchmarkError where the Python of the training environment is missing."""
    if not os.access(PYTHON, os.X_OK):
        raise BenchmarkError(
            f"no training environment: {PYTHON} cannot be run; `bin/ugro test` makes it"
        )


def listed(file: Path) -> dict[str, str]:
    """Read a list of packages: {name: the line without its comment}."""
    lines = [
        line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines()
    ]
    return {line.partition("==")[0]: line for line in lines if line}


def say(words: str) -> None:
    """Tell the user, beside the tables, which go to the standard output."""
    print(words, file=sys.stderr, flush=True)


def _program(peer: Peer) -> Path:
    """Find or install a peer's program; PeerError says how to install it."""
    if peer.package not in listed(DEBIAN):
        return _from_pypi(peer, listed(PINS)[peer.package])
    path = shutil.which(peer.program)
    if path is None:
        raise PeerError(f"as root on Debian: apt-get install {peer.package}")
    return Path(path)


def _from_pypi(peer: Peer, requirement: str) -> Path:
    """Find the program in the peer's own environment, which is made where it is missing or of other pins."""
    if peer.trains and not os.access(PYTHON, os.X_OK):
        raise PeerError(
            f"it needs the training environment, which `bin/ugro test` makes: {PYTHON}"
        )
    python = PYTHON if peer.trains else Path(sys.executable)
    folder = PEERS / peer.name
    program = folder / "bin" / peer.program
    stamp = folder / "made-from"
    wanted = f"made for {folder} by {python.resolve()}\n{PINS.read_text('utf-8')}"
    with _alone():
        if program.exists() and stamp.exists() and stamp.read_text("utf-8") == wanted:
            return program
        say(
            f"{peer.name}: installing {requirement}, pinned in requirements/{PINS.name}, into {folder}"
        )
        _install(
            requirement,
            [python, "-I", "-m", "venv", "--without-pip", "--clear", folder],
        )
        if peer.trains:
            _add_packages(folder, of=PYTHON.parents[1])
        # The pip of the Python that runs this: there are Pythons that cannot give an environment a pip of its own.
        pip: list[str | Path] = [
            sys.executable,
            "-I",
            "-m",
            "pip",
            "--python",
            folder / "bin/python",
        ]
        quick = [
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            "--retries",
            "1",
        ]
        _install(
            requirement, [*pip, "install", *quick, "--constraint", PINS, requirement]
        )
        if not program.exists():
            raise PeerError(f"{requirement} brought no {program}")
        stamp.write_text(wanted, "utf-8")
    return program


def _add_packages(folder: Path, of: Path) -> None:
    """Let an environment see what another has."""
    theirs = next((of / "lib").glob("python*/site-packages"))
    own = next((folder / "lib").glob("python*/site-packages"))
    (own / "training.pth").write_text(f"{theirs}\n", "utf-8")


def _install(requirement: str, argv: list[str | Path]) -> None:
    """Run a step of an installation; PeerError has what it said."""
    try:
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PIP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(
            f"pip had not installed {requirement} after {PIP_SECONDS} s"
        ) from None
    if done.returncode != 0:
        said = telling_line(done.stderr or done.stdout)
        raise PeerError(
            f"pip cannot install {requirement}: {said}; the next run tries again"
        )


def telling_line(said: str) -> str:
    """Choose the line that tells most of why a program failed: its first error, else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    if errors:
        return errors[0]
    return lines[-1] if lines else "it said nothing"


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other benchmark installs a peer, and keep it so."""
    try:
        PEERS.mkdir(parents=True, exist_ok=True)
        lock = (PEERS / "lock").open("w")
    except OSError as error:
        raise PeerError(f"{PEERS} cannot be used: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
