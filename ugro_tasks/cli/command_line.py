"""Extensions of Invoke's parser: optional words, several words, flags of two words, short flags.

A task declares its words and flags with `task.task`. Invoke asks each task for its arguments before
it parses, so the answer can depend on the command line; only this module reads that. Calls of
UGRO's tasks are found by the last part of their dotted names, so the collection may be mounted
anywhere: `inv status`, `inv gpu.status`.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import invoke.tasks
from invoke.parser.argument import Argument
from invoke.parser.context import to_flag
from msgspec import Struct

# A letter means the same in every task; -h is the help's.
SHORT_FLAGS = {
    "name": "n", "cluster": "c", "epochs": "e", "verbose": "v", "quiet": "q", "json": "j", "follow": "f",
}  # fmt: skip
# Invoke's own flags that take a value.
CORE_VALUED = {
    "-c", "--collection", "-D", "--list-depth", "-f", "--config", "-F", "--list-format", "--hide",
    "-r", "--search-root", "-T", "--command-timeout", "--print-completion-script",
}  # fmt: skip
# A task named in a message, as in `inv logs exp1` or `inv --help logs`.
COMMAND = re.compile(r"\binv (?=-|[a-z])(--help )?([a-z][a-z-]*(?:\.[a-z-]+)*)?")


class ExtraArguments(Struct, frozen=True, kw_only=True):
    """The arguments of a task beyond those that Invoke's own parser knows."""

    # An optional parameter that is given as a bare word.
    word: str | None = None
    # A list parameter for any number of bare words.
    words: str | None = None
    pairs: tuple[str, ...] = ()  # flags with two words, as in --param lr 1e-5,2e-5
    iterable: tuple[str, ...] = ()  # repeatable flags


class Call(Struct):
    """One call of a UGRO task on the command line."""

    task: UgroTask
    prefix: str  # "gpu." where the collection is mounted as gpu
    words: list[str]
    help_asked: bool = False


class _CommandLine:
    """The command line to parse: sys.argv for `inv`, or the words given to `ugro`."""

    def __init__(self) -> None:
        self.program = "inv"
        self.prefix = ""
        self.given: list[str] | None = None

    def words(self) -> list[str]:
        if self.given is None:
            return sys.argv[1:]
        return self.given


_line = _CommandLine()
_tasks: dict[str, UgroTask] = {}  # by typed_name


class UgroTask(invoke.tasks.Task[Any]):
    """A task with arguments that depend on the command line."""

    def __init__(
        self,
        body: Callable[..., Any],
        help: dict[str, str],  # noqa: A002
        group: str,
        extra: ExtraArguments,
        collection: str = "",
    ) -> None:
        self.extra = extra
        self.collection = collection
        super().__init__(body, help=help, iterable=list(extra.iterable))
        self.group = group
        _tasks[self.typed_name] = self

    @property
    def typed_name(self) -> str:
        """Return the name on a command line, without the prefix of a mounted collection."""
        name = str(self.name).strip("_").replace("_", "-")
        return f"{self.collection}.{name}" if self.collection else name

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the arguments for the call on the command line. Invoke's parser calls this."""
        del ignore_unknown_help
        known = _tasks.get(self.typed_name)
        for call in calls(_line.words()):
            if call.task is known:
                _line.prefix = call.prefix
                return self.arguments(call.words, help_asked=call.help_asked)
        return self.arguments()

    def arguments(
        self, words: Sequence[str] = (), *, help_asked: bool = False
    ) -> list[Argument]:
        """Return the arguments for a call with these bare words, positional ones first."""
        parameters = self.argspec(self.body).parameters.values()
        found = [
            self._argument(parameter, words, help_asked=help_asked)
            for parameter in parameters
        ]
        return sorted(found, key=lambda argument: not argument.positional)

    def _argument(
        self, parameter: inspect.Parameter, words: Sequence[str], *, help_asked: bool
    ) -> Argument:
        name = parameter.name
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        dashed = name.strip("_").replace("_", "-")
        names = [dashed]
        if name in SHORT_FLAGS:
            names.append(SHORT_FLAGS[name])
        options: dict[str, Any] = {
            "names": tuple(names),
            "attr_name": None if name == dashed else name,
            "help": self.help.get(dashed, self.help.get(name)),
            "default": default,
        }
        if name in self.extra.pairs:
            return PairsArgument(**options)
        if name == self.extra.words:
            return WordsArgument(count=len(words), **options)
        if name in self.extra.iterable:
            options["default"] = default or []
            return Argument(kind=list, **options)
        if isinstance(default, bool):
            return Argument(kind=bool, **options)
        if name == self.extra.word:
            return Argument(positional=bool(words), **options)
        # A missing word is an error, except with --help, which would be taken for the word.
        only_help = help_asked and not words
        return Argument(positional=required and not only_help, **options)

    @property
    def most_words(self) -> float:
        """Return the largest number of bare words it takes."""
        if self.extra.words:
            return float("inf")
        parameters = self.argspec(self.body).parameters.values()
        required = [
            parameter
            for parameter in parameters
            if parameter.default is inspect.Parameter.empty
        ]
        return len(required) + bool(self.extra.word)

    def words_after(self, flag: str, following: Sequence[str]) -> int:
        """Count the words that belong to a flag without `=`."""
        for argument in self.arguments():
            if flag not in map(to_flag, argument.names):
                continue
            if not isinstance(argument, PairsArgument):
                return int(argument.takes_value)
            in_one_word = bool(following) and "=" in following[0]
            return 1 if in_one_word else 2
        return int(flag in CORE_VALUED)

    def names_job(self) -> bool:
        """Return whether its bare words name jobs."""
        return self.most_words > 0


class WordsArgument(Argument):
    """Any number of bare words. Invoke hands over one more while `value` is None."""

    _value: list[str]

    def __init__(self, *, count: int, **options: Any) -> None:
        super().__init__(kind=list, positional=count > 0, **options)
        self.count = count

    @property
    def value(self) -> list[str] | None:
        """Return the words, or None while more are to come."""
        if self.positional and len(self._value) < self.count:
            return None
        return self._value or self.default

    @value.setter
    def value(self, word: str) -> None:
        self.raw_value = word
        self._value = [*self._value, word]


class PairsArgument(Argument):
    """A repeatable flag with two words, --param lr 1e-5,2e-5, or with one, --param lr=1e-5,2e-5.

    Invoke hands over one more word while `raw_value` is None.
    """

    _value: list[tuple[str, str]]

    def __init__(self, **options: Any) -> None:
        super().__init__(kind=list, **{**options, "default": []})
        self._first: str | None = None

    def set_value(self, value: str, cast: bool = True) -> None:
        """Take the next word. Invoke calls this."""
        del cast
        self.raw_value = value
        if self._first is not None:
            self._value = [*self._value, (self._first, value)]
            self._first = None
        elif "=" in value:
            key, _, rest = value.partition("=")
            self._value = [*self._value, (key, rest)]
        else:
            self._first = value
            self.raw_value = None


# ---- the command line ----


def calls(words: Sequence[str]) -> list[Call]:
    """Return the calls of UGRO's tasks on a command line, with their bare words.

    If a task takes bare words, the first word after it is one, whatever it says. From the second
    on, the name of a UGRO task begins the next call. Tasks of other projects cannot be told from
    words, so they must come before UGRO's.
    """
    found: list[Call] = []
    current: Call | None = None
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            break
        if word.startswith("-"):
            index += _words_after(word, current, words[index:])
            if current and word in {"--help", "-h"}:
                current.help_asked = True
            continue
        call = _call_of(word)
        if current and _takes_word(current, names_task=call is not None):
            current.words.append(word)
            continue
        current = call
        if call:
            found.append(call)
    return found


def _call_of(word: str) -> Call | None:
    parts = word.split(".")
    # UGRO's own collections have a dot in their tasks' names, too.
    for count in range(len(parts)):
        task = _tasks.get(".".join(parts[count:]))
        if task is not None:
            return Call(task, "".join(f"{part}." for part in parts[:count]), [])
    return None


def _takes_word(call: Call, *, names_task: bool) -> bool:
    """Return whether the call takes the next word; only its first may be the name of a task."""
    if len(call.words) >= call.task.most_words:
        return False
    return not call.words or not names_task


def _words_after(flag: str, current: Call | None, following: Sequence[str]) -> int:
    if "=" in flag:
        return 0
    if current:
        return current.task.words_after(flag, following)
    return int(flag in CORE_VALUED)


def typed() -> list[str]:
    """Return the command line of this process, the program's name first."""
    return list(sys.argv)


def remainder() -> list[str]:
    """Return the words after a bare `--`."""
    words = _line.words()
    if "--" not in words:
        return []
    return words[words.index("--") + 1 :]


@contextlib.contextmanager
def reading(program: str, words: Iterable[str]) -> Iterator[None]:
    """Parse these words for a program of this name, instead of sys.argv."""
    global _line
    before = _line
    _line = _CommandLine()
    _line.program = program
    _line.given = list(words)
    try:
        yield
    finally:
        _line = before


def as_called(message: str) -> str:
    """Write the `inv` commands in a message for the program and the mounted name in use."""

    def put(found: re.Match[str]) -> str:
        help_flag, name = found.groups("")
        prefix = _line.prefix if name in _tasks else ""
        return f"{_line.program} {help_flag}{prefix}{name}"

    return COMMAND.sub(put, message)
