"""What a value of a cluster file, a flag or a setting must be, as plain checks without pydantic.

Most commands read no form, and pydantic is a fifth of their start. The types of a form's keys,
which pydantic checks, are in `fields.py`.
"""

from __future__ import annotations

import re
from functools import cache

# What can play tricks in a terminal: control characters, and those that turn the direction of the text around.
UNSHOWN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
NODE_NAME_MAX = 63
RANK_MAX = 9999
PORT_MAX = 65535
# Far beyond any of them, and small enough to be computed with.
NUMBER_MAX = 1_000_000_000
SECONDS_MAX = 1_000_000  # 11 days; the operating system cannot wait for any time at all
BATCH_SIZE_DIGITS = 6


def shown(value: object) -> str:
    """Return a value from a file as a message can hold it: quoted, escaped, and never long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[0]}"


_compiled = cache(re.compile)


def fully_matched(value: object, pattern: str, rule: str) -> str:
    """Return the text if the whole of it matches; the ValueError reads "<the text> <rule>"."""
    if not isinstance(value, str) or not _compiled(pattern).fullmatch(value):
        raise ValueError(f"{shown(value)} {rule}")
    return value


def checked_line(value: str) -> str:
    """Refuse text that can play tricks in a terminal, a command line or a file; ValueError."""
    return fully_matched(value, rf"[^{UNSHOWN}]+", "must be one line of plain text")


def checked_node_name(value: object) -> str:
    """Refuse what cannot be a node's name; ValueError."""
    return fully_matched(
        value,
        rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_NAME_MAX - 1}}}",
        "is not a node name: use letters, digits, '.', '_' and '-', a letter or digit first",
    )


def checked_batch_size(value: object) -> int | str | dict[str, int]:
    """Return `auto`, a whole number, or one for each node; else ValueError.

    A number may be written as text.
    """
    if isinstance(value, dict):
        return {
            checked_node_name(name): _node_size(name, size)
            for name, size in value.items()
        }
    if value == "auto":
        return "auto"
    number = _size(value)
    if number is None:
        said = "a list" if isinstance(value, list) else shown(value)
        raise ValueError(
            f"{said} is no batch size; write a whole number from 1 on, auto, "
            "or a number for each node: {gpu-master: 3, gpu1: 2}"
        )
    return number


def _size(value: object) -> int | None:
    if not isinstance(value, (int, str)):
        return None
    text = str(value)
    if not text.isdecimal() or not 1 <= len(text.lstrip("0")) <= BATCH_SIZE_DIGITS:
        return None
    return int(text)


def _node_size(name: object, value: object) -> int:
    number = _size(value)
    if number is None:
        raise ValueError(
            f"{name}: {shown(value)} is no batch size; write a whole number from 1 on"
        )
    return number
