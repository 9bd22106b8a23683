"""File transfer by the rsync program; `transfer.py` chooses between it and `copy.py`."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ..errors import HostUnreachable, NodeFault
from ..files import leave_room
from ..node.tree import PARTIAL_FOLDER
from .host import ARRIVED_STAYS, LAST_WORDS_CHARACTERS, READ_BYTES, Host
from .received import remove_strays

# Without a byte from the other side: a disk under full load stalls for long. A dead connection is
# noticed by ssh after 15 s (`openssh_options`).
SILENCE_SECONDS = 120
# The same when both sides read whole files first.
CHECKSUM_SECONDS = 600
# rsync's exit code for files vanishing before their turn, as in the folder of a running job.
VANISHED = 24
# The same for files that could not be read, among others; all else has come.
PARTIAL = 23
# A pull takes files, folders and links inside the tree, without owners and set-user-id.
PULL_OPTIONS = (
    "--safe-links",
    "--no-devices",
    "--no-specials",
    "--no-owner",
    "--no-group",
    "--chmod=ug-s,o-t",
)
# Between two checks of the limits.
LOOK_SECONDS = 1.0
# Of rsync's messages.
COMPLAINTS_BYTES = 16 << 20
# The first version with --info.
OLDEST_VERSION = (3, 1)
VERSION = re.compile(r"^rsync +version v?(\d+)\.(\d+)", re.MULTILINE)
VERSION_SECONDS = 10.0
# Exit codes: ssh failed or the connection broke; the two sides could not work together, or one of them
# could not enter its folder (as rsync 3.5 in one whose path leads elsewhere since another disk is mounted there).
CONNECTION_LOST = {10, 12, 30, 35, 255}
NOT_STARTED = {1, 2, 3, 4, 5, 14, 126, 127}
# Of the disk here, in a pull.
NOT_STORED = re.compile(
    r'"([^"]*)"[^"]*: (?:No space left on device|Disk quota exceeded|Read-only file system) \((\d{1,3})\)'
)
TRANSFER_SIZE = re.compile(rb"Total transferred file size: ([\d,.]+) bytes")


class RsyncUnusable(Exception):
    """rsync is missing or unusable on one of the sides; nothing was transferred."""


def rsync_fault_here() -> str | None:
    """Return the fault of this machine's rsync: missing, too old, or another program; else None."""
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
    if not found:
        return "another program of that name"
    if "openrsync" in said:
        return "openrsync"
    version = (int(found[1]), int(found[2]))
    if version < OLDEST_VERSION:
        return f"too old ({found[1]}.{found[2]})"
    return None


class Rsync:
    """The rsync program between this machine and a host."""

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

        `files` are the paths to take from `source`. Unchanged files in one of the folders
        `link_from`, relative to `target`, are linked instead of sent. `progress` receives the
        percentage.
        """
        options, remote = self._remote()
        options += _excluded(exclude)
        options += [f"--link-dest={folder}" for folder in link_from]
        if delete:
            options.append("--delete")
        arguments = [*options, "--", source, _at(remote, target)]
        self._run(arguments, progress, files=files)

    def pull(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        never_links: Sequence[str] = (),
        only: Sequence[str] = (),
        files: Sequence[str] | None = None,
        follow_links: bool = False,
        only_new: bool = False,
        partly: bool = False,
        gently: bool = False,
        verify: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make `target` here like `source` on the host; a leading ~/ in it is the home there.

        `never_links` are names in the top folder of folders, left out if they are anything else.
        `only` are names in the top folder, `files` paths in the whole tree. `follow_links` takes the
        content of links, instead of links leading to a path in the folder. `only_new` leaves files
        alone of which there is one here. With `partly` it is no error that some files could not
        come. `gently` lowers the priority on the host. `verify` compares contents, not only size
        and time. `progress` receives the percentage. Files vanishing meanwhile are skipped.

        Raises HostError, and OSError if the disk here is full.
        """
        options, remote = self._remote()
        if gently and remote:
            options.append("--rsync-path=nice rsync")
        for name in never_links:
            # The slash at the end is for folders only.
            options += [f"--include=/{name}/", f"--exclude=/{name}"]
        if only:
            options += [f"--include={name}" for name in only]
            options.append("--exclude=/*")
        else:
            options += _excluded(exclude)
        options += PULL_OPTIONS
        if follow_links:
            options += ["--copy-links", "--no-links"]
        if only_new:
            options.append("--ignore-existing")
        if verify:
            options += ["--checksum", f"--timeout={CHECKSUM_SECONDS}"]
        arguments = [*options, "--", _at(remote, source), target]
        try:
            may_end_with = {VANISHED, PARTIAL} if partly else {VANISHED}
            self._run(
                arguments, progress, files, may_end_with=may_end_with, into=target
            )
        finally:
            remove_strays(target)

    def bytes_to_come(
        self, source: str, target: str, *, exclude: Sequence[str] = ()
    ) -> int | None:
        """Return the bytes a pull would transfer, None if rsync does not tell; raises HostError."""
        options, remote = self._remote()
        options += ["--dry-run", "--stats", *PULL_OPTIONS, *_excluded(exclude)]
        arguments = [*options, "--", _at(remote, source), target]
        said = self._run(arguments, may_end_with={VANISHED})
        found = TRANSFER_SIZE.search(said)
        if not found:
            return None
        digits = re.sub(rb"\D", b"", found[1])
        return int(digits)

    def reach(self) -> None:
        """Connect, and transfer nothing; raises HostError and RsyncUnusable."""
        options, remote = self._remote()
        arguments = [*options, "--dry-run", "--", "/", _at(remote, "/")]
        self._run(arguments, files=())

    def _remote(self) -> tuple[list[str], str]:
        """Return a new list of options, and the prefix of a path on the host."""
        options, before = self.host.rsync_remote() or ([], "")
        return [*options], before

    def _run(
        self,
        arguments: Sequence[str],
        progress: Callable[[int], None] | None = None,
        files: Sequence[str] | None = None,
        *,
        may_end_with: Collection[int] = (),
        into: str | None = None,
    ) -> bytes:
        """Run rsync and return the end of its output. Raises HostError with rsync's own message.

        A pull may end with some exit codes besides 0. `into` is the folder filled by it; rsync is
        killed, with an OSError, when its disk gets full.
        """
        argv = [
            "rsync",
            "--archive",
            f"--partial-dir={PARTIAL_FOLDER}",
            "--protect-args",
            "--info=progress2",
            f"--timeout={SILENCE_SECONDS}",
        ]
        if files is not None:
            argv += ["--from0", "--files-from=-"]
        # Files, not pipes: thousands of lines would fill a pipe without a reader.
        with tempfile.TemporaryFile() as complaints, tempfile.TemporaryFile() as chosen:
            chosen.write("\0".join(files or ()).encode())
            chosen.seek(0)
            try:
                process = subprocess.Popen(
                    [*argv, *arguments],
                    stdin=chosen,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    # Its messages are parsed, so they must be in English.
                    env={**os.environ, "LC_ALL": "C"},
                    # A process group of its own, to be killed as a whole.
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise RsyncUnusable from error
            with process:
                try:
                    said = self._watch(process, complaints.fileno(), progress, into)
                except BaseException:
                    _kill(process)
                    raise
            complaints.seek(0)
            complaint = complaints.read(READ_BYTES).decode("utf-8", "replace")
        self._raise_for(process.returncode, complaint, may_end_with)
        return said

    def _watch(
        self,
        process: subprocess.Popen[bytes],
        complaints: int,
        progress: Callable[[int], None] | None,
        into: str | None,
    ) -> bytes:
        """Report progress and check limits until rsync ends; return the end of its output."""
        assert process.stdout is not None  # noqa: S101
        said = b""
        for chunk in _output_of(process, process.stdout.fileno()):
            _refuse_excess(self.host.node.name, complaints, into)
            said = (said + chunk)[-READ_BYTES:]
            percents = self.PERCENT.findall(chunk)
            if progress and percents:
                progress(int(percents[-1]))
        return said

    def _raise_for(
        self, code: int, complaint: str, may_end_with: Collection[int]
    ) -> None:
        """Raise the error for an exit code and the messages before it."""
        refused = NOT_STORED.search(complaint)
        if may_end_with and refused:
            number = int(refused[2])
            raise OSError(number, os.strerror(number), refused[1])
        if code == 0 or code in may_end_with:
            return
        lines = complaint.strip().splitlines()
        words = f"rsync ended with {code}"
        if lines:
            words = lines[0][:LAST_WORDS_CHARACTERS]
        if code in NOT_STARTED:
            raise RsyncUnusable(words)
        kind = HostUnreachable if code in CONNECTION_LOST else NodeFault
        what = f"{words} (rsync exit code {code})"
        raise kind(self.host.node.name, what, ARRIVED_STAYS)


def _output_of(process: subprocess.Popen[bytes], stdout: int) -> Iterator[bytes]:
    """Yield the output as it appears, and b"" during silence, until the process has ended."""
    has_ended = False
    while not has_ended:
        readable, _, _ = select.select([stdout], [], [], LOOK_SECONDS)
        if readable:
            chunk = os.read(stdout, READ_BYTES)
            has_ended = not chunk
            yield chunk
        else:
            yield b""
    while process.poll() is None:
        yield b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill rsync, the process that it receives files in, and its ssh, and wait until they are gone.

    A receiver that outlives the others stores what it has, and makes folders for that.
    """
    assert process.stdout is not None  # noqa: S101
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # All of them hold its other end.
    while process.stdout.read(READ_BYTES):
        pass


def _refuse_excess(name: str, complaints: int, into: str | None) -> None:
    """Raise if rsync's messages grow without end, or if the disk here gets full."""
    if os.fstat(complaints).st_size > COMPLAINTS_BYTES:
        raise NodeFault(name, "its rsync complains without end")
    if into:
        folder = Path(into)
        # rsync makes the folder itself, when the other side has answered.
        leave_room(folder if folder.exists() else folder.parent)


def _at(remote: str, path: str) -> str:
    """Return a path as rsync's argument."""
    # A login starts in the remote home; a local rsync does not.
    if remote:
        return remote + path.removeprefix("~/")
    return os.path.expanduser(path)  # noqa: PTH111


def _excluded(patterns: Sequence[str]) -> list[str]:
    return [f"--exclude={pattern}" for pattern in patterns]
