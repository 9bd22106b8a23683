"""Words of records that another version of UGRO may have more of."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

W = TypeVar("W", bound=StrEnum)


def kept_word(words: type[W], value: object) -> W | None:
    """Return an unknown word as a nameless member, to be shown and written again as it is.

    It is for `_missing_` of an enumeration; None stands for anything but a text.
    """
    if not isinstance(value, str):
        return None
    unknown = str.__new__(words, value)
    unknown._name_ = "UNKNOWN"
    unknown._value_ = value
    return unknown
