"""What a value of a cluster file, a flag or a setting must be, as plain checks without pydantic.

Most commands read no form, and pydantic is a fifth of their start. The types of a form's keys,
which pydantic checks, are in `fields.py`.
"""

from __future__ import annotations

import re
from functools import cache

from .rules import shown as shown  # most that say what is wrong with a value need both

# What can play tricks in a terminal: control characters, and those that turn the direction of the text around.
UNSHOWN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
NODE_NAME_MAX = 63
RANK_MAX = 9999
PORT_MAX = 65535
# Far beyond any of them, and small enough to be computed with.
NUMBER_MAX = 1_000_000_000
SECONDS_MAX = 1_000_000  # 11 days; the operating system cannot wait for any time at all


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
