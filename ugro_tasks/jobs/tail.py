"""New lines of a growing file, and the last lines of a file."""

from __future__ import annotations

from ..files import File

READ_BYTES = 1 << 20
LAST_LINES_BYTES = 64 << 20  # `last_lines` reads no more
LINE_BYTES = 1 << 16  # a longer line is split


class Tail:
    """The whole lines added to a growing file."""

    def __init__(self, file: File, offset: int = 0) -> None:
        self.file = file
        self.offset = offset
        self._rest = b""

    def read(self, *, rest_too: bool = False) -> list[str]:
        """Return the lines since the last call, with `rest_too` also an unfinished one."""
        try:
            with self.file.open() as opened:
                opened.seek(self.offset)
                new = opened.read(READ_BYTES)
        except FileNotFoundError:
            return []
        self.offset += len(new)
        lines, newline, self._rest = (self._rest + new).rpartition(b"\n")
        too_long = len(self._rest) > LINE_BYTES
        all_read = len(new) < READ_BYTES
        if self._rest and (too_long or (rest_too and all_read)):
            lines += newline + self._rest
            newline = b"\n"
            self._rest = b""
        if not newline:
            return []
        return lines.decode("utf-8", "replace").split("\n")


def end_of_lines(file: File) -> int:
    """Return the offset after the last whole line; the size if no line end is within LINE_BYTES."""
    with file.open() as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - LINE_BYTES))
        tail = opened.read(LINE_BYTES)
    if b"\n" not in tail and size > LINE_BYTES:
        return size
    return size - len(tail) + tail.rfind(b"\n") + 1


def last_lines(file: File, count: int, end: int | None = None) -> list[str]:
    """Return the last lines of a file before the offset `end`, by default its size."""
    with file.open() as opened:
        position = opened.seek(0, 2) if end is None else end
        tail = b""
        while position > 0 and len(tail) < LAST_LINES_BYTES:
            if tail.count(b"\n") > count:
                break
            step = min(1 << 16, position)
            position -= step
            opened.seek(position)
            tail = opened.read(step) + tail
    if not tail or not count:
        return []
    lines = tail.decode("utf-8", "replace").removesuffix("\n").split("\n")
    return lines[-count:]
