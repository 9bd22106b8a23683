"""Checks of single values of a cluster file, a flag or a setting, without pydantic.

Most commands read no form, and pydantic is a fifth of their start. The types of a form's keys,
checked by pydantic, are in `fields.py`.
"""

from __future__ import annotations

import re
from functools import cache

from .rules import shown as shown  # the importers of this module need it, too

# Unsafe in a terminal: control characters, and characters that reverse the text direction.
UNSHOWN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
NODE_NAME_MAX = 63
RANK_MAX = 9999
PORT_MAX = 65535
# Far beyond any real value, and small enough to compute with.
NUMBER_MAX = 1_000_000_000
# 11 days; the operating system limits the length of a wait.
SECONDS_MAX = 1_000_000


_compiled = cache(re.compile)


def fully_matched(value: object, pattern: str, rule: str) -> str:
    """Return the text if all of it matches; else raise a ValueError "<the text> <rule>"."""
    if not isinstance(value, str) or not _compiled(pattern).fullmatch(value):
        raise ValueError(f"{shown(value)} {rule}")
    return value


def checked_line(value: str) -> str:
    """Return one line of plain text; raises ValueError for control characters and the like."""
    return fully_matched(value, rf"[^{UNSHOWN}]+", "must be one line of plain text")


def checked_node_name(value: object) -> str:
    """Return a node's name; raises ValueError if it is not valid."""
    pattern = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_NAME_MAX - 1}}}"
    rule = "is not a node name: use letters, digits, '.', '_' and '-', a letter or digit first"
    return fully_matched(value, pattern, rule)
