"""What all tasks share: the decorator and the reading of flags."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import invoke.exceptions
import invoke.tasks

from ..errors import RecordError, UsageError

if TYPE_CHECKING:
    from ..experiments import Experiments

CLUSTER_HELP = "cluster: `local`, a name, or a path (default: $UGRO_CLUSTER, else ./cluster.yaml)"
NODES_HELP = "only these nodes, by name: a,b"
JSON_HELP = "print JSON for machines"
JOB_HELP = "job: a name (the newest of that name) or a whole job id"


def task(
    help: dict[str, str],  # noqa: A002
    iterable: Sequence[str] = (),
    optional_name: bool = False,
) -> Callable[[Callable[..., None]], Any]:
    """An Invoke task. A name left out takes the flag that follows for its value: `inv logs --help` means the help.

    With `optional_name`, the parameter `name` may be given as a bare word or be left out.
    """

    def decorate(body: Callable[..., None]) -> Any:
        @functools.wraps(body)
        def checked(*args: Any, **flags: Any) -> None:
            if {"--help", "-h"} & {value for value in (*args, *flags.values()) if isinstance(value, str)}:
                name = body.__name__.rstrip("_").replace("_", "-")
                os.execv(sys.executable, [sys.executable, sys.argv[0], "--help", name])  # noqa: S606
            try:
                body(*args, **flags)
                sys.stdout.flush()
            except BrokenPipeError:
                # Whoever read the output has gone (`| head`): no fault, and nothing more to say.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise invoke.exceptions.Exit(code=128 + signal.SIGPIPE) from None
            except OSError as error:
                if error.filename is None:
                    raise
                raise RecordError(f"{error.filename}: {error.strerror}") from error

        # Invoke knows no positional that may be left out, so it is told whether there is one this time.
        named = optional_name and _word_after(body)
        positional = ["name"] if named else [] if optional_name else None
        return invoke.tasks.task(checked, help=help, iterable=list(iterable), positional=positional)

    return decorate


def _word_after(body: Callable[..., None]) -> bool:
    name = body.__name__
    if name not in sys.argv:
        return False
    words = sys.argv[sys.argv.index(name) + 1 :]
    # Not a bare word is what follows a flag that takes a value.
    like: Any = invoke.tasks.task(body, positional=[])
    flags = [arg for arg in like.get_arguments() if arg.takes_value]
    valued = {("-" if len(name) == 1 else "--") + name for arg in flags for name in arg.names}
    values = {index + 1 for index, word in enumerate(words) if word in valued}
    return any(not word.startswith("-") for index, word in enumerate(words) if index not in values)


def open_experiments(cluster: str | None) -> Experiments:
    """The experiments folder of the chosen cluster."""
    from ..cluster_file import load_cluster
    from ..experiments import Experiments

    return Experiments(load_cluster(cluster).experiments)


def given(name: str | None, flag: str) -> str:
    """The value; raises UsageError where it was left out."""
    if not name:
        raise UsageError(f"{flag} is missing; see `inv --help {invoked_task()}`")
    return name


def whole(text: str | int | None, flag: str, least: int = 0) -> int | None:
    """A whole number from a flag; raises UsageError."""
    return None if text is None else int(_number(text, flag, int, f"a whole number from {least} on", least))


def decimal(text: str | float | None, flag: str) -> float | None:
    """A number from a flag; raises UsageError."""
    return None if text is None else float(_number(text, flag, float, "a number, e.g. 2e-4", None))


AGE_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def age(text: str | None, flag: str) -> float:
    """Seconds from a flag like 12h, 30d or 4w, 0.0 where it was left out; raises UsageError."""
    if text is None:
        return 0.0
    count, unit = text[:-1], text[-1:]
    if unit not in AGE_SECONDS or not (count.isascii() and count.isdecimal()):
        raise UsageError(f"{flag} {text}: use hours, days or weeks, e.g. 12h, 30d or 4w")
    return float(count) * AGE_SECONDS[unit]


def _number(text: Any, flag: str, kind: type[Any], rule: str, least: int | None) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or (least is not None and value < least):
        raise UsageError(f"{flag} {text}: use {rule}")
    return value


def invoked_task() -> str:
    """The task's name on the command line, for a message."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


@contextlib.contextmanager
def loading(*modules: str) -> Iterator[None]:
    """Load modules of the package while others are waited for."""

    def load() -> None:
        for module in modules:
            importlib.import_module(f"ugro_tasks.{module}")

    thread = threading.Thread(target=load, name="loading")
    thread.start()
    try:
        yield
    finally:
        thread.join()
