"""Files between this machine and a host, by the real rsync program."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from .errors import HostUnreachable, NodeFault, ToolMissing
from .hosts import Host
from .ssh import READ_BYTES


class Rsync:
    """The real rsync program between this machine and a host."""

    PERCENT: ClassVar = re.compile(rb"(\d+)%")

    def __init__(self, host: Host) -> None:
        self.host = host

    def push(self, source: str, target: str, *, exclude: Sequence[str] = (), delete: bool = False) -> None:
        """Make `target` on the host like `source` here."""
        options, remote = self.host.rsync_remote()
        self._run(
            [*options, *_excluded(exclude), *(["--delete"] if delete else []), "--", source, remote + target]
        )

    def pull(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make `target` here like `source` on the host; `progress` is told the percentage."""
        options, remote = self.host.rsync_remote()
        options = [*options, *_excluded(exclude), "--safe-links", "--no-devices", "--no-specials"]
        self._run([*options, "--", remote + source, target], progress)

    def _run(self, arguments: Sequence[str], progress: Callable[[int], None] | None = None) -> None:
        """Raises ToolMissing without rsync, HostError with rsync's own last words otherwise."""
        name = self.host.node.name
        argv = [
            "rsync",
            "--archive",
            "--partial",
            "--protect-args",
            "--info=progress2",
            "--timeout=30",
            *arguments,
        ]
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise ToolMissing(
                "rsync is not installed on this machine; install it: sudo apt install rsync"
            ) from error
        with process:
            for percent in self._percentages(process):
                if progress:
                    progress(percent)
            complaint = process.stderr.read().decode("utf-8", "replace") if process.stderr else ""
        if process.returncode == 127 or "rsync: command not found" in complaint:
            raise NodeFault(name, "rsync is not installed there", "install it: sudo apt install rsync")
        if process.returncode != 0:
            words = (complaint.strip().splitlines() or [f"rsync ended with {process.returncode}"])[0]
            kind = HostUnreachable if process.returncode in {10, 12, 30, 35, 255} else NodeFault
            raise kind(
                name, f"{words} (rsync exit code {process.returncode})", "what arrived stays; try again"
            )

    def _percentages(self, process: subprocess.Popen[bytes]) -> Iterator[int]:
        assert process.stdout is not None  # noqa: S101
        while chunk := os.read(process.stdout.fileno(), READ_BYTES):
            if found := self.PERCENT.findall(chunk):
                yield int(found[-1])


def _excluded(patterns: Sequence[str]) -> list[str]:
    return [f"--exclude={pattern}" for pattern in patterns]
