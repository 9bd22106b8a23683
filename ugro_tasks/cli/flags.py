"""Help texts and value parsers that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
    return int(_number(text, flag, int, f"a whole number from {least} on", least))


def decimal(text: str | float | None, flag: str) -> float | None:
    """Return a number from a flag, None if it is absent; raise UsageError for other text."""
    if text is None:
        return None
    return float(_number(text, flag, float, "a number, e.g. 2e-4", None))


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


def _number(text: Any, flag: str, kind: type[Any], rule: str, least: int | None) -> Any:
    try:
        # By way of str: int() would cut 3.5 epochs, given from Python, to 3.
        value = kind(str(text))
    except (TypeError, ValueError, OverflowError):
        value = None
    if value is None or (least is not None and value < least):
        raise UsageError(f"{flag} {text}: use {rule}")
    return value
