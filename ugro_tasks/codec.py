"""Read JSON and plain values as typed ones, from any thread.

    decode(JobState, b'{"state": "queued"}')     # a JobState; UNREADABLE is what it can raise
    convert(Reset, {"left": [], "ended": []})    # the same for what has been decoded already

msgspec finds out at a type's first use what it consists of, and two threads that do so at once
end the process by a segmentation fault (msgspec 0.22.0). So no other module decodes by itself:
here each type is prepared under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

# What decoding a record that is damaged, or that a hostile node sent, can raise.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_lock = threading.Lock()


def decode(kind: type[T], raw: bytes | str) -> T:
    """Decode one JSON value as `kind`; raises one of UNREADABLE where it is none."""
    value: T = _decoder(kind).decode(raw)
    return value


def decode_lines(kind: type[T], raw: bytes | str) -> list[T]:
    """Decode a JSON value a line, each as `kind`; raises one of UNREADABLE where one is none."""
    values: list[T] = _decoder(kind).decode_lines(raw)
    return values


def convert(
    kind: type[T], value: object, *, hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Convert what JSON can hold to `kind`; raises one of UNREADABLE where it does not fit.

    `hook(type, value)` makes the values of types that msgspec does not know.
    """
    _decoder(kind)
    return msgspec.convert(value, kind, dec_hook=hook)


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type.

    Making one resolves the type and all types within it, for `convert` as well.
    """
    found = _decoders.get(kind)
    if found is not None:
        return found
    with _lock:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        return _decoders[kind]
