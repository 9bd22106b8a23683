"""Files between this machine and a host, by the real rsync program. Where none serves, see `transfer.py`."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ..errors import HostUnreachable, NodeFault
from ..files import leave_room
from ..node.tree import PARTIAL_FOLDER
from .host import READ_BYTES, Host
from .stray_links import remove_stray_links

# Without a byte from the other side: a disk that is written to at full speed stalls for long. That the connection is
# dead, ssh notices after 15 s (`openssh_options`).
SILENCE_SECONDS = 120
CHECKSUM_SECONDS = 600  # the same where both sides read whole files first
# rsync's exit code where a file went away before its turn came, as it does in the folder of a job that runs.
VANISHED = 24
# What a pull takes: files, folders, and links that stay inside; nothing of whose they are there, and no set-user-id.
REGULAR = ("--safe-links", "--no-devices", "--no-specials", "--no-owner", "--no-group", "--chmod=ug-s,o-t")
LOOK_SECONDS = 1.0  # how often to see that it does not overdo it
COMPLAINTS_BYTES = 16 << 20
OLDEST_VERSION = (3, 1)  # the first with --info
VERSION = re.compile(r"^rsync +version v?(\d+)\.(\d+)", re.MULTILINE)
VERSION_SECONDS = 10.0
# Exit codes: ssh did not get there, or the connection broke; and neither side could work with the other.
CONNECTION_LOST = {10, 12, 30, 35, 255}
NOT_STARTED = {1, 2, 4, 5, 14, 126, 127}
NO_ROOM = re.compile(r'"([^"]*)"[^"]*: (?:No space left on device|Disk quota exceeded) \((\d{1,3})\)')
TO_COME = re.compile(rb"Total transferred file size: ([\d,.]+) bytes")


class RsyncUnusable(Exception):
    """One of the two sides has no rsync that serves; nothing has travelled."""


def rsync_fault_here() -> str | None:
    """Why this machine's own rsync does not serve: it is missing, too old, or another program; None where it does."""
    try:
        done = subprocess.run(
            ["rsync", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    said = done.stdout.decode("utf-8", "replace")
    found = VERSION.search(said)
    if "openrsync" in said or not found:
        return "another program of that name" if not found else "openrsync"
    version = (int(found[1]), int(found[2]))
    return None if version >= OLDEST_VERSION else f"too old ({version[0]}.{version[1]})"


class Rsync:
    """The real rsync program between this machine and a host."""

    PERCENT: ClassVar = re.compile(rb"(\d+)%")

    def __init__(self, host: Host) -> None:
        self.host = host

    def push(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        delete: bool = False,
        files: Sequence[str] | None = None,
        link_from: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make `target` on the host like `source` here; a leading ~/ in it is the home there.

        `files` names what is taken of `source`. What lies the same in one of the folders `link_from`, named as seen
        from `target`, does not travel again. `progress` is told the percentage.
        """
        options, remote = self._remote()
        options = [*options, *_excluded(exclude), *(["--delete"] if delete else [])]
        options += [f"--link-dest={folder}" for folder in link_from]
        self._run([*options, "--", source, _at(remote, target)], progress, files=files)

    def pull(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        only: Sequence[str] = (),
        files: Sequence[str] | None = None,
        gently: bool = False,
        verify: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make `target` here like `source` on the host; a leading ~/ in it is the home there.

        `only` names what is taken of the topmost folder, `files` what is taken of the whole tree. `gently` leaves the
        host's processors to others. `verify` compares contents, not only size and time. `progress` is told the
        percentage. What vanishes there meanwhile is passed over. Raises OSError where there is no room here.
        """
        options, remote = self._remote()
        if gently and remote:
            options = [*options, "--rsync-path=nice rsync"]
        chosen = [*(f"--include={name}" for name in only), "--exclude=/*"] if only else _excluded(exclude)
        options = [*options, *chosen, *REGULAR]
        if verify:
            options += ["--checksum", f"--timeout={CHECKSUM_SECONDS}"]
        try:
            self._run(
                [*options, "--", _at(remote, source), target], progress, files, pulling=True, into=target
            )
        finally:
            remove_stray_links(target)

    def bytes_to_come(self, source: str, target: str, *, exclude: Sequence[str] = ()) -> int | None:
        """How much a pull would bring, None where it does not say; raises HostError."""
        options, remote = self._remote()
        options = [*options, "--dry-run", "--stats", *REGULAR, *_excluded(exclude)]
        said = self._run([*options, "--", _at(remote, source), target], pulling=True)
        found = TO_COME.search(said)
        return int(re.sub(rb"\D", b"", found[1])) if found else None

    def _remote(self) -> tuple[list[str], str]:
        return self.host.rsync_remote() or ([], "")

    def _run(
        self,
        arguments: Sequence[str],
        progress: Callable[[int], None] | None = None,
        files: Sequence[str] | None = None,
        *,
        pulling: bool = False,
        into: str | None = None,
    ) -> bytes:
        """What it printed last. Raises HostError with rsync's own last words.

        `into` is the folder here that a pull fills; where that takes the last room, it is ended, with an OSError.
        """
        name, said = self.host.node.name, b""
        argv = ["rsync", "--archive", f"--partial-dir={PARTIAL_FOLDER}", "--protect-args", "--info=progress2"]
        argv += [f"--timeout={SILENCE_SECONDS}"]
        if files is not None:
            argv += ["--from0", "--files-from=-"]
        # Files: a line about each of thousands of files would fill a pipe that nobody reads or writes meanwhile.
        with tempfile.TemporaryFile() as complaints, tempfile.TemporaryFile() as chosen:
            chosen.write("\0".join(files or ()).encode())
            chosen.seek(0)
            try:
                process = subprocess.Popen(
                    [*argv, *arguments], stdin=chosen, stdout=subprocess.PIPE, stderr=complaints,
                    env={**os.environ, "LC_ALL": "C"},  # its words are read here
                )  # fmt: skip
            except FileNotFoundError as error:
                raise RsyncUnusable from error
            with process:
                assert process.stdout is not None  # noqa: S101
                try:
                    for chunk in _pieces(process, process.stdout.fileno()):
                        _refuse_excess(name, complaints.fileno(), into)
                        said = (said + chunk)[-READ_BYTES:]
                        if progress and (found := self.PERCENT.findall(chunk)):
                            progress(int(found[-1]))
                except BaseException:
                    process.kill()
                    raise
            complaints.seek(0)
            complaint = complaints.read(READ_BYTES).decode("utf-8", "replace")
        if pulling and (full := NO_ROOM.search(complaint)):
            raise OSError(int(full[2]), os.strerror(int(full[2])), full[1])
        if process.returncode and not (pulling and process.returncode == VANISHED):
            words = (complaint.strip().splitlines() or [f"rsync ended with {process.returncode}"])[0][:500]
            if process.returncode in NOT_STARTED:
                raise RsyncUnusable(words)
            kind = HostUnreachable if process.returncode in CONNECTION_LOST else NodeFault
            raise kind(
                name, f"{words} (rsync exit code {process.returncode})", "what arrived stays; try again"
            )
        return said


def _pieces(process: subprocess.Popen[bytes], stdout: int) -> Iterator[bytes]:
    """What it prints, and b"" now and then while it prints nothing, until it has ended."""
    chunk = b"-"
    while chunk:
        if select.select([stdout], [], [], LOOK_SECONDS)[0]:
            chunk = os.read(stdout, READ_BYTES)
            yield chunk
        else:
            yield b""
    while process.poll() is None:
        yield b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)


def _refuse_excess(name: str, complaints: int, into: str | None) -> None:
    """Raise where the other side says more than anybody reads, or takes the last room here."""
    if os.fstat(complaints).st_size > COMPLAINTS_BYTES:
        raise NodeFault(name, "its rsync complains without end")
    if into:
        leave_room(Path(into))


def _at(remote: str, path: str) -> str:
    # A login begins in the remote home; a local rsync has no such place.
    return remote + path.removeprefix("~/") if remote else os.path.expanduser(path)  # noqa: PTH111


def _excluded(patterns: Sequence[str]) -> list[str]:
    return [f"--exclude={pattern}" for pattern in patterns]
