"""What the benchmarks share: a lab with a user on it, rounds in turn, tables."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from benchmarks.command import BenchmarkError
from benchmarks.peers import (
    PYTHON,
    PeerError,
    need_training_environment,
    say,
    telling_line,
)
from lab import Lab
from lab.proof import send_signal
from lab.tools import has_variable, pids, require_means, wait_until
from lab.ugro import SCRIPTS, Ugro

PATIENCE_SECONDS = 300


@contextmanager
def lab_with_user(
    scripts: Path | Mapping[str, str] = SCRIPTS, hosts: int = 3
) -> Iterator[tuple[Lab, Ugro]]:
    """Bring up hosts, and UGRO with a folder of its own on the controller.

    `scripts` is a folder, or {file name: text} for one that is made, see `script_folder`. Nothing is left of any of it,
    also where a signal ends the benchmark.
    """
    require_means()
    need_training_environment()
    with tempfile.TemporaryDirectory(prefix="ugro-bench-") as name:
        folder = Path(name)
        own = folder / "scripts"
        own.mkdir()
        if isinstance(scripts, Mapping):
            for script, text in scripts.items():
                (own / script).write_text(text, "utf-8")
            scripts = own
        with Lab.up(hosts=hosts, share=[own], owned=True) as lab:
            lab.trust()
            try:
                yield lab, Ugro(lab, folder, scripts)
            finally:
                _end_all(lab)


def script_folder(ugro: Ugro) -> Path:
    """Give the folder with the benchmark's own scripts, which each host sees at the same path."""
    return ugro.folder / "scripts"


def check(words: Iterable[str | Path], code: int, said: str, expected: int = 0) -> None:
    """Raise BenchmarkError where a command ended with another exit code than it should have."""
    if code != expected:
        command = " ".join(map(str, words))
        raise BenchmarkError(
            f"`{command}` ended with {code} instead of {expected}: {telling_line(said)}"
        )


def quietly(argv: Sequence[str | Path], environ: Mapping[str, str]) -> None:
    """Run a program to its end, which must be a good one."""
    done = _run(argv, environ, BenchmarkError)
    check(argv, done.returncode, done.stdout + done.stderr)


def on_each(lab: Lab, argv: Sequence[str | Path], environ: Mapping[str, str]) -> None:
    """Run a peer's program that lets each host print its name; PeerError where one did not."""
    done = _run(argv, environ, PeerError, cwd=lab.home)
    words = set((done.stdout + done.stderr).split())
    silent = [host.name for host in lab.hosts if host.name not in words]
    if silent:
        said = telling_line(done.stderr or done.stdout)
        raise PeerError(
            f"it did not run on {', '.join(silent)} (exit code {done.returncode}): {said}"
        )


def typed_torchruns(
    lab: Lab,
    script: str,
    *,
    before: str = "",
    tty: bool = False,
    into: Sequence[BinaryIO] = (),
) -> list[subprocess.Popen[bytes]]:
    """Start `ssh HOST torchrun ...` in a terminal for each host, as one types it without UGRO.

    `script` is a path and its arguments, `before` what the shell does first. What the ranks say goes `into` these
    files, or can be read.
    """
    terminals = []
    for rank, host in enumerate(lab.hosts):
        command = (
            f"{before} export PYTHONUNBUFFERED=1 GLOO_SOCKET_IFNAME={host.interface}; "
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
    """Describe what stands behind the figures."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def seconds(work: Callable[[], object]) -> float:
    """Measure how long the work takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def in_turn(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Take each contender's figures: A B C A B C ..., after one round that does not count.

    One that raises PeerError is left out from there on, and has no figures.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    failed: set[str] = set()
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            if name in failed:
                continue
            try:
                figure = measure()
            except PeerError as error:
                say(f"{name}: failed, and so left out; {error}")
                failed.add(name)
                figures[name] = []
                continue
            if number:
                figures[name].append(figure)
    return figures


def table(
    title: str,
    figures: Mapping[str, Sequence[float]],
    ours: str,
    unit: str = "s",
    not_installed: Iterable[str] = (),
) -> None:
    """Print medians, and the median ratio of ours to each, pair by pair."""
    print(
        f"\n{title}\n{'':28} {'min':>8} {'median':>8} {'max':>8}   ratio of {ours!r} to it"
    )
    for name, values in figures.items():
        if not values:
            print(f"{name:28} failed")
            continue
        row = f"{name:28} {min(values):8.2f} {statistics.median(values):8.2f} {max(values):8.2f} {unit}"
        if name != ours:
            pairs = zip(figures[ours], values, strict=True)
            row += (
                f"   {statistics.median(mine / theirs for mine, theirs in pairs):.2f}"
            )
        print(row)
    for name in not_installed:
        print(f"{name:28} not installed")


def _run(
    argv: Sequence[str | Path],
    environ: Mapping[str, str],
    error: type[Exception],
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; raise the error where that does not come."""
    try:
        return subprocess.run(
            argv,
            env=environ,
            cwd=cwd,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise error(f"{argv[0]} still ran after {PATIENCE_SECONDS} s") from None


def _end_all(lab: Lab) -> None:
    """End whatever runs on the controller as the lab's user: the agent, followers, typed ssh.

    None is known by anything but its home, which is the lab's alone.
    """

    def is_ours(pid: int) -> bool:
        return has_variable(pid, "HOME", lab.home)

    def ended() -> bool:
        left = [pid for pid in pids() if is_ours(pid)]
        for pid in left:
            send_signal(pid, signal.SIGKILL, is_ours)
        return not left

    wait_until(ended, "what the benchmark started to end")
