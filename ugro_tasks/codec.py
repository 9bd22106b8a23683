"""Types that several threads may decode at once."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def threadsafe(kind: type[T]) -> type[T]:
    """The same type, of which msgspec knows from now on what it consists of.

    Left to itself it finds that out at the first use, and two threads that do so at once end the process by a
    segmentation fault (msgspec 0.22.0).
    """
    msgspec.json.Decoder(kind)
    return kind


# What decoding a record that is damaged, or that a hostile node sent, can raise.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
