"""The kinds of value that a cluster file holds, each with the check that it is one; the fault says what to write.

    class Node(Fact):
        address: Address        # "192.168.1.100", and no host name

In a form (cluster_form.py) pydantic makes all checks. In a record (cluster.py), which is read from UGRO's own files,
msgspec looks at the types and at the limits of the numbers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from msgspec import Meta

# What can play tricks in a terminal: control characters, and those that turn the direction of the text around.
UNSHOWN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
NODE_NAME_MAX = 63
RANK_MAX = 9999
NUMBER_MAX = 1_000_000_000  # far beyond any of them, and small enough to be computed with
SECONDS_MAX = 1_000_000  # 11 days; the operating system cannot wait for any time at all


def shown(value: object) -> str:
    """A value from a file as a message can hold it: quoted, escaped, and never long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[0]}"


class Kind:
    """What makes a value one of its kind, told to pydantic. This module does not import it: most commands read no form,
    and it takes them a fifth of their start.
    """

    def __init__(
        self,
        check: Callable[[Any], object] | None = None,
        *,
        first: bool = False,
        json_schema: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        # `check` gives the value or raises ValueError; with `first` it comes before the type is looked at.
        self.check, self.first, self.json_schema, self.limits = check, first, json_schema, limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        schema = {**handler(source), **self.limits}
        if self.check is None:
            return schema
        if self.first:
            return core_schema.no_info_before_validator_function(self.check, schema)
        return core_schema.no_info_after_validator_function(self.check, schema)

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        return dict(self.json_schema) if self.json_schema else handler(schema)


_compiled = cache(re.compile)


def matching(pattern: str, rule: str) -> Kind:
    """A check that the whole text matches `pattern`; the fault reads "<the text> <rule>"."""

    def check(value: str) -> str:
        if not _compiled(pattern).fullmatch(value):
            raise ValueError(f"{shown(value)} {rule}")
        return value

    return Kind(check)


def checked_line(value: str) -> str:
    """The text; raises ValueError for one that can play tricks in a terminal, a command line or a file."""
    if not _compiled(_LINE).fullmatch(value):
        raise ValueError(f"{shown(value)} {_LINE_RULE}")
    return value


def _port(value: int) -> int:
    if not 1 <= value <= 65535:
        raise ValueError(f"{value} is not a port (1-65535)")
    return value


def _jump(value: str) -> str:
    if port := re.search(r":([0-9]+)$", value):
        _port(int(port[1]))
    return value


def _address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError(
            f"{shown(value)} is not an IP address; names do not work here, write for example "
            f"192.168.1.100 (on the machine, `ip -brief address` shows it)"
        ) from error
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{shown(value)} is no machine's own address")
    if "%" in value:
        raise ValueError(f"{shown(value)} is an address of one machine's own wire; give one without '%'")
    return str(address)


def checked_batch_size(value: object) -> int | str | dict[str, int]:
    """`auto`, a whole number, or one for each node; a number may be written as text. Raises ValueError."""
    if isinstance(value, dict):
        return {_node_name(name): _node_size(name, size) for name, size in value.items()}
    text = str(value)
    if text == "auto":
        return text
    if (number := _size(value)) is None:
        said = "a list" if isinstance(value, list) else shown(value)
        raise ValueError(
            f"{said} is no batch size; write a whole number from 1 on, auto, "
            "or a number for each node: {gpu-master: 3, gpu1: 2}"
        )
    return number


def _size(value: object) -> int | None:
    text = str(value)
    good = isinstance(value, (int, str)) and text.isdecimal() and 0 < len(text.lstrip("0")) < 7
    return int(text) if good else None


def _node_name(name: object) -> str:
    if not isinstance(name, str) or not _compiled(_NODE_NAME).fullmatch(name):
        raise ValueError(f"{shown(name)} {_NODE_NAME_RULE}")
    return name


def _node_size(name: object, value: object) -> int:
    if (number := _size(value)) is None:
        raise ValueError(f"{name}: {shown(value)} is no batch size; write a whole number from 1 on")
    return number


class _BatchSizeKind(Kind):
    """The same for pydantic, which names the node whose number is wrong."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic import TypeAdapter
        from pydantic_core import core_schema

        by_node = TypeAdapter(dict[NodeName, PositiveInt])

        def check(value: object) -> object:
            return by_node.validate_python(value) if isinstance(value, dict) else checked_batch_size(value)

        return core_schema.no_info_before_validator_function(check, handler(source))


def _log_format(value: str) -> str:
    import logging  # late, for the sake of a quick start: only a form is checked so

    # A width of four digits and more makes a line of a file of it.
    wide = re.search(r"[0-9]{4}", value)
    try:
        if wide:
            raise ValueError(wide[0])
        logging.Formatter(value).format(logging.makeLogRecord({"msg": "one"}))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{shown(value)} is not a log format of Python's logging; "
            f"a good one is '%(asctime)s %(levelname)s %(message)s'"
        ) from error
    return value


_LINE = rf"[^{UNSHOWN}]+"
_LINE_RULE = "must be one line of plain text"
_NODE_NAME = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_NAME_MAX - 1}}}"
_NODE_NAME_RULE = "is not a node name: use letters, digits, '.', '_' and '-', a letter or digit first"

# A line of text that cannot play tricks in a terminal, a command line or a file.
Line = Annotated[str, matching(_LINE, _LINE_RULE)]
Word = Annotated[
    str,
    matching(rf"[^\s{UNSHOWN}-][^{UNSHOWN}]*", "must not begin with '-' or a space"),
]
NodeName = Annotated[str, matching(_NODE_NAME, _NODE_NAME_RULE)]
HostName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}",
        "is not a host name: use letters, digits, '.', '_' and '-', a letter or digit first",
    ),
]
UserName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}",
        "is not a user name: use letters, digits, '.', '_', '+' and '-'",
    ),
]
Jump = Annotated[
    str,
    matching(
        r"([A-Za-z0-9_][\w.+-]*@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?",
        "is not one jump host: write user@host:port (for a chain, use ProxyJump in ~/.ssh/config)",
    ),
    Kind(_jump),
]
NodePath = Annotated[
    str,
    matching(rf"~|~?/[^{UNSHOWN}]*", "is not a path on a node: begin it with '/' or '~/'"),
]
Program = Annotated[
    str,
    matching(
        rf"[A-Za-z0-9_][A-Za-z0-9_.+-]*|~?/[^{UNSHOWN}]+",
        "is not a program: write its name, or a path that begins with '/' or '~/'",
    ),
]
Script = Annotated[
    str,
    matching(
        r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*\.py",
        "is not a script: write the name of a .py file inside the scripts folder",
    ),
]
Port = Annotated[
    int, Meta(ge=1, le=65535), Kind(_port, json_schema={"type": "integer", "minimum": 1, "maximum": 65535})
]
Address = Annotated[str, Kind(_address)]
PositiveInt = Annotated[int, Meta(ge=1, le=NUMBER_MAX), Kind(ge=1, le=NUMBER_MAX)]
BatchSize = Annotated[PositiveInt | Literal["auto"] | dict[NodeName, PositiveInt], _BatchSizeKind()]
Rank = Annotated[int, Meta(ge=0, le=RANK_MAX), Kind(ge=0, le=RANK_MAX)]
PositiveFloat = Annotated[float, Meta(gt=0, le=NUMBER_MAX), Kind(gt=0, le=NUMBER_MAX, allow_inf_nan=False)]
Part = Annotated[float, Meta(ge=0, lt=1), Kind(ge=0, lt=1)]
Seconds = Annotated[float, Meta(gt=0, le=SECONDS_MAX), Kind(gt=0, le=SECONDS_MAX, allow_inf_nan=False)]
WholeSeconds = Annotated[int, Meta(ge=1, le=SECONDS_MAX), Kind(ge=1, le=SECONDS_MAX)]
LogFormat = Annotated[str, Kind(_log_format)]
Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    Kind(lambda value: value.upper() if isinstance(value, str) else value, first=True),
]
