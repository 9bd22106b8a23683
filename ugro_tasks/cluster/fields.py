"""The base class of forms and the types of their keys, each with a check and its remedy."""

from __future__ import annotations

import ipaddress
import logging
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function

from .rules import Rule
from .training_schema import shipped_rules
from .values import (
    NUMBER_MAX,
    PORT_MAX,
    RANK_MAX,
    SECONDS_MAX,
    UNSHOWN,
    checked_line,
    checked_node_name,
    fully_matched,
    shown,
)


class Section(BaseModel):
    """A part of the file; an unknown key is a fault."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )


def matching(pattern: str, rule: str) -> AfterValidator:
    """Make a check of the whole text; its fault reads "<the text> <rule>"."""
    return AfterValidator(lambda value: fully_matched(value, pattern, rule))


def _port(value: int) -> int:
    if not 1 <= value <= PORT_MAX:
        raise ValueError(f"{value} is not a port (1-{PORT_MAX})")
    return value


def _jump(value: str) -> str:
    at_the_end = re.search(r":([0-9]+)$", value)
    if at_the_end:
        _port(int(at_the_end[1]))
    return value


def _address(value: str) -> str:
    """Return an IP address in its usual spelling.

    Raises ValueError for a name, and for an address of no machine or of one wire only.
    """
    try:
        address = ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError(
            f"{shown(value)} is not an IP address; names do not work here, write for example "
            f"192.168.1.100 (on the machine, `ip -brief address` shows it)"
        ) from error
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{shown(value)} is no machine's own address")
    # An IPv6 address with a scope, such as fe80::1%eth0.
    if "%" in value:
        raise ValueError(
            f"{shown(value)} is an address of one machine's own wire; give one without '%'"
        )
    return str(address)


def _upper_case(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _log_format(value: str) -> str:
    # A width of four digits or more would pad each line to kilobytes.
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


# A line of text that is safe in a terminal, a command line and a file.
OneLine = AfterValidator(checked_line)
Line = Annotated[str, OneLine]
Word = Annotated[
    str,
    matching(rf"[^\s{UNSHOWN}-][^{UNSHOWN}]*", "must not begin with '-' or a space"),
]
NodeName = Annotated[str, AfterValidator(checked_node_name)]
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
        r"[A-Za-z0-9_]([A-Za-z0-9_.+@\\-]{0,126}[A-Za-z0-9_.+-])?",
        "is not a user name: use letters, digits, '.', '_', '+', '-', '@' and '\\'",
    ),
]
Jump = Annotated[
    str,
    matching(
        r"([A-Za-z0-9_][\w.+@\\-]*@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?",
        "is not one jump host: write user@host:port (for a chain, use ProxyJump in ~/.ssh/config)",
    ),
    AfterValidator(_jump),
]
SshName = Annotated[
    str,
    matching(
        r"([A-Za-z0-9_][A-Za-z0-9_.+@\\-]*@)?"
        r"([A-Za-z0-9_][A-Za-z0-9._-]*|[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)",
        "is not what one types after ssh: a Host of ~/.ssh/config, a name or an address, or user@one; "
        "a port is `ssh_port`",
    ),
]
NodePath = Annotated[
    str,
    matching(
        rf"~|~?/[^{UNSHOWN}]*", "is not a path on a node: begin it with '/' or '~/'"
    ),
]
HerePath = Annotated[
    str,
    matching(
        rf"(?!~[^/])[^{UNSHOWN}]+",
        "is not a path; on this machine `~/` is your own home folder",
    ),
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
Address = Annotated[str, AfterValidator(_address)]
Port = Annotated[
    int,
    AfterValidator(_port),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": PORT_MAX}),
]
Rank = Annotated[int, Field(ge=0, le=RANK_MAX)]
PositiveInt = Annotated[int, Field(ge=1, le=NUMBER_MAX)]
PositiveFloat = Annotated[float, Field(gt=0, le=NUMBER_MAX, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=SECONDS_MAX, allow_inf_nan=False)]
WholeSeconds = Annotated[int, Field(ge=1, le=SECONDS_MAX)]
LogFormat = Annotated[str, AfterValidator(_log_format)]
Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_upper_case),
]


class Setting:
    """The mark of a key for a training setting, as in `Annotated[int, Setting("training.num_epochs")]`.

    Its rule in config/training_schema.yaml alone decides on the value.
    """

    def __init__(self, name: str) -> None:
        self.section, _, self.key = name.partition(".")
        self.rule = shipped_rules()[name]

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_plain_validator_function(self._fit)

    def _fit(self, value: Any) -> Any:
        """Check a value against the rule, with a separate fault for each node of a value by node."""
        if not (self.rule.by_node and isinstance(value, dict)):
            return self.rule.fit(value)
        check = PlainValidator(self.rule.of_one_node.fit)
        by_node = TypeAdapter(dict[NodeName, Annotated[Any, check]])
        return by_node.validate_python(value)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"description": self.rule.about, **_json_schema(self.rule)}


_JSON_TYPES = {"whole number": "integer", "number": "number", "yes or no": "boolean"}
_JSON_LIMITS = {
    "above": "exclusiveMinimum",
    "least": "minimum",
    "below": "exclusiveMaximum",
    "most": "maximum",
}


def _json_schema(rule: Rule) -> dict[str, Any]:
    """Translate a rule into JSON schema, for editors."""
    one: dict[str, Any] = {"type": _JSON_TYPES.get(rule.kind, "string")}
    for part, word in _JSON_LIMITS.items():
        limit = getattr(rule, part)
        if limit is not None:
            one[word] = limit
    if rule.choices:
        one["enum"] = list(rule.choices)
    if rule.items is not None:
        return {"type": "array", "items": one}
    forms = [one]
    for word in rule.also:
        forms.append({"const": word, "type": "string"})
    if rule.by_node:
        forms.append({"type": "object", "additionalProperties": one})
    return {"anyOf": forms} if len(forms) > 1 else one
