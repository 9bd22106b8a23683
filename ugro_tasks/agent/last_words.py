"""What the end of a rank's log says: its own last lines, its exception, and torchrun's report behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from ..files import File

TAIL_BYTES = 1 << 16
# A message may have many lines; a script that goes on after an exception that it has caught says more than that.
MESSAGE_LINES = 40
# With the first of these, torchrun begins its report about a failure. It stands in the log behind the script's words.
REPORT = re.compile(
    r"^[EW]\d{4} [\d:.]+ .*torch/distributed/elastic/(multiprocessing/api|agent).*|^=+\n.* FAILED$",
    re.M,
)
# c10d says this at each start on a host that cannot resolve its own name.
NOISE = re.compile(
    r"^\[W.* \[c10d\] The hostname of the client socket cannot be retrieved.*\n?", re.M
)
# Set by torch before each line of an exception that nobody catches.
RANK_PREFIX = re.compile(r"^\[rank\d+\]:[ ]?")
# As the module traceback prints it; a data loader's worker has another one in its message.
HEADER = "Traceback (most recent call last):"
GROUP_HEADER = "Exception Group Traceback (most recent call last):"
# Of the lines of an exception group, behind bars.
GROUPED = re.compile(r"^\s*[|+]")
GROUP_LINE = re.compile(r"^\s*\| (\S.*)")
# What is printed without a header: a main script that cannot be parsed, and a crash told by faulthandler.
BARE = re.compile(r"^(?:(?:Syntax|Indentation|Tab)Error: |Fatal Python error: ).*")


class LastWords(Struct, frozen=True):
    """The end of a rank's log."""

    lines: tuple[str, ...] = ()
    """The script's own last lines."""
    exception: str | None = None
    """The line with the exception that ended it, if it is there."""
    report: str = ""
    """What torchrun said of the failure."""


def last_words(log: File, begin: int = 0, end: int | None = None) -> LastWords:
    """Read the last words between two offsets of a log: where an attempt began, and where an order to stop came."""
    try:
        with log.open() as file:
            size = file.seek(0, 2)
            last = size if end is None else min(end, size)
            first = max(begin, last - TAIL_BYTES, 0)
            file.seek(first)
            raw = file.read(max(0, last - first))
    except OSError:
        return LastWords()
    text = NOISE.sub("", raw.decode("utf-8", "replace"))
    report = REPORT.search(text)
    end_of_own = report.start() if report else len(text)
    lines = [line for line in text[:end_of_own].split("\n") if line.strip()]
    return LastWords(tuple(lines), exception_in(lines), text[end_of_own:])


def exception_in(lines: Sequence[str]) -> str | None:
    """Find the line that names the last exception, as Python prints it: class and message.

    Of chained exceptions it is the last one; None if there is none, or if much was said since.
    """
    own = [RANK_PREFIX.sub("", line) for line in lines]
    found = _after_header(own)
    if found is None:
        found = max((i for i, line in enumerate(own) if BARE.match(line)), default=None)
    if found is None or len(own) - found > MESSAGE_LINES:
        return None
    grouped = GROUP_LINE.match(own[found])
    return grouped[1] if grouped else own[found]


def _after_header(lines: Sequence[str]) -> int | None:
    """Return the place of the line behind the frames of the last traceback."""
    headers = [i for i, line in enumerate(lines) if line.rstrip().endswith(HEADER)]
    if not headers:
        return None
    last = headers[-1]
    if GROUPED.match(lines[last]):
        groups = [i for i in headers if lines[i].rstrip().endswith(GROUP_HEADER)]
        last = groups[-1] if groups else last
        rest = range(last + 1, len(lines))
        return next((i for i in rest if GROUP_LINE.match(lines[i])), None)
    rest = range(last + 1, len(lines))
    return next((i for i in rest if not lines[i][:1].isspace()), None)
