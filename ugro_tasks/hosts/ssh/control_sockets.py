"""The sockets of our masters, and the end of both with this process, however it ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

from .openssh_client import OF_THE_MASTER, listens

# OpenSSH binds the socket under a longer name first; a path of macOS has 103 bytes.
PATH_BYTES = 103 - len(".0123456789abcdef")
PREFIX_BYTES = 3
NAME_BYTES = 4
# Its stdin is a pipe of this process. At the end of that, it ends the masters whose sockets have the
# prefix $0, with all that goes on over them. The last one removes the folder $1.
WATCH = f"""
read -r end
for socket in "$0"?*; do
    [ -S "$socket" ] || continue
    escaped=$(printf %s "$socket" | sed s/%/%%/g)
    ssh -F none -S "$escaped" -O exit {OF_THE_MASTER} >/dev/null 2>&1
    rm -f "$socket"
done
rm -f "$0"
rmdir "$1" 2>/dev/null
"""


class ControlSockets:
    """Paths for sockets in one folder, of this process."""

    def __init__(self) -> None:
        """Choose the folder and begin to watch; raises OSError."""
        self._folder = _folder()
        # A file with it is in the folder until then, so that nobody else removes that.
        self._prefix = secrets.token_hex(PREFIX_BYTES)
        self._keep()
        _sweep(self._folder)
        self._watcher = subprocess.Popen(
            ["sh", "-c", WATCH, str(self._folder / self._prefix), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self._end)

    def new(self) -> Path:
        """Return a path for a socket; raises OSError."""
        # A cleaner of temporary files may have been there.
        self._keep()
        return self._folder / f"{self._prefix}{secrets.token_hex(NAME_BYTES)}"

    def _end(self) -> None:
        """Clean up at once where no master is left; the watcher does the rest."""
        with contextlib.suppress(OSError):
            keeper = self._folder / self._prefix
            if [*self._folder.glob(f"{self._prefix}*")] == [keeper]:
                keeper.unlink()
                self._folder.rmdir()

    def _keep(self) -> None:
        """Make the file that keeps the folder; raises OSError."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / self._prefix).touch(mode=0o600)
                return
            # The last one to leave was just then here.
            self._folder.mkdir(mode=0o700, exist_ok=True)


_BY_PARENT: dict[str, ControlSockets] = {}
_BEGINNING = threading.Lock()


def control_socket() -> Path:
    """Return a new path for a socket, in a folder of the user alone; raises OSError."""
    with _BEGINNING:
        parent = tempfile.gettempdir()
        if parent not in _BY_PARENT:
            _BY_PARENT[parent] = ControlSockets()
    return _BY_PARENT[parent].new()


def _folder() -> Path:
    """Return a folder of the user alone; raises OSError."""
    name = f"ugro-{os.getuid()}"
    parent = Path(tempfile.gettempdir())
    longest = parent / f"{name}-01234567" / ("0" * 2 * (PREFIX_BYTES + NAME_BYTES))
    # OpenSSH replaces ${variables} in it.
    if len(os.fsencode(longest)) > PATH_BYTES or "${" in str(parent):
        parent = Path("/tmp")  # noqa: S108  (checked below)
    folder = parent / name
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if is_mine and not found.st_mode & 0o077:
        return folder
    # Somebody else may have made it.
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def _sweep(folder: Path) -> None:
    """Remove sockets where nobody listens, as after a power cut."""
    for file in folder.iterdir():
        # OpenSSH puts a socket under its name once it listens; before, there is a dot in it.
        if file.is_socket() and "." not in file.name and not listens(file):
            file.unlink(missing_ok=True)
