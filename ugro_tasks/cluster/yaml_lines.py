"""YAML as plain data with line numbers, for files written by hand.

    document = Document(text, expand)       # parses; faults are collected in document.faults
    document.fault(("workers", 1, "rank"), "rank 1 is taken")
    document.faults                         # all, in the order of their lines

Three things differ from `yaml.safe_load`, all for the author's sake: a plain value stays text until
a form or a rule gives it a type (so a user `no` is a user, a version 3.10 is not 3.1, and `2e-4` is a
number), a key without a value counts as not given, and `~` is a path, not null.

For training settings null is a value: without `expand` it is kept as text, too. `value_of` reads a single value.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

from .rules import PLAIN_TAGS, TAG, Quoted, shown

Loc = tuple[str | int, ...]
Expand = Callable[[str, Loc], str]
Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)

# Far beyond any cluster, and small enough to make a hostile file harmless.
MAX_VALUES = 10_000
MAX_DEPTH = 20
NULL = TAG + "null"
MERGE = TAG + "merge"
# Braces are excluded inside: with `.*`, a megabyte of `${` without a `}` would take hours.
VARIABLE = re.compile(r"\$\{([^{}]*)\}")


class Fault(NamedTuple):
    """One fault and its line, counted from 1."""

    line: int
    text: str


class Document:
    """The data of a YAML text, with the line of each value and all faults.

    `expand(name, loc)` gives the value of `${name}` at `loc`; its ValueError becomes a fault. Without it every value
    stays as written: null is text as well, and text in quotes is `Quoted`.
    """

    def __init__(self, text: str, expand: Expand | None = None) -> None:
        self.data: dict[str, Any] = {}
        self._expand = expand
        self._faults: list[Fault] = []
        self._faulty: set[Loc] = set()
        self._lines: dict[Loc, int] = {(): 1}
        self._values = 0
        try:
            self._read(text)
        except _UnreadableError as error:
            self._faults = [error.fault]
            self.data = {}
        except yaml.YAMLError as error:
            self._faults = [_syntax_fault(error, text)]

    def _read(self, text: str) -> None:
        root = _composed(text)
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else _kind_of_node(root)
            words = f"the file must hold `key: value` lines, but holds {found}"
            raise _UnreadableError(1, words)
        self.data = self._mapping(root, ())

    @property
    def faults(self) -> list[Fault]:
        """Return all faults so far, in the order of their lines."""
        return sorted(self._faults, key=lambda fault: fault.line)

    def line(self, loc: Loc) -> int:
        """Return the line of the value at `loc`, or of the nearest written section around it."""
        while loc not in self._lines:
            loc = loc[:-1]
        return self._lines[loc]

    def line_of_key(self, loc: Loc) -> int | None:
        """Return the line of the key at `loc`; None if it is not written."""
        return self._lines.get(loc)

    def fault(self, loc: Loc, text: str) -> None:
        """Add a fault of the value at `loc`; only the first fault of a value is kept."""
        if loc not in self._faulty:
            self._faulty.add(loc)
            where = f"{written(loc)}: " if loc else ""
            self._faults.append(Fault(self.line(loc), where + text))

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        self._values += 1
        if self._values > MAX_VALUES or len(loc) > MAX_DEPTH:
            raise _too_much(node.start_mark.line + 1)
        if node.tag not in PLAIN_TAGS:
            tag = shown(node.tag)
            self.fault(loc, f"the tag {tag} is not allowed; write the plain value")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return self._list(node, loc)
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            what = _fault_of_key(key_node)
            if what:
                words = f"{what} is not understood here; write the keys out"
                self._faults.append(Fault(line, words))
                continue
            at = (*loc, key_node.value)
            if at in self._lines:
                first = self._lines[at]
                words = f"is given twice, first on line {first}; keep one"
                self._faults.append(Fault(line, f"{written(at)}: {words}"))
                continue
            self._lines[at] = line
            value = self._value(value_node, at)
            if value is not None:
                result[key_node.value] = value
        return result

    def _list(self, node: yaml.SequenceNode, loc: Loc) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            at = (*loc, index)
            self._lines[at] = item.start_mark.line + 1
            result.append(self._value(item, at))
        return result

    def _scalar(self, node: yaml.Node, loc: Loc) -> str | None:
        expand = self._expand
        if expand is None:
            quoted = bool(getattr(node, "style", None))
            return Quoted(node.value) if quoted else str(node.value)
        if node.tag == NULL and node.value != "~":
            return None

        def expanded(match: re.Match[str]) -> str:
            try:
                return expand(match[1], loc)
            except ValueError as error:
                self.fault(loc, str(error))
                return match[0]

        return VARIABLE.sub(expanded, node.value)


class _Value(Document):
    """One value, of any kind."""

    value: Any = ""

    def _read(self, text: str) -> None:
        root = _composed(text)
        if root is not None:
            self.value = self._value(root, ())


def value_of(text: str) -> Any:
    """Parse a single value of a key: text, a list or a mapping of texts. Raises ValueError."""
    document = _Value(text)
    if document.faults:
        raise ValueError(document.faults[0].text)
    return document.value


def _fault_of_key(node: yaml.Node) -> str | None:
    """Name the construct instead of a plain word as a key; return None for a plain word."""
    if node.tag == MERGE:
        return "`<<`"
    if not isinstance(node, yaml.ScalarNode):
        return "a key that is not a plain word"
    return None


def written(loc: Loc) -> str:
    """Write a place in the file as its author would: `workers[1].ssh_port`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{_key(part)}"
    return text.lstrip(".")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,60}", key) else shown(key)


class _UnreadableError(Exception):
    def __init__(self, line: int, text: str) -> None:
        self.fault = Fault(line, text)


def _too_much(line: int) -> _UnreadableError:
    return _UnreadableError(
        line, f"too much: at most {MAX_VALUES} values, at most {MAX_DEPTH} levels deep"
    )


def _composed(text: str) -> yaml.Node | None:
    """Parse the text into a tree of nodes; raises _UnreadableError and YAMLError."""
    _refuse_unreadable(text)
    return yaml.compose(text, Loader=Loader)


def _refuse_unreadable(text: str) -> None:
    """Raise _UnreadableError for a text unsafe for the parser: libyaml crashes on deep nesting."""
    control = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        words = f"the character {control[0]!r} cannot stand in a YAML file"
        raise _UnreadableError(line, words)
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > 3 * MAX_VALUES:
            mark = event.start_mark
            raise _too_much(mark.line + 1 if mark else 1)


def _syntax_fault(error: yaml.YAMLError, text: str) -> Fault:
    problem = getattr(error, "problem", None) or str(error)
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None:
        return Fault(1, f"this is not YAML: {problem}")
    number = mark.line + 1
    # The mark may be one line after the last.
    line = [*text.splitlines(), ""][mark.line]
    indentation = line[: len(line) - len(line.lstrip())]
    if "\t" in indentation:
        words = "a tab in the indentation; YAML indents with spaces only"
    elif problem.startswith("but found another document"):
        words = "a second document begins here; keep one, without '---'"
    else:
        words = (
            f"this is not YAML: {problem} (column {mark.column + 1}); "
            "check indentation, colons and quotes here and just above"
        )
    return Fault(number, words)


def _kind_of_node(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else shown(node.value)
