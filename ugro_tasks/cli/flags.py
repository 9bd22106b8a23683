"""Help texts and value parsers that several commands share."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UsageError

CLUSTER_HELP = (
    "cluster: `local`, a name, or a path (default: $UGRO_CLUSTER, else ./cluster.yaml)"
)
NODES_HELP = "only these nodes, by name: a,b"
JSON_HELP = "print JSON for machines"
JOB_HELP = "job: a name (the newest of that name) or a whole job id"


def listed(values: str | Iterable[str] | None) -> list[str]:
    """Return the items of a list given with commas, as several words, or as a list from Python.

    Empty items are kept for the command to refuse: "," must not mean "all".
    """
    words = [values] if isinstance(values, str) else list(values or [])
    return [item.strip() for word in words for item in word.split(",")]


def whole(text: str | int | None, flag: str, least: int = 0) -> int | None:
    """Return a whole number from a flag, None if it is absent; raise UsageError for other text."""
    if text is None:
        return None
    try:
        # By way of str: int() would cut 3.5 epochs, given from Python, to 3.
        value = int(str(text))
    except (ValueError, OverflowError):
        value = least - 1
    if value < least:
        raise UsageError(f"{flag} {text}: use a whole number from {least} on")
    return value


AGE_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def age(text: str | None, flag: str) -> float:
    """Return seconds from a flag like 12h, 30d or 4w, 0.0 if it is absent; raise UsageError."""
    if text is None:
        return 0.0
    count = text[:-1]
    unit = text[-1:]
    is_whole = count.isascii() and count.isdecimal()
    if unit not in AGE_SECONDS or not is_whole:
        raise UsageError(
            f"{flag} {text}: use hours, days or weeks, e.g. 12h, 30d or 4w"
        )
    return float(count) * AGE_SECONDS[unit]
