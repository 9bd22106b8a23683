"""What Invoke's parser lacks: a word that may be left out, several words, a second word of a flag; short flags by hand.

A task declares what it takes (`task.task`). Invoke asks each task for its arguments before it parses, so the answer
can fit what was typed: this module looks at the command line, and is the only one that does. It finds the calls of our
tasks by the last part of their dotted names, wherever the collection is mounted: `inv status`, `inv gpu.status`.
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

# One letter means the same everywhere. None is -h, which is the help's.
SHORT_FLAGS = {
    "name": "n", "cluster": "c", "epochs": "e", "verbose": "v", "quiet": "q", "json": "j", "follow": "f",
}  # fmt: skip
# Flags of Invoke's own that are followed by a value.
CORE_VALUED = {
    "-c", "--collection", "-D", "--list-depth", "-f", "--config", "-F", "--list-format", "--hide",
    "-r", "--search-root", "-T", "--command-timeout", "--print-completion-script",
}  # fmt: skip
# A task named in a message, as in `inv logs exp1` or `inv --help logs`.
COMMAND = re.compile(r"\binv (?=-|[a-z])(--help )?([a-z][a-z-]*)?")


class Taking(Struct, frozen=True, kw_only=True):
    """What a task takes beyond what Invoke can be told."""

    # The parameter that may be given as a bare word, or be left out.
    word: str | None = None
    # The parameter, a list, that takes any number of bare words.
    words: str | None = None
    pairs: tuple[str, ...] = ()  # flags that take two words, as in --param lr 1e-5,2e-5
    iterable: tuple[str, ...] = ()  # flags that may be repeated


class Call(Struct):
    """A task of ours as the command line calls it."""

    task: UgroTask
    prefix: str  # "gpu." where the collection is mounted as gpu
    words: list[str]
    help_asked: bool = False


class _CommandLine:
    """Who called: Invoke's `inv`, which reads sys.argv, or a program of ours, which has told its words."""

    def __init__(self) -> None:
        self.program = "inv"
        self.prefix = ""
        self.given: list[str] | None = None

    def words(self) -> list[str]:
        return sys.argv[1:] if self.given is None else self.given


_line = _CommandLine()
_tasks: dict[str, UgroTask] = {}  # by the name under which one calls them


class UgroTask(invoke.tasks.Task[Any]):
    """A task whose arguments fit what was typed."""

    def __init__(
        self,
        body: Callable[..., Any],
        help: dict[str, str],  # noqa: A002
        group: str,
        taking: Taking,
    ) -> None:
        self.taking = taking
        super().__init__(body, help=help, iterable=list(taking.iterable))
        self.group = group
        _tasks[self.typed_name] = self

    @property
    def typed_name(self) -> str:
        """The name on a command line, without what it is mounted under."""
        return str(self.name).strip("_").replace("_", "-")

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return what Invoke's parser is to expect. Invoke calls this."""
        del ignore_unknown_help
        call = next(
            (
                call
                for call in calls(_line.words())
                if call.task is _tasks.get(self.typed_name)
            ),
            None,
        )
        if call:
            _line.prefix = call.prefix
        return self.arguments(
            call.words if call else [], help_asked=bool(call and call.help_asked)
        )

    def arguments(
        self, words: Sequence[str] = (), *, help_asked: bool = False
    ) -> list[Argument]:
        """Return the arguments for a call with these bare words; what is given as a word comes first."""
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
        options: dict[str, Any] = {
            "names": (dashed, SHORT_FLAGS[name]) if name in SHORT_FLAGS else (dashed,),
            "attr_name": name if name != dashed else None,
            "help": self.help.get(dashed, self.help.get(name)),
            "default": default,
        }
        if name in self.taking.pairs:
            return PairsArgument(**options)
        if name == self.taking.words:
            return WordsArgument(count=len(words), **options)
        if name in self.taking.iterable:
            return Argument(kind=list, **{**options, "default": default or []})
        if isinstance(default, bool):
            return Argument(kind=bool, **options)
        # A word that is missing is asked for, but not by whoever wants the help: it would swallow --help.
        wanted = (
            bool(words)
            if name == self.taking.word
            else required and not (help_asked and not words)
        )
        return Argument(positional=wanted, **options)

    @property
    def places(self) -> float:
        """How many bare words it takes at most."""
        if self.taking.words:
            return float("inf")
        parameters = self.argspec(self.body).parameters.values()
        required = sum(
            parameter.default is inspect.Parameter.empty for parameter in parameters
        )
        return required + bool(self.taking.word)

    def words_after(self, flag: str, following: Sequence[str]) -> int:
        """Count the words that belong to a flag as it stands alone."""
        for argument in self.arguments():
            if flag in map(to_flag, argument.names):
                if isinstance(argument, PairsArgument):
                    return 1 if following and "=" in following[0] else 2
                return int(argument.takes_value)
        return int(flag in CORE_VALUED)

    def names_job(self) -> bool:
        """Whether its bare words name jobs."""
        return self.places > 0


class WordsArgument(Argument):
    """Any number of bare words. Invoke gives it one at a time for as long as it has no value."""

    _value: list[str]

    def __init__(self, *, count: int, **options: Any) -> None:
        super().__init__(kind=list, positional=count > 0, **options)
        self.count = count

    @property
    def value(self) -> list[str] | None:
        """None while words are still to come."""
        if self.positional and len(self._value) < self.count:
            return None
        return self._value or self.default

    @value.setter
    def value(self, word: str) -> None:
        self.raw_value = word
        self._value = [*self._value, word]


class PairsArgument(Argument):
    """A flag that takes two words, and may be repeated: --param lr 1e-5,2e-5, or in one: --param lr=1e-5,2e-5.

    Invoke hands on one more word for as long as there is no raw value.
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


# ---- what was typed ----


def calls(words: Sequence[str]) -> list[Call]:
    """Return the calls of our tasks on a command line, with their bare words.

    The first word after a task that takes one is that, whatever it says; of several words, one that names a task of
    ours begins that task. A task of somebody else's cannot be told from a word: it goes before ours.
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
        owner = _owner(word)
        taken = len(current.words) if current else 0
        if current and taken < current.task.places and not (owner and taken):
            current.words.append(word)
            continue
        current = owner
        if owner:
            found.append(owner)
    return found


def _owner(word: str) -> Call | None:
    mounted, _, name = word.rpartition(".")
    task = _tasks.get(name)
    return Call(task, f"{mounted}." if mounted else "", []) if task else None


def _words_after(flag: str, current: Call | None, following: Sequence[str]) -> int:
    if "=" in flag:
        return 0
    return (
        current.task.words_after(flag, following)
        if current
        else int(flag in CORE_VALUED)
    )


def typed() -> list[str]:
    """Return the command line of this process, the program's name first."""
    return list(sys.argv)


def remainder() -> list[str]:
    """Return what stands after a bare `--`."""
    words = _line.words()
    return words[words.index("--") + 1 :] if "--" in words else []


@contextlib.contextmanager
def reading(program: str, words: Iterable[str]) -> Iterator[None]:
    """Let a program of this name parse and run these words, whatever sys.argv holds."""
    before = _line.program, _line.prefix, _line.given
    _line.program, _line.prefix, _line.given = program, "", list(words)
    try:
        yield
    finally:
        _line.program, _line.prefix, _line.given = before


def as_called(message: str) -> str:
    """Return the message for whoever called: the tasks that it names are written as for a plain `inv`."""

    def put(found: re.Match[str]) -> str:
        help_flag, name = found.groups("")
        prefix = _line.prefix if name in _tasks else ""
        return f"{_line.program} {help_flag}{prefix}{name}"

    return COMMAND.sub(put, message)
