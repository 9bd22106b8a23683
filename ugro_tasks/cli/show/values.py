"""Times, sizes and numbers as text for a user."""

from __future__ import annotations

from datetime import datetime

FAR_SECONDS = 1e10  # beyond it, no calendar of Python goes
UNKNOWN = "-"
IMPOSSIBLE = "?"  # a clock that was not set, or a damaged record
BYTE_UNITS = ("B", "KiB", "MiB", "GiB")


def duration(seconds: float | None) -> str:
    """Write a duration: 3.0 s, 2:05, 1:02:05; a dash for None."""
    if seconds is None:
        return UNKNOWN
    if abs(seconds) > FAR_SECONDS:
        return IMPOSSIBLE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(max(60, int(seconds)), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def clock(at: float | None) -> str:
    """Write the time of day, with the date unless it is today; a dash for None."""
    if at is None:
        return UNKNOWN
    if abs(at) > FAR_SECONDS:
        return IMPOSSIBLE
    moment = datetime.fromtimestamp(at).astimezone()
    today = datetime.now().astimezone().date()
    if moment.date() == today:
        return f"{moment:%H:%M:%S}"
    return f"{moment:%Y-%m-%d %H:%M}"


def byte_size(size: int) -> str:
    """Write a number of bytes: 512 B, 1.5 KiB, 20.0 MiB, 4000.0 GiB."""
    if size < 1024:
        return f"{size} B"
    count = size / 1024
    for unit in BYTE_UNITS[1:-1]:
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {BYTE_UNITS[-1]}"


def short(value: object) -> str:
    """Write a metric with at most six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def number(value: float | None) -> str:
    """Write a number as 5,230 or 3.1; a dash for None."""
    if value is None:
        return UNKNOWN
    if abs(value) >= 10 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}"


def mean_and_max(mean: float | None, most: float | None, unit: str) -> str:
    """Write both with their unit: 71 %, max 99 %; a dash if the mean is None."""
    if mean is None:
        return UNKNOWN
    return f"{number(mean)} {unit}, max {number(most)} {unit}"


def gib(mib: float) -> str:
    """Write a number of MiB in GiB, without the unit."""
    return f"{mib / 1024:.1f}"
