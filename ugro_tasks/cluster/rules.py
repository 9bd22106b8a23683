"""The rules of training settings, and the check of a value against its rule.

    rule = Rule.of_schema({"kind": "whole number", "least": "1"})    # as in config/training_schema.yaml
    rule.fit("50")       # 50
    rule.fit("many")     # Misfit: must be a whole number, at least 1, not 'many'

A value comes as text, from YAML or from a flag, and only its rule gives it a type: `no` is a word for a rule of text.
Values of JSON and of Python are accepted as well.

Two programs use this file: the controller, and a run of scripts/train_production.py by hand, by the link
scripts/training/rules.py. So it imports only the standard library, and no neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

SHOWN_MAX = 60
YES_NO = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}
NULLS = ("", "null", "~")
# The tags of YAML allowed on a value, or guessed by the parser. The type comes from the rule, not from the tag.
TAG = "tag:yaml.org,2002:"
PLAIN_KINDS = (
    "null",
    "map",
    "seq",
    "str",
    "int",
    "float",
    "bool",
    "timestamp",
    "value",
)
PLAIN_TAGS = {TAG + kind for kind in PLAIN_KINDS}


class Misfit(ValueError):
    """A value breaking its rule; the message gives the allowed values."""


class Quoted(str):
    """Text from quotes: it stays text, even if it looks like a number."""

    __slots__ = ()


# ---- kinds of values ----


def shown(value: object) -> str:
    """Quote a value for a message: escaped, and at most SHOWN_MAX characters."""
    text = repr(value)
    if len(text) <= SHOWN_MAX:
        return text
    quote = text[0]
    return f"{text[: SHOWN_MAX - 3]}...{quote}"


def parts_of_set(pair: str) -> tuple[str, str, str] | None:
    """Split "SECTION.KEY=VALUE" into its parts; None if one is missing, but for the value's text."""
    name, equals, text = pair.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        return None
    return section, key, text


def near(word: object, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the nearest known word; empty if none is near."""
    found = get_close_matches(str(word)[:SHOWN_MAX], list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def meant(value: Any) -> Any:
    """Give a value without a rule its type: null, yes or no, a whole number, a number, else text."""
    if isinstance(value, list):
        return [meant(item) for item in value]
    if isinstance(value, Quoted):
        return str(value)
    if not isinstance(value, str):
        return value
    if _is_null(value):
        return None
    for read in (_yes_or_no, _whole, _number):
        try:
            return read(value)
        except ValueError:
            continue
    return str(value)


def _is_null(value: object) -> bool:
    if isinstance(value, str):
        return value.lower() in NULLS
    return value is None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("no text")
    return str(value)


def _name(value: Any) -> str:
    if _text(value).startswith("-"):
        raise ValueError("looks like a flag")
    return str(value)


def _yes_or_no(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in YES_NO:
        raise ValueError("neither yes nor no")
    return YES_NO[value.lower()]


def _whole(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise ValueError("no whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("yes or no")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("no number")
    return number


def _any(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        raise ValueError("more than one value")
    return meant(value)


class Kind(NamedTuple):
    """The parser of a kind of value, and the kind's name in messages.

    `read` takes text or a value of JSON; it raises ValueError, TypeError or OverflowError.
    """

    read: Callable[[Any], Any]
    words: str
    many: str


KINDS = {
    "text": Kind(_text, "one value", "values"),
    "name": Kind(_name, "a name", "names like [a, b]"),
    "yes or no": Kind(_yes_or_no, "true or false", "true or false"),
    "whole number": Kind(_whole, "a whole number", "whole numbers"),
    "number": Kind(_number, "a number", "numbers"),
    "any": Kind(_any, "one value", "values"),
}
KIND_OF = {bool: "yes or no", int: "whole number", float: "number", str: "text"}


# ---- rules ----

LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "above": ("greater than", lambda value, limit: value > limit),
    "least": ("at least", lambda value, limit: value >= limit),
    "below": ("less than", lambda value, limit: value < limit),
    "most": ("at most", lambda value, limit: value <= limit),
}


@dataclass(frozen=True)
class Rule:
    """The rule of one setting. Its fields are the parts of a key's entry in the schema."""

    kind: str
    about: str = ""
    choices: tuple[Any, ...] = ()
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    items: int | None = None  # the length of a list, 0 for any; None: not a list
    also: tuple[str, ...] = ()  # words allowed in place of a number
    by_node: bool = False  # a mapping with a value for each node is allowed
    optional: bool = False  # null is allowed
    # {setting: its value}: without all of these, this setting has no effect.
    needs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_schema(cls, written: Any) -> Rule:
        """Read the parts of a rule, all of them text. Raises ValueError for the first faulty part."""
        if not isinstance(written, Mapping):
            raise ValueError("must be a section with a `kind`")
        known = [part.name for part in fields(cls)]
        for part in written:
            if part not in known:
                hint = near(part, known) or f"; there are {', '.join(known)}"
                raise ValueError(f"a rule has no part {shown(part)}{hint}")
        kind = written.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            kinds = ", ".join(KINDS)
            hint = near(kind, KINDS)
            raise ValueError(f"its kind must be one of {kinds}{hint}")
        parts = {}
        for part, text in written.items():
            try:
                parts[part] = _part(part, text, kind)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{part}: {error}") from error
        return cls(**parts)

    @classmethod
    def of_default(cls, value: Any) -> Rule:
        """Make the rule of a key without an entry in the schema: the kind is that of its default."""
        if isinstance(value, list):
            kinds = {KIND_OF.get(type(item), "any") for item in value}
            kind = kinds.pop() if len(kinds) == 1 else "any"
            return cls(kind, items=0)
        kind = KIND_OF.get(type(value), "any")
        if value == "":
            return cls(kind, also=("",))
        return cls(kind)

    @property
    def words(self) -> str:
        """Describe the allowed values: "a whole number, at least 1"."""
        kind = KINDS[self.kind]
        text = kind.words
        if self.items:
            text = f"a list of {self.items} {kind.many}"
        elif self.items is not None:
            text = f"a list of {kind.many}"
        if self.choices:
            choices = ", ".join(str(choice) for choice in self.choices)
            text = f"one of {choices}"
        for part, (words, _) in LIMITS.items():
            limit = getattr(self, part)
            if limit is not None:
                text += f", {words} {limit:,.10g}"
        for word in self.also:
            text += f", or {word or 'nothing'}"
        if self.by_node:
            text += ", or one for each node: {gpu-master: 3, gpu1: 2}"
        if self.optional:
            text += ", or null"
        return text

    def fit(self, value: Any) -> Any:
        """Return the value in the rule's type; raises Misfit if it breaks the rule."""
        if self.by_node and isinstance(value, Mapping):
            by_node = {}
            for node, size in value.items():
                by_node[str(node)] = self._of_node(node, size)
            return by_node
        try:
            return self._fitted(value)
        except (ValueError, TypeError, OverflowError) as error:
            choices = [str(choice) for choice in self.choices]
            hint = near(value, choices)
            raise Misfit(f"must be {self.words}, not {shown(value)}{hint}") from error

    @property
    def of_one_node(self) -> Rule:
        """Return the rule of the value for one node."""
        return replace(self, by_node=False, also=())

    def _of_node(self, node: object, value: Any) -> Any:
        try:
            return self.of_one_node.fit(value)
        except Misfit as error:
            raise Misfit(f"{node}: {error}") from error

    def _fitted(self, value: Any) -> Any:
        if self.optional and _is_null(value):
            return None
        if self.items is None:
            return self._one(value)
        if not isinstance(value, (list, tuple)):
            raise ValueError("no list")
        if not value and self.kind != "any":
            raise ValueError("an empty list")
        if self.items not in (0, len(value)):
            raise ValueError("another number of items")
        return [self._one(item) for item in value]

    def _one(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.also:
            return str(value)
        read = KINDS[self.kind].read(value)
        if self.choices:
            return self._choice(read)
        for part, (words, holds) in LIMITS.items():
            limit = getattr(self, part)
            if limit is not None and not holds(read, limit):
                raise ValueError(f"not {words} {limit}")
        return read

    def _choice(self, value: Any) -> Any:
        """Return the choice in its own spelling, regardless of case: INFO for `info`."""
        wanted = str(value).lower()
        for choice in self.choices:
            if str(choice).lower() == wanted:
                return choice
        raise ValueError("none of the choices")


def _part(part: str, text: Any, kind: str) -> Any:
    """Read one part of a rule. Raises ValueError."""
    if part in LIMITS:
        if kind not in ("whole number", "number"):
            raise ValueError("only a number has limits")
        return KINDS[kind].read(text)
    if part == "choices":
        return tuple(KINDS[kind].read(choice) for choice in _several(text))
    if part == "also":
        return tuple(_text(word) for word in _several(text))
    if part == "items":
        return 0 if text == "any" else _whole(text)
    if part in ("by_node", "optional"):
        return _yes_or_no(text)
    if part == "needs":
        if not isinstance(text, Mapping):
            raise ValueError(f"{shown(text)} must be a section of settings")
        return {name: _text(wanted) for name, wanted in text.items()}
    return _text(text)


def _several(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} must be a list")
    return value
