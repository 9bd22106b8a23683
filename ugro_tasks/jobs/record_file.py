"""A record as a JSON file with a copy: durable, and with the fields that this version does not know."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from ..codec import UNREADABLE, decode
from ..errors import RecordError
from ..files import File, Folder

# Of all records. A number has one meaning for ever, see docs/API.md; 1 is that of records without a number.
FORMAT = 2
FIRST_FORMAT = 1

Document = dict[str, Any]
W = TypeVar("W", bound=StrEnum)


class RecordFile:
    """A JSON object in a file, and the same in a hidden copy beside it."""

    def __init__(self, files: Folder, name: str) -> None:
        self.file = files.file(name)
        self.copy = files.file(f".{name}.copy")

    def read(self) -> Document:
        """Return the record, from its copy if a power cut has torn it; raises RecordError."""
        try:
            return _parsed(self.file)
        except RecordError:
            with contextlib.suppress(RecordError):
                return _parsed(self.copy)
            raise

    def is_torn(self) -> bool:
        """Return whether only the copy can be read."""
        try:
            _parsed(self.file)
        except RecordError:
            return True
        return False

    def write(self, document: Document) -> None:
        """Replace the record and its copy; both are on the disk when this returns. Raises OSError."""
        content = msgspec.json.format(msgspec.json.encode(document))
        self.file.replace_durably(content, self.copy)

    def damaged(self, why: object) -> RecordError:
        """Make the error of a record that makes no sense."""
        return _damaged(self.file, why)


def _parsed(file: File) -> Document:
    try:
        with file.open() as opened:
            return decode(Document, opened.read())
    except OSError as error:
        raise RecordError(f"{file.path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise _damaged(file, error) from error


def _damaged(file: File, why: object) -> RecordError:
    return RecordError(f"{file.path}: not written by this UGRO, or damaged: {why}")


def with_unknown_fields(value: object, before: object) -> Any:
    """Return a value as JSON data, with the fields in `before` that its types do not have.

    `before` is the JSON data it was read from: another version of UGRO may have written more. An
    item of a list is the same one if its first field is.
    """
    if isinstance(value, msgspec.Struct):
        return _of_struct(value, before)
    if isinstance(value, list | tuple):
        known = before if isinstance(before, list) else []
        return [with_unknown_fields(item, _same(item, known)) for item in value]
    return msgspec.to_builtins(value)


def _of_struct(value: msgspec.Struct, before: object) -> Document:
    known = before if isinstance(before, dict) else {}
    document: Document = {}
    config = value.__struct_config__
    if config.tag_field is not None:
        document[config.tag_field] = config.tag
    names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
    for name, written in names:
        document[written] = with_unknown_fields(
            getattr(value, name), known.get(written)
        )
    for written, content in known.items():
        document.setdefault(written, content)
    return document


def _same(item: object, known: Sequence[object]) -> object:
    """Return the JSON data of the same item, None if there is none."""
    if not isinstance(item, msgspec.Struct):
        return None
    name = item.__struct_fields__[0]
    written = item.__struct_encode_fields__[0]
    wanted = msgspec.to_builtins(getattr(item, name))
    for found in known:
        if isinstance(found, dict) and found.get(written) == wanted:
            return found
    return None


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
