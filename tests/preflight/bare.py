"""The same without UGRO: `ssh host torchrun ...`, typed once for each host, and what comes of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from tests.preflight.stage import SCRIPT, SCRIPTS, Stage

MASTER_PORT = 29500
SUM = "the sum is 6"
# Which rank says it, when, and the lines of source that it names.
NOISE = re.compile(
    r"^\[rank\d\]: *|^\[?[EWI]\d{4} \S+ \d+ \S+\] *|\[?(?:enforce fail at )?/[\w./-]+:\d+\]:? ?"
)
# What says most of a traceback or of torchrun's report; the first match of the first pattern.
TELLING = (
    r"[\w.]*(?:Error|Exception)\b: .*",
    r".*(?:not found|denied|refused|verification failed|No route|timed out|No module named|[Nn]o space).*",
    r".*(?:Error|error|failed).*",
)


@dataclass
class Terminal:
    """One of the three terminals: what was typed there and what came."""

    name: str
    process: subprocess.Popen[str]
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)

    def read(self, begun: float) -> None:
        """Until the command has ended."""
        assert self.process.stdout
        self.said.extend(self.process.stdout)
        self.process.wait()
        self.seconds = time.monotonic() - begun

    @property
    def telling(self) -> str:
        """The line that says most of why it failed."""
        text = [NOISE.sub("", line).strip() for line in self.said]
        for pattern in TELLING:
            for line in text:
                if found := re.search(pattern, line):
                    return found[0][:160]
        return text[-1][:160] if text else "without a word"


def by_hand(stage: Stage, limit_seconds: float) -> str:
    """What becomes of three hand-typed torchruns, in words; after the limit the user's patience is at an end."""
    begun = time.monotonic()
    terminals = [_type(stage, rank) for rank in range(len(stage.hosts))]
    threads = [
        threading.Thread(target=terminal.read, args=(begun,)) for terminal in terminals
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.1, begun + limit_seconds - time.monotonic()))
    hanging = [
        terminal.name for terminal in terminals if terminal.process.poll() is None
    ]
    for terminal in terminals:
        terminal.process.kill()
    for host in stage.hosts:  # else they would go on: the end of ssh is none of theirs
        for pid, argv in host.processes():
            if SCRIPT in " ".join(argv):
                with suppress(ProcessLookupError):
                    host.kill(pid)
    for thread in threads:
        thread.join()
    return _in_words(terminals, hanging, limit_seconds)


def _type(stage: Stage, rank: int) -> Terminal:
    master, host = stage.hosts[0], stage.hosts[rank]
    flags = f"--nnodes {len(stage.hosts)} --node-rank {rank} --nproc-per-node 1"
    meeting = f"--master-addr {master.address} --master-port {MASTER_PORT}"
    command = f"{stage.torchruns[host.name]} {flags} {meeting} {shlex.quote(str(SCRIPTS / SCRIPT))}"
    ssh = [
        "ssh",
        "-F",
        str(stage.lab.ssh_config),
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=10",
    ]
    process = subprocess.Popen(
        [*ssh, f"root@{host.address}", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return Terminal(host.name, process)


def _in_words(
    terminals: list[Terminal], hanging: list[str], limit_seconds: float
) -> str:
    good = [
        t.name for t in terminals if t.name not in hanging and t.process.returncode == 0
    ]
    failed = [
        t for t in terminals if t.name not in hanging and t.process.returncode != 0
    ]
    if len(good) == len(terminals):
        whole = all(
            any(SUM in line for line in terminal.said) for terminal in terminals
        )
        return f"works, in {max(t.seconds for t in terminals):.0f} s" + (
            "" if whole else ", with a wrong sum"
        )
    words = []
    if failed:
        first = min(failed, key=lambda terminal: terminal.seconds)
        words.append(
            f"{first.name} fails after {first.seconds:.0f} s: `{first.telling}`"
        )
        if others := [t.name for t in failed if t is not first]:
            words.append(
                f"{' and '.join(others)} after {max(t.seconds for t in failed):.0f} s"
            )
    if hanging:
        silent = (
            ""
            if failed
            else ", without a word"
            if not any(t.said for t in terminals)
            else ""
        )
        words.append(
            f"{' and '.join(hanging)} hang{'s' * (len(hanging) == 1)} (> {limit_seconds:.0f} s){silent}"
        )
    return "; ".join(words)
