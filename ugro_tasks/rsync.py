"""Files between this machine and a host, by the real rsync program."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
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
        """Make `target` on the host like `source` here; a leading ~/ in it is the home there."""
        options, remote = self.host.rsync_remote()
        options = [*options, *_excluded(exclude), *(["--delete"] if delete else [])]
        self._run([*options, "--", source, _at(remote, target)])

    def pull(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        only: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make `target` here like `source` on the host; a leading ~/ in it is the home there.

        `only` names what is taken of the topmost folder; `progress` is told the percentage.
        """
        options, remote = self.host.rsync_remote()
        chosen = [*(f"--include={name}" for name in only), "--exclude=/*"] if only else _excluded(exclude)
        options = [*options, *chosen, "--safe-links", "--no-devices", "--no-specials"]
        self._run([*options, "--", _at(remote, source), target], progress)

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
        # A file: a line about each of thousands of files would fill a pipe that nobody reads meanwhile.
        with tempfile.TemporaryFile() as complaints:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
                )
            except FileNotFoundError as error:
                raise ToolMissing(
                    "rsync is not installed on this machine; install it: sudo apt install rsync"
                ) from error
            with process:
                for percent in self._percentages(process):
                    if progress:
                        progress(percent)
            complaints.seek(0)
            complaint = complaints.read(READ_BYTES).decode("utf-8", "replace")
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


def _at(remote: str, path: str) -> str:
    # A login begins in the remote home; a local rsync has no such place.
    return remote + path.removeprefix("~/") if remote else os.path.expanduser(path)  # noqa: PTH111


def _excluded(patterns: Sequence[str]) -> list[str]:
    return [f"--exclude={pattern}" for pattern in patterns]
