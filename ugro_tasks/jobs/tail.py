"""New lines of a growing file, and the last lines of a file."""

from __future__ import annotations

from pathlib import Path

READ_BYTES = 1 << 20
LINE_BYTES = 1 << 16  # a longer line is split


class Tail:
    """The whole lines added to a growing file."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset, self._rest = path, offset, b""

    def read(self, *, rest_too: bool = False) -> list[str]:
        """Return the lines since the last call, with `rest_too` also an unfinished one."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                new = file.read(READ_BYTES)
        except FileNotFoundError:
            return []
        self.offset += len(new)
        lines, newline, self._rest = (self._rest + new).rpartition(b"\n")
        if self._rest and (
            (rest_too and len(new) < READ_BYTES) or len(self._rest) > LINE_BYTES
        ):
            lines, newline, self._rest = lines + newline + self._rest, b"\n", b""
        return lines.decode("utf-8", "replace").split("\n") if newline else []


def end_of_lines(path: Path) -> int:
    """Return the offset after the last whole line; the size if no line end is within LINE_BYTES."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LINE_BYTES))
        tail = file.read(LINE_BYTES)
    return (
        size
        if b"\n" not in tail and size > LINE_BYTES
        else size - len(tail) + tail.rfind(b"\n") + 1
    )


def last_lines(path: Path, count: int, end: int | None = None) -> list[str]:
    """Return the last lines of a file before the offset `end`, by default its size."""
    with path.open("rb") as file:
        position = file.seek(0, 2) if end is None else end
        tail = b""
        while position > 0 and tail.count(b"\n") <= count and len(tail) < 64 << 20:
            step = min(1 << 16, position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
    lines = tail.decode("utf-8", "replace").removesuffix("\n").split("\n")
    return lines[-count:] if tail and count else []
