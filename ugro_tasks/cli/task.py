"""The decorator that makes a command's function a task."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import invoke.exceptions
import invoke.tasks

from ..errors import RecordError, UgroError

# A task named in a message.
COMMAND = re.compile(r"\binv (?=-|[a-z])")


class TaskFailed(UgroError, invoke.exceptions.Exit):
    """What leaves a task; its `__cause__` is the error itself.

    Invoke prints the message and ends with the exit code; a caller from Python catches a UgroError.
    """

    def __init__(self, error: UgroError) -> None:
        UgroError.__init__(self, as_called(error.text))
        invoke.exceptions.Exit.__init__(self, self.text, error.exit_code)
        self.exit_code = error.exit_code

    def __str__(self) -> str:
        return self.text


def as_called(message: str) -> str:
    """The message for whoever called `ugro`: the tasks that it names are written for `inv`."""
    return COMMAND.sub("ugro ", message) if Path(sys.argv[0]).name == "ugro" else message


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
            except UgroError as error:
                raise TaskFailed(error) from error
            except OSError as error:
                if error.filename is None:
                    raise
                raise TaskFailed(RecordError(f"{error.filename}: {error.strerror}")) from error

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
