"""Thread-safe decoding of JSON and plain values into typed ones.

    decode(JobState, b'{"state": "queued"}')     # a JobState, or one of UNREADABLE is raised
    convert(Reset, {"left": [], "ended": []})    # the same for values that are already decoded

msgspec inspects a type at its first use, and two threads doing so at once end the process by a
segmentation fault (msgspec 0.22.0). Therefore each type is prepared under a lock here, and no other
module decodes with msgspec directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

# The exceptions of decoding a damaged record or a hostile node's message.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_lock = threading.Lock()


def decode(kind: type[T], raw: bytes | str) -> T:
    """Decode one JSON value as `kind`; raises one of UNREADABLE if it does not fit."""
    value: T = _decoder(kind).decode(raw)
    return value


def decode_lines(kind: type[T], raw: bytes | str) -> list[T]:
    """Decode JSON lines, each as `kind`; raises one of UNREADABLE if one does not fit."""
    values: list[T] = _decoder(kind).decode_lines(raw)
    return values


def convert(
    kind: type[T], value: object, *, hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Convert plain JSON data to `kind`; raises one of UNREADABLE if it does not fit.

    `hook(type, value)` builds values of types unknown to msgspec.
    """
    _decoder(kind)
    return msgspec.convert(value, kind, dec_hook=hook)


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type, made under the lock at first use.

    Making one also resolves the type and all nested types for `convert`.
    """
    found = _decoders.get(kind)
    if found is not None:
        return found
    with _lock:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        return _decoders[kind]
