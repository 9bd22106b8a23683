"""The decorator that makes a task of a command's function."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import invoke.exceptions

from ..errors import Interrupted, RecordError, UgroError, UsageError
from .command_line import ExtraArguments, UgroTask
from .command_line import as_called as as_called


class TaskFailed(UgroError, invoke.exceptions.Exit):
    """The exception of a failed task; its `__cause__` is the error itself.

    Invoke prints the message and exits with the code; a caller from Python catches a UgroError.
    """

    def __init__(self, error: UgroError) -> None:
        UgroError.__init__(self, as_called(error.text))
        invoke.exceptions.Exit.__init__(self, self.text, error.exit_code)
        self.exit_code = error.exit_code

    def __str__(self) -> str:
        return self.text


def task(
    help: dict[str, str],  # noqa: A002
    *,
    group: str = "",
    collection: str = "",
    word: str | None = None,
    words: str | None = None,
    pairs: Sequence[str] = (),
    iterable: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], UgroTask]:
    """Make a task of a function; its result is its output as data, its errors become TaskFailed.

    `group` is its section in `ugro --help`, `collection` the one it is in, as `agent` in
    `inv agent.adopt`. Parameters without a default are required bare words.
    `word` names an optional bare word, `words` a parameter for any number of bare words, `pairs`
    flags with two words, `iterable` repeatable flags.
    """
    extra = ExtraArguments(
        word=word, words=words, pairs=tuple(pairs), iterable=tuple(iterable)
    )

    def decorate(body: Callable[..., Any]) -> UgroTask:
        signature = inspect.signature(body)

        @functools.wraps(body)
        def checked(*args: Any, **flags: Any) -> Any:
            given = signature.bind(*args, **flags)
            try:
                _configure(given.arguments, signature, given.args[0])
                with _taking_any_text():
                    result = body(*given.args, **given.kwargs)
                    sys.stdout.flush()
            except BrokenPipeError:
                # The reader has closed the pipe (`| head`), which is no error.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise invoke.exceptions.Exit(code=128 + signal.SIGPIPE) from None
            except KeyboardInterrupt:
                raise TaskFailed(Interrupted("interrupted")) from None
            except UgroError as error:
                raise TaskFailed(error) from error
            except OSError as error:
                if error.filename is None:
                    raise
                raise TaskFailed(
                    RecordError(f"{error.filename}: {error.strerror}")
                ) from error
            return result

        return UgroTask(checked, help, group, extra, collection)

    return decorate


@contextlib.contextmanager
def _taking_any_text() -> Iterator[None]:
    """Let stdout show what its encoding lacks as question marks, as in a terminal of ISO-8859-1."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


def _configure(
    given: dict[str, Any], signature: inspect.Signature, context: Any
) -> None:
    """Fill in flags that were not given from Invoke's configuration and its own flags."""
    parameters = signature.parameters
    run = context.config.run
    unset = given.get("cluster") is None and not os.environ.get("UGRO_CLUSTER")
    if "cluster" in parameters and unset:
        given["cluster"] = _configured_cluster(context)
    if "dry_run" in parameters and run.dry:
        given["dry_run"] = True
    if "verbose" in parameters and run.echo:
        given["verbose"] = True
    if "quiet" in parameters and run.hide in (True, "both", "out", "stdout"):
        given["quiet"] = True


def _configured_cluster(context: Any) -> str | None:
    try:
        cluster = context.config.ugro.cluster
    except AttributeError:
        return None
    if cluster is None or isinstance(cluster, str):
        return cluster or None
    raise UsageError(
        f"ugro.cluster is {cluster!r} in Invoke's configuration: use `local`, a name, or a path"
    )


def is_dry(context: Any) -> bool:
    """Return whether Invoke's --dry was given: show what would be done, and do nothing."""
    return bool(context.config.run.dry)
